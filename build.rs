//! Compiles `kernels/**/*.cu` and writes `OUT_DIR/kernels.rs`, the table that `gpu::embedded` includes.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `VIVACE_CUDA_ARCHS` | architectures to build for, default `80;90a`; the lowest one is also kept as PTX |
//! | `VIVACE_CUBINS` | a folder of ready images (`gemm__wgmma.sm_90a.cubin`, `norm.compute_80.ptx`) used instead of nvcc |
//! | `VIVACE_REQUIRE_KERNELS=1` | building without kernels is an error, not a warning |
//! | `VIVACE_SKIP_NVCC=1` | build without kernels, quietly (as on docs.rs) |
//! | `VIVACE_LINEINFO=1` | images carry the lines of their source, for profilers |
//! | `VIVACE_KERNEL_CACHE` | where compiled images are kept, default `OUT_DIR/cubins`; sharing one is safe |
//! | `NVCC_CCBIN`, `NVCC_PREPEND_FLAGS`, `NVCC_APPEND_FLAGS` | what nvcc itself takes: a change compiles anew |
//! | `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH` | where nvcc is looked for, then /usr/local/cuda and .toolchain |
//!
//! Only std: a build dependency would be compiled before anything else. The GPU of this machine is never asked.

#[path = "tools/build/kernels.rs"]
mod kernels;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::{
    Built, complaints, find_nvcc, image_name, includes, only_archs, parse_archs, parse_image_name, table,
};

const DEFAULT_ARCHS: &str = "80;90a";
/// nvcc itself takes flags from these.
const MORE_FLAGS: [&str; 2] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];
const FLAGS: &[&str] = &["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={}", message.lines().next().unwrap_or("build script failed"));
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    for file in ["build.rs", "tools/build/kernels.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    for name in [
        "VIVACE_CUDA_ARCHS",
        "VIVACE_CUBINS",
        "VIVACE_REQUIRE_KERNELS",
        "VIVACE_SKIP_NVCC",
        "VIVACE_LINEINFO",
        "VIVACE_KERNEL_CACHE",
        "DOCS_RS",
    ] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"].iter().chain(&MORE_FLAGS) {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let (images, why_empty) = match images(&root, &out)? {
        Found::Images(images) if !images.is_empty() => (images, None),
        Found::Images(_) => (Vec::new(), Some("there was no kernel to build".to_owned())),
        Found::Nothing { why, quiet } => {
            if !quiet && !is_on("VIVACE_REQUIRE_KERNELS") {
                println!("cargo::warning=built without CUDA kernels: {why}");
            }
            (Vec::new(), Some(why))
        }
    };
    if let (Some(why), true) = (&why_empty, is_on("VIVACE_REQUIRE_KERNELS")) {
        return Err(format!("VIVACE_REQUIRE_KERNELS is set and no kernels were built: {why}"));
    }
    write(&out.join("kernels.rs"), table(&images, why_empty.as_deref()).as_bytes())
}

enum Found {
    Images(Vec<Built>),
    Nothing { why: String, quiet: bool },
}

fn images(root: &Path, out: &Path) -> Result<Found, String> {
    if let Some(dir) = env::var_os("VIVACE_CUBINS") {
        return ready_images(&root.join(dir), out).map(Found::Images);
    }
    if env::var_os("DOCS_RS").is_some() || is_on("VIVACE_SKIP_NVCC") {
        let why = "the build was told to skip them (VIVACE_SKIP_NVCC or DOCS_RS)".to_owned();
        return Ok(Found::Nothing { why, quiet: true });
    }
    let kernels = root.join("kernels");
    if !kernels.is_dir() {
        return Ok(Found::Nothing { why: "the source tree has no kernels folder".to_owned(), quiet: false });
    }
    println!("cargo::rerun-if-changed=kernels");
    let Some(nvcc) = find_nvcc(root, &|name| env::var_os(name), &|path| path.is_file())? else {
        println!("cargo::rerun-if-env-changed=PATH");
        let why = "nvcc was not found in NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda or .toolchain; \
                   tools/setup fetches it"
            .to_owned();
        return Ok(Found::Nothing { why, quiet: false });
    };
    println!("cargo::rerun-if-changed={}", nvcc.display());
    let archs = parse_archs(&env::var("VIVACE_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.to_owned()))?;
    let cache = env::var_os("VIVACE_KERNEL_CACHE").filter(|dir| !dir.is_empty());
    let cache = cache.map_or_else(|| out.join("cubins"), |dir| root.join(dir));
    fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
    let version = Command::new(&nvcc).arg("--version").output();
    let version = version.map_err(|e| format!("{}: {e}", nvcc.display()))?;
    if !version.status.success() {
        return Err(format!(
            "{} --version failed: {}",
            nvcc.display(),
            String::from_utf8_lossy(&version.stderr)
        ));
    }
    let jobs = jobs(&kernels, &archs, &cache, &String::from_utf8_lossy(&version.stdout))?;
    compile_all(&nvcc, &kernels, &jobs)?;
    jobs.into_iter().map(|job| kept(out, job.image)).collect::<Result<_, _>>().map(Found::Images)
}

/// The image in the folder that cargo keeps for this build: a cache may be cleaned meanwhile.
fn kept(out: &Path, image: Built) -> Result<Built, String> {
    let dir = out.join("cubins");
    let path = dir.join(image.path.file_name().ok_or("an image without a name")?);
    if !path.is_file() {
        let failed = |e| format!("{}: {e}", path.display());
        fs::create_dir_all(&dir).map_err(failed)?;
        fs::hard_link(&image.path, &path)
            .or_else(|_| fs::copy(&image.path, &path).map(drop))
            .map_err(failed)?;
    }
    Ok(Built { path, ..image })
}

fn is_on(name: &str) -> bool {
    env::var(name).is_ok_and(|value| !value.is_empty() && value != "0")
}

/// One call of nvcc.
struct Job {
    source: PathBuf,
    image: Built,
}

/// Every image that has to exist. Its path carries a hash of all that goes into it, so what is there is up to date.
fn jobs(kernels: &Path, archs: &[String], cache: &Path, version: &str) -> Result<Vec<Job>, String> {
    let mut sources = Vec::new();
    walk(kernels, &mut sources)?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let mut jobs = Vec::new();
    for source in sources {
        let mut texts = BTreeMap::new();
        read_with_includes(&source, kernels, &mut texts)?;
        let text = texts.get(&source).cloned().unwrap_or_default();
        let only = only_archs(&text);
        let archs: Vec<&String> = archs
            .iter()
            .filter(|arch| only.as_ref().is_none_or(|only| only.contains(&arch.as_str())))
            .collect();
        let file = file_name(kernels, &source)?;
        // PTX for 90a runs nowhere but on 9.0, where the cubin is the better image.
        let lowest = archs.iter().find(|arch| !arch.ends_with('a'));
        let cubins = archs.iter().map(|arch| (*arch, false));
        for (arch, ptx) in cubins.chain(lowest.map(|arch| (*arch, true))) {
            let mut hash = DefaultHasher::new();
            (version, flags(), arch, ptx, env::var_os("NVCC_CCBIN")).hash(&mut hash);
            MORE_FLAGS
                .iter()
                .filter_map(|name| Some((name, env::var_os(name)?)))
                .for_each(|f| f.hash(&mut hash));
            for (path, text) in &texts {
                (path.strip_prefix(kernels).unwrap_or(path), text).hash(&mut hash);
            }
            let path = cache.join(format!("{:016x}-{}", hash.finish(), image_name(&file, arch, ptx)));
            let image = Built { file: file.clone(), arch: arch.clone(), ptx, path };
            jobs.push(Job { source: source.clone(), image });
        }
    }
    Ok(jobs)
}

/// Lines of the source in the images are for profilers; they are three quarters of the bytes.
fn flags() -> Vec<&'static str> {
    let lines = is_on("VIVACE_LINEINFO").then_some("-lineinfo");
    FLAGS.iter().copied().chain(lines).collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    for entry in fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
        if path.is_dir() { walk(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

/// The text of `path` and of every file of ours that it includes, directly or not. Headers of CUDA are not found
/// here and are covered by the version of nvcc.
fn read_with_includes(
    path: &Path,
    kernels: &Path,
    texts: &mut BTreeMap<PathBuf, String>,
) -> Result<(), String> {
    if texts.contains_key(path) {
        return Ok(());
    }
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    texts.insert(path.to_owned(), text.clone());
    for name in includes(&text) {
        let beside = path.parent().map(|dir| dir.join(name));
        let Some(found) = beside.into_iter().chain([kernels.join(name)]).find(|path| path.is_file()) else {
            continue;
        };
        read_with_includes(&found, kernels, texts)?;
    }
    Ok(())
}

fn file_name(kernels: &Path, source: &Path) -> Result<String, String> {
    let inside = source.strip_prefix(kernels).map_err(|e| format!("{}: {e}", source.display()))?;
    let name = inside.with_extension("").to_string_lossy().replace('\\', "/");
    if name.contains("__") {
        return Err(format!("kernels/{name}.cu: a name must not contain two underscores in a row"));
    }
    Ok(name)
}

/// The images of a ready folder. PTX is copied, because it has to end with a zero byte.
fn ready_images(dir: &Path, out: &Path) -> Result<Vec<Built>, String> {
    println!("cargo::rerun-if-changed={}", dir.display());
    let entries = fs::read_dir(dir).map_err(|e| format!("VIVACE_CUBINS: {}: {e}", dir.display()))?;
    let mut images = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| format!("VIVACE_CUBINS: {}: {e}", dir.display()))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((file, arch, ptx)) = parse_image_name(&name) else { continue };
        let path = if ptx {
            let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let copy = out.join(&name);
            write(&copy, &zero_ended(bytes))?;
            copy
        } else {
            path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?
        };
        images.push(Built { file, arch, ptx, path });
    }
    if images.is_empty() {
        return Err(format!(
            "VIVACE_CUBINS: {} holds no NAME.sm_ARCH.cubin or NAME.compute_ARCH.ptx",
            dir.display()
        ));
    }
    images.sort();
    Ok(images)
}

fn zero_ended(mut text: Vec<u8>) -> Vec<u8> {
    if text.last() != Some(&0) {
        text.push(0);
    }
    text
}

/// Runs what is not in the cache, as many at once as cargo was allowed; every failure is reported.
fn compile_all(nvcc: &Path, kernels: &Path, jobs: &[Job]) -> Result<(), String> {
    let todo: Vec<&Job> = jobs.iter().filter(|job| !job.image.path.is_file()).collect();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(cores).clamp(1, 64);
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(todo.len()) {
            scope.spawn(|| {
                while let Some(job) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = compile(nvcc, kernels, job) {
                        failures.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(message);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if failures.is_empty() {
        return Ok(());
    }
    Err(failures.into_iter().collect::<Vec<_>>().join("\n\n"))
}

fn compile(nvcc: &Path, kernels: &Path, job: &Job) -> Result<(), String> {
    let Built { file, arch, ptx, path } = &job.image;
    let title = format!("kernels/{file}.cu for {}", if *ptx { "PTX " } else { "sm_" }.to_owned() + arch);
    // The name ends with the process: another build may fill the same cache at the same time.
    let partial = path.with_extension(format!("partial{}", std::process::id()));
    let mut command = Command::new(nvcc);
    command.args(flags()).arg("-I").arg(kernels);
    let code = if *ptx { "compute" } else { "sm" };
    command.arg("-gencode").arg(format!("arch=compute_{arch},code={code}_{arch}"));
    command.arg(if *ptx { "-ptx" } else { "-cubin" }).arg("-o").arg(&partial).arg(&job.source);
    let output = command.output().map_err(|e| format!("{title}: {}: {e}", nvcc.display()))?;
    let log =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let complaints = complaints(&log);
    let failed = if !output.status.success() {
        Some(format!("{title}: nvcc failed ({})\n{log}", output.status))
    } else if !complaints.is_empty() {
        Some(format!("{title}: {}", complaints.join("; ")))
    } else {
        None
    };
    if let Some(message) = failed {
        let _ = fs::remove_file(&partial);
        return Err(message);
    }
    if *ptx {
        let text = fs::read(&partial).map_err(|e| format!("{}: {e}", partial.display()))?;
        write(&partial, &zero_ended(text))?;
    }
    fs::rename(&partial, path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}

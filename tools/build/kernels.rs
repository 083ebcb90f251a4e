//! What build.rs decides without touching a file: where nvcc is, what is built for which architecture, what an image
//! is called, what ptxas may not say, and the text of the table. tests/build.rs includes this file.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Where tools/setup puts nvcc, from the root of the repository.
const TOOLCHAIN_NVCC: &str = ".toolchain/nvidia/cu13/bin/nvcc";

/// One compiled image and where its bytes lie.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Built {
    /// Path under kernels/ without the extension, `/` between the parts.
    pub file: String,
    /// `80`, `90a`.
    pub arch: String,
    pub ptx: bool,
    pub path: PathBuf,
}

/// nvcc in the order NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, .toolchain under `root`. A NVCC that leads
/// nowhere is an error: whoever set it meant it.
pub fn find_nvcc(
    root: &Path,
    var: &dyn Fn(&str) -> Option<OsString>,
    is_file: &dyn Fn(&Path) -> bool,
) -> Result<Option<PathBuf>, String> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    let on_path = |program: &Path| {
        let path = var("PATH").unwrap_or_default();
        env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| is_file(candidate))
    };
    if let Some(given) = var("NVCC").map(PathBuf::from) {
        let found = if given.components().count() == 1 { on_path(&given) } else { Some(given.clone()) };
        return match found.filter(|path| is_file(path)) {
            Some(path) => Ok(Some(path)),
            None => Err(format!("NVCC is set to {}, which is not a file", given.display())),
        };
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(|name| var(name).map(PathBuf::from));
    let home = homes.map(|home| home.join("bin/nvcc")).find(|path| is_file(path));
    let last = [PathBuf::from("/usr/local/cuda/bin/nvcc"), root.join(TOOLCHAIN_NVCC)];
    Ok(home.or_else(|| on_path(Path::new("nvcc"))).or_else(|| last.into_iter().find(|path| is_file(path))))
}

/// `80;90a` (or with commas) to its parts, lowest first, each once.
pub fn parse_archs(list: &str) -> Result<Vec<String>, String> {
    let parts = list.split([';', ',']).map(str::trim).filter(|part| !part.is_empty());
    let archs: BTreeSet<(u32, String)> = parts
        .map(|part| match arch_number(part) {
            Some(number) => Ok((number, part.to_owned())),
            None => Err(format!("VIVACE_CUDA_ARCHS: expected architectures such as 80;90a, found {part:?}")),
        })
        .collect::<Result<_, _>>()?;
    if archs.is_empty() {
        return Err(format!("VIVACE_CUDA_ARCHS: expected architectures such as 80;90a, found {list:?}"));
    }
    Ok(archs.into_iter().map(|(_, arch)| arch).collect())
}

/// The number of `80` or `90a`; none for anything else.
fn arch_number(arch: &str) -> Option<u32> {
    let digits = arch.strip_suffix('a').unwrap_or(arch);
    let plain = (2..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

/// What the first line `// archs: 90a 100a` of a kernel file restricts it to; none means every architecture.
pub fn only_archs(source: &str) -> Option<Vec<&str>> {
    let list = source.lines().next()?.trim().strip_prefix("// archs:")?;
    Some(list.split([' ', ',', ';']).filter(|arch| !arch.is_empty()).collect())
}

/// The quoted includes of a source text, in order.
pub fn includes<'a>(source: &'a str) -> Vec<&'a str> {
    let quoted = |line: &'a str| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        rest.trim_start().strip_prefix('"')?.split('"').next()
    };
    source.lines().filter_map(quoted).collect()
}

/// `gemm/wgmma`, `90a` to `gemm__wgmma.sm_90a.cubin` or `gemm__wgmma.compute_90a.ptx`.
pub fn image_name(file: &str, arch: &str, ptx: bool) -> String {
    let file = file.replace('/', "__");
    if ptx { format!("{file}.compute_{arch}.ptx") } else { format!("{file}.sm_{arch}.cubin") }
}

/// The inverse of [`image_name`]: file, architecture, whether it is PTX.
pub fn parse_image_name(name: &str) -> Option<(String, String, bool)> {
    let (stem, ptx) = match name.strip_suffix(".cubin") {
        Some(stem) => (stem, false),
        None => (name.strip_suffix(".ptx")?, true),
    };
    let (file, arch) = stem.rsplit_once(if ptx { ".compute_" } else { ".sm_" })?;
    arch_number(arch)?;
    Some((file.replace("__", "/"), arch.to_owned(), ptx))
}

/// What ptxas says of a kernel that must not ship: registers spilled to memory, and the C75xx notes, all of which
/// mean that wgmma was serialised or setmaxnreg ignored.
pub fn complaints(log: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut kernel = "?";
    for line in log.lines() {
        let name = line.split_once("Function properties for ").map(|(_, name)| name);
        let entry =
            line.split_once("Compiling entry function '").and_then(|(_, rest)| rest.split('\'').next());
        kernel = name.or(entry).map_or(kernel, str::trim);
        let spilled = line.split(',').filter(|part| part.contains("bytes spill"));
        if spilled.clone().any(|part| !part.trim().starts_with("0 bytes")) {
            found.push(format!("{kernel} spills registers ({})", line.trim()));
        }
        if line.contains("(C75") {
            found.push(line.trim().to_owned());
        }
    }
    found
}

/// The Rust text of the table.
pub fn table(images: &[Built], why_empty: Option<&str>) -> String {
    let mut text = String::from("// Written by build.rs.\n");
    let _ = writeln!(text, "pub const WHY_EMPTY: Option<&str> = {why_empty:?};");
    text.push_str("pub static KERNELS: &[Image] = &[\n");
    for Built { file, arch, ptx, path } in images {
        let kind = if *ptx { "Ptx" } else { "Cubin" };
        let bytes = format!("{{ const A: &Aligned<[u8]> = &Aligned(*include_bytes!({path:?})); &A.0 }}");
        let _ = writeln!(
            text,
            "    Image {{ file: {file:?}, arch: {arch:?}, kind: Kind::{kind}, bytes: {bytes} }},"
        );
    }
    text.push_str("];\n");
    text
}

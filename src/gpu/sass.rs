//! What ptxas made of the kernels, read from the images for sm_90a: instructions that are meant to be there, and some that
//! are not. No GPU and no disassembler is needed, because an instruction says what it is in its lowest 12 bits.

use super::embedded::{self, Image, Kind};

/// Products of warpgroups, from shared memory and with A in registers.
const HGMMA: [u16; 2] = [0x9f0, 0xdf0];
/// mma.sync.
const HMMA: [u16; 1] = [0x23c];
/// Bulk tensor copies, plain and to all CTAs of a cluster that a mask names.
const UTMALDG: [u16; 2] = [0x5b4, 0x3b4];
/// Loads from global memory.
const LDG: [u16; 1] = [0x981];
/// Local memory: spills, stack frames, arrays with computed indices.
const LOCAL: [u16; 2] = [0x983, 0x387];
/// Fences of memory.
const MEMBAR: [u16; 1] = [0x992];
/// griddepcontrol.wait and .launch_dependents.
const ACQBULK: [u16; 1] = [0x82e];
const PREEXIT: [u16; 1] = [0x82d];

/// The 8 bytes at `at` of a 64-bit ELF file, little-endian; as many bytes as `N` for the other widths.
fn bytes<const N: usize>(file: &[u8], at: usize) -> [u8; N] {
    file[at..at + N].try_into().unwrap()
}

/// The kernels of an image and their instructions: `.text.SYMBOL` of the ELF file, 16 bytes each.
fn kernels(image: &Image) -> Vec<(String, Vec<u16>)> {
    let file = image.bytes;
    let u64_at = |at| u64::from_le_bytes(bytes(file, at)) as usize;
    let u32_at = |at| u32::from_le_bytes(bytes(file, at)) as usize;
    let u16_at = |at| u16::from_le_bytes(bytes(file, at)) as usize;
    assert_eq!(&file[..5], b"\x7fELF\x02", "{image:?}");
    let (headers, size, count, names) = (u64_at(0x28), u16_at(0x3a), u16_at(0x3c), u16_at(0x3e));
    // Offset and size of a section.
    let place = |n: usize| (u64_at(headers + n * size + 0x18), u64_at(headers + n * size + 0x20));
    let name = |n: usize| {
        let rest = &file[place(names).0 + u32_at(headers + n * size)..];
        String::from_utf8_lossy(&rest[..rest.iter().position(|&b| b == 0).unwrap()]).into_owned()
    };
    (0..count)
        .filter_map(|n| {
            let symbol = name(n).strip_prefix(".text.")?.to_owned();
            let (at, len) = place(n);
            let code = (at..at + len).step_by(16).map(|at| u16_at(at) as u16 & 0xfff).collect();
            Some((symbol, code))
        })
        .collect()
}

/// Every kernel for sm_90a with its file; none where the crate was built for other chips.
fn hopper() -> Vec<(&'static str, String, Vec<u16>)> {
    let images = embedded::images().iter().filter(|image| image.arch == "90a" && image.kind == Kind::Cubin);
    images.flat_map(|image| kernels(image).into_iter().map(|(name, code)| (image.file, name, code))).collect()
}

fn count(code: &[u16], any: &[u16]) -> usize {
    code.iter().filter(|op| any.contains(op)).count()
}

#[test]
fn what_wants_wgmma_and_tma_has_them() {
    const FILES: [&str; 6] = [
        "attention/wgmma",
        "attention/wgmma_d64",
        "conv/wgmma",
        "gemm/wgmma",
        "gemm/wgmma_multicast",
        "gemm/wgmma_multicast_norm",
    ];
    let all = hopper();
    for (file, name, code) in all.iter().filter(|(file, ..)| FILES.contains(file)) {
        // Four steps of k at least, both operands.
        assert!(count(code, &HGMMA) >= 4, "{file} {name}: {} HGMMA", count(code, &HGMMA));
        assert!(count(code, &UTMALDG) >= 2, "{file} {name}: {} UTMALDG", count(code, &UTMALDG));
        // But for statistics of 64 rows (kernels/gemm/LADDER.md, "Around a LayerNorm", step 7).
        if !name.starts_with("gemm_multicast_stats_t64x64") {
            assert_eq!(count(code, &HMMA), 0, "{file} {name}: mma.sync");
        }
        if file.starts_with("gemm/wgmma_multicast") {
            assert!(count(code, &UTMALDG[1..]) >= 1, "{file} {name}: nothing is sent to other CTAs");
        }
    }
    for file in FILES.into_iter().filter(|_| !all.is_empty()) {
        assert!(all.iter().any(|(f, ..)| *f == file), "{file} has no image");
    }
    for (file, name, code) in &all {
        if ["gemm/mma", "gemm/skinny", "attention/prefill", "attention/decode"].contains(file) {
            assert!(count(code, &HMMA) >= 4, "{file} {name}: {} HMMA", count(code, &HMMA));
        }
    }
}

/// An arrival at a barrier of another CTA with `.release.cluster` would be a fence for the whole GPU in every step of k.
#[test]
fn no_fence_stands_between_products() {
    for (file, name, code) in hopper().iter().filter(|(file, ..)| file.starts_with("gemm/wgmma")) {
        let product = |op: &u16| HGMMA.contains(op);
        let (first, last) = (code.iter().position(product).unwrap(), code.iter().rposition(product).unwrap());
        assert_eq!(count(&code[first..last], &MEMBAR), 0, "{file} {name}: MEMBAR between HGMMA");
    }
}

#[test]
fn nothing_goes_through_local_memory_but_large_angles() {
    // sincosf reduces them by a table that it indexes.
    let angles = |name: &str| {
        name.starts_with("gemv_rope_") || name.starts_with("skinny_rope_") || name.starts_with("sin_table_")
    };
    for (file, name, code) in hopper().iter().filter(|(_, name, _)| !angles(name)) {
        assert_eq!(count(code, &LOCAL), 0, "{file} {name}: loads and stores of local memory");
    }
}

#[test]
fn every_kernel_waits_for_the_one_before_and_lets_the_next_begin() {
    for (file, name, code) in &hopper() {
        assert!(count(code, &ACQBULK) >= 1, "{file} {name}: no griddepcontrol.wait");
        assert!(count(code, &PREEXIT) >= 1, "{file} {name}: no griddepcontrol.launch_dependents");
    }
}

/// ptxas likes to sink loads that it takes for free: weights of few rows have to be on their way before the wait.
#[test]
fn weights_of_few_rows_are_asked_for_before_the_wait() {
    for (file, name, code) in &hopper() {
        let all_at_once = name.starts_with("gemv_7") || name.starts_with("gemv_rope_7");
        if all_at_once || *file == "gemm/skinny" {
            // Of every other CTA of a product of one row there is a wait before it asks, too.
            let wait = code.iter().rposition(|op| ACQBULK.contains(op)).unwrap();
            let before = count(&code[..wait], &LDG);
            assert!(before >= 8, "{name}: {before} loads before griddepcontrol.wait");
        }
    }
}

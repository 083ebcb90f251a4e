//! The compiled kernels that this binary carries, and which of them a GPU can run.

use crate::core::error::{Error, Result};

/// One compiled `.cu` file for one architecture.
pub struct Image {
    /// Path under `kernels/` without the extension: `attention/prefill`.
    pub file: &'static str,
    /// `80`, `90a`: the number is 10 · major + minor; an `a` binds the image to exactly that chip.
    pub arch: &'static str,
    pub kind: Kind,
    /// What `cuModuleLoadData` takes: 16-byte aligned; PTX ends with a zero byte.
    pub bytes: &'static [u8],
}

/// How far an image is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Machine code of one architecture.
    Cubin,
    /// Text that the driver compiles at load time, for this architecture and every later one.
    Ptx,
}

/// Aligns what `include_bytes!` yields. A table without images does not use it.
#[allow(dead_code)]
#[repr(C, align(16))]
struct Aligned<B: ?Sized>(B);

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {} ({} bytes)", self.file, self.kind, self.arch, self.bytes.len())
    }
}

impl Image {
    /// The number of the architecture without its suffix.
    fn number(&self) -> u32 {
        self.arch.trim_end_matches('a').parse().unwrap_or(0)
    }

    fn is_exact(&self) -> bool {
        self.arch.ends_with('a')
    }

    /// What may be asked of its kernels.
    fn capability(&self) -> u32 {
        if self.is_exact() { self.number() } else { self.number().min(89) }
    }
}

/// Why this binary carries no kernels; none if it does.
pub fn why_empty() -> Option<&'static str> {
    WHY_EMPTY
}

/// All images of this binary.
#[cfg(test)]
pub(crate) fn images() -> &'static [Image] {
    KERNELS
}

/// Every architecture that some kernel was built for: `sm_80`, `sm_90a`, `PTX 80`.
pub fn built_for() -> Vec<String> {
    names(KERNELS)
}

/// The best image of `file` (`attention/prefill`) for a GPU of compute capability `sm` (major, minor).
///
/// # Errors
/// [`Error::Runtime`] if the kernels were not built, no such file exists, or none of its images runs on that GPU.
pub fn find(file: &str, sm: (u32, u32)) -> Result<&'static Image> {
    if let Some(why) = WHY_EMPTY {
        return Err(Error::runtime(format!("the CUDA kernels were not built: {why}")));
    }
    choose(KERNELS, file, sm)
}

/// The architecture whose kernels a GPU of compute capability `sm` runs: its own number where there is machine code for
/// exactly this chip, else one below Hopper's. Only the former have clusters, TMA, wgmma and dependent launch.
///
/// # Errors
/// As [`find`].
pub fn arch(sm: (u32, u32)) -> Result<u32> {
    // Any file tells.
    Ok(find("norm", sm)?.capability())
}

/// In this order: machine code for exactly this chip; the newest machine code of the same major version that is not
/// newer than the chip; PTX that is not newer than the chip.
fn choose<'a>(images: &'a [Image], file: &str, sm: (u32, u32)) -> Result<&'a Image> {
    let device = 10 * sm.0 + sm.1;
    let of_file = || images.iter().filter(|image| image.file == file);
    let rank = |image: &Image| match (image.kind, image.is_exact(), image.number()) {
        (Kind::Cubin, true, number) if number == device => Some((2, number)),
        (Kind::Cubin, false, number) if number / 10 == sm.0 && number <= device => Some((1, number)),
        (Kind::Ptx, false, number) if number <= device => Some((0, number)),
        _ => None,
    };
    let best =
        of_file().filter_map(|image| rank(image).map(|rank| (rank, image))).max_by_key(|(rank, _)| *rank);
    if let Some((_, image)) = best {
        return Ok(image);
    }
    let built = names(of_file());
    if built.is_empty() {
        return Err(Error::runtime(format!("no kernel file {file} is in this binary")));
    }
    Err(Error::runtime(format!("kernels/{file}.cu: built for {}; this GPU is sm_{device}", built.join(", "))))
}

fn names<'a>(images: impl IntoIterator<Item = &'a Image>) -> Vec<String> {
    let mut all: Vec<(Kind, u32, String)> = Vec::new();
    for image in images {
        let name = match image.kind {
            Kind::Cubin => format!("sm_{}", image.arch),
            Kind::Ptx => format!("PTX {}", image.arch),
        };
        all.push((image.kind, image.number(), name));
    }
    all.sort_by(|a, b| (a.0 as u8, a.1, &a.2).cmp(&(b.0 as u8, b.1, &b.2)));
    all.dedup();
    all.into_iter().map(|(_, _, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(file: &'static str, arch: &'static str, kind: Kind) -> Image {
        Image { file, arch, kind, bytes: &[] }
    }

    static IMAGES: &[Image] = &[
        image("norm", "80", Kind::Cubin),
        image("norm", "86", Kind::Cubin),
        image("norm", "90a", Kind::Cubin),
        image("norm", "80", Kind::Ptx),
        image("gemm/wgmma", "90a", Kind::Cubin),
    ];

    fn chosen(file: &str, sm: (u32, u32)) -> (&'static str, Kind) {
        let image = choose(IMAGES, file, sm).expect("an image fits");
        (image.arch, image.kind)
    }

    #[test]
    fn takes_the_closest_machine_code() {
        assert_eq!(chosen("norm", (9, 0)), ("90a", Kind::Cubin));
        assert_eq!(chosen("norm", (8, 0)), ("80", Kind::Cubin));
        assert_eq!(chosen("norm", (8, 6)), ("86", Kind::Cubin));
        assert_eq!(chosen("norm", (8, 9)), ("86", Kind::Cubin));
    }

    #[test]
    fn falls_back_to_ptx_on_another_major_version() {
        assert_eq!(chosen("norm", (10, 0)), ("80", Kind::Ptx));
        assert_eq!(chosen("norm", (12, 0)), ("80", Kind::Ptx));
    }

    #[test]
    fn only_images_of_exactly_this_chip_are_asked_for_what_is_new_on_it() {
        let asked = |images: &[Image], sm| choose(images, "norm", sm).expect("an image fits").capability();
        assert_eq!([(8, 0), (8, 9), (9, 0), (10, 0)].map(|sm| asked(IMAGES, sm)), [80, 86, 90, 80]);
        let [old, plain] =
            ["80", "90"].map(|arch| [image("norm", arch, Kind::Cubin), image("norm", arch, Kind::Ptx)]);
        assert_eq!((asked(&old, (9, 0)), asked(&plain, (9, 0)), asked(&plain, (12, 0))), (80, 89, 89));
    }

    #[test]
    fn says_what_was_built_when_nothing_fits() {
        let message = |file, sm| choose(IMAGES, file, sm).expect_err("nothing fits").to_string();
        let text = "kernels/norm.cu: built for sm_80, sm_86, sm_90a, PTX 80; this GPU is sm_75";
        assert_eq!(message("norm", (7, 5)), text);
        assert_eq!(
            message("gemm/wgmma", (8, 0)),
            "kernels/gemm/wgmma.cu: built for sm_90a; this GPU is sm_80"
        );
        assert_eq!(
            message("gemm/wgmma", (10, 0)),
            "kernels/gemm/wgmma.cu: built for sm_90a; this GPU is sm_100"
        );
        assert_eq!(message("nrom", (9, 0)), "no kernel file nrom is in this binary");
    }

    /// Holds in a build with kernels and in one without.
    #[test]
    fn the_table_and_its_reason_agree() {
        assert_eq!(KERNELS.is_empty(), why_empty().is_some());
        assert_eq!(built_for().is_empty(), why_empty().is_some());
        if let Some(why) = why_empty() {
            let message = find("norm", (9, 0)).expect_err("no kernels").to_string();
            assert_eq!(message, format!("the CUDA kernels were not built: {why}"));
        }
        for image in KERNELS {
            assert!(!image.bytes.is_empty() && image.bytes.as_ptr().addr().is_multiple_of(16), "{image:?}");
            assert_eq!(image.kind == Kind::Ptx, image.bytes.last() == Some(&0) && image.bytes[0] != 0x7f);
        }
    }
}

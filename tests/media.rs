//! Pictures and sounds from bytes to the encoders' inputs: reference outputs where they are at hand, and what users
//! get wrong.

#[path = "media/audio.rs"]
mod audio;
#[path = "media/images.rs"]
mod images;

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

/// The folder of reference data beside the crate, or `None` with a note: the test then has nothing to compare with.
fn shared(folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(folder);
    if !path.is_dir() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn f32s(file: &SafeTensors, key: &str) -> Vec<f32> {
    let t = file.tensor(key).unwrap();
    assert_eq!(t.dtype(), safetensors::Dtype::F32, "{key}");
    t.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The largest difference and where it is.
fn worst(got: &[f32], want: &[f32]) -> (f32, usize) {
    assert_eq!(got.len(), want.len());
    let diff = |i: usize| (got[i] - want[i]).abs();
    let at = (0..got.len()).max_by(|&a, &b| diff(a).total_cmp(&diff(b))).unwrap();
    (diff(at), at)
}

/// Asserts the exit code for misuse and that the message has every part.
fn refused<T>(result: vivace::core::error::Result<T>, parts: &[&str]) {
    let e = result.err().expect("it was accepted");
    assert_eq!(e.exit_code(), 2, "{e}");
    for part in parts {
        assert!(e.to_string().contains(part), "{part:?} is not in: {e}");
    }
}

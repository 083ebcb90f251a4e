//! What the build script decides without touching a file.

#[path = "../tools/build/kernels.rs"]
mod kernels;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kernels::{
    Built, complaints, find_nvcc, image_name, includes, only_archs, parse_archs, parse_image_name, table,
};

/// `find_nvcc` on a machine with these variables and files.
fn found(vars: &[(&str, &str)], files: &[&str]) -> Result<Option<PathBuf>, String> {
    let vars: HashMap<&str, OsString> = vars.iter().map(|(name, value)| (*name, value.into())).collect();
    let is_file = |path: &Path| files.iter().any(|file| Path::new(file) == path);
    find_nvcc(Path::new("/repo"), &|name| vars.get(name).cloned(), &is_file)
}

const EVERYWHERE: &[&str] = &[
    "/given/nvcc-13",
    "/home/bin/nvcc",
    "/path/bin/nvcc",
    "/second/nvcc",
    "/usr/local/cuda/bin/nvcc",
    "/repo/.toolchain/nvidia/cu13/bin/nvcc",
];

#[test]
fn nvcc_is_looked_for_in_the_documented_order() {
    let vars = [
        ("NVCC", "/given/nvcc-13"),
        ("CUDA_HOME", "/home"),
        ("CUDA_PATH", "/path"),
        ("PATH", "/first:/second"),
    ];
    for (from, want) in EVERYWHERE.iter().enumerate().take(4) {
        let got = found(&vars[from..], EVERYWHERE);
        assert_eq!(got, Ok(Some(PathBuf::from(want))), "without the first {from}");
    }
    assert_eq!(found(&[], EVERYWHERE), Ok(Some(EVERYWHERE[4].into())));
    assert_eq!(found(&[("CUDA_HOME", "/without")], &EVERYWHERE[5..]), Ok(Some(EVERYWHERE[5].into())));
    assert_eq!(found(&vars[1..], &[]), Ok(None));
    assert_eq!(found(&[("NVCC", ""), ("CUDA_HOME", "")], EVERYWHERE), Ok(Some(EVERYWHERE[4].into())));
}

#[test]
fn a_given_nvcc_may_be_a_bare_name_and_must_exist() {
    let vars = [("NVCC", "nvcc-13"), ("PATH", "/first:/given")];
    assert_eq!(found(&vars, EVERYWHERE), Ok(Some("/given/nvcc-13".into())));
    let missing = found(&[("NVCC", "/gone/nvcc")], EVERYWHERE);
    assert_eq!(missing, Err("NVCC is set to /gone/nvcc, which is not a file".to_owned()));
}

#[test]
fn architectures_come_lowest_first_and_once() {
    assert_eq!(parse_archs("80;90a").as_deref(), Ok(["80".to_owned(), "90a".to_owned()].as_slice()));
    let many = ["80", "86", "90", "90a", "120"].map(str::to_owned);
    assert_eq!(parse_archs(" 120,90a;80; 90;86;80;").as_deref(), Ok(many.as_slice()));
    for bad in ["sm_80", "8", "90b", "9a0", "+80", "80;ninety"] {
        let message = parse_archs(bad).expect_err(bad);
        assert!(
            message.starts_with("VIVACE_CUDA_ARCHS: expected architectures such as 80;90a, found"),
            "{message}"
        );
    }
    assert!(parse_archs(" ; ").is_err());
}

#[test]
fn a_first_line_may_name_the_only_architectures() {
    assert_eq!(only_archs("// archs: 90a\n#include <x>"), Some(vec!["90a"]));
    assert_eq!(only_archs("// archs: 90a, 100a"), Some(vec!["90a", "100a"]));
    assert_eq!(only_archs("// gemm\n// archs: 90a"), None);
    assert_eq!(only_archs(""), None);
}

#[test]
fn includes_are_the_quoted_ones() {
    let source = "#pragma once\n#include <cuda.h>\n#include \"a.cuh\"\n  #  include   \"b/c.cuh\" // why\n// #include \"d\"";
    assert_eq!(includes(source), ["a.cuh", "b/c.cuh"]);
}

#[test]
fn image_names_go_there_and_back() {
    assert_eq!(image_name("norm", "80", true), "norm.compute_80.ptx");
    assert_eq!(image_name("gemm/sm90/wgmma", "90a", false), "gemm__sm90__wgmma.sm_90a.cubin");
    for (file, arch, ptx) in
        [("norm", "80", true), ("gemm/sm90/wgmma", "90a", false), ("a.b/c_d", "120", false)]
    {
        let back = parse_image_name(&image_name(file, arch, ptx));
        assert_eq!(back, Some((file.to_owned(), arch.to_owned(), ptx)));
    }
    for other in ["norm.cubin", "norm.sm_80.ptx", "norm.sm_x.cubin", "README.md"] {
        assert_eq!(parse_image_name(other), None, "{other}");
    }
}

#[test]
fn spills_and_wgmma_notes_are_complaints() {
    let clean = "ptxas info    : Compiling entry function 'f_bf16' for 'sm_90a'
ptxas info    : Function properties for f_bf16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers";
    assert_eq!(complaints(clean), Vec::<String>::new());
    let spilling = clean.replace("0 bytes spill loads", "16 bytes spill loads");
    let line = "0 bytes stack frame, 0 bytes spill stores, 16 bytes spill loads";
    assert_eq!(complaints(&spilling), [format!("f_bf16 spills registers ({line})")]);
    let note =
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized";
    assert_eq!(complaints(&format!("{clean}\n{note}")), [note]);
}

#[test]
fn the_table_is_rust() {
    let built =
        Built { file: "gemm/wgmma".into(), arch: "90a".into(), ptx: false, path: "/o/\"x\".cubin".into() };
    let text = table(&[built], None);
    assert!(text.contains("WHY_EMPTY: Option<&str> = None;"), "{text}");
    assert!(text.contains("file: \"gemm/wgmma\", arch: \"90a\", kind: Kind::Cubin"), "{text}");
    assert!(text.contains("include_bytes!(\"/o/\\\"x\\\".cubin\")"), "{text}");
    assert!(table(&[], Some("no \"nvcc\"")).contains("= Some(\"no \\\"nvcc\\\"\");"));
}

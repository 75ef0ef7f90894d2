//! Turns `--cfg loom`, which every crate of a build sees, into a flag that is this crate's alone: who
//! models a program of their own need not have the reactor in it on loom's primitives.

fn main() {
    if std::env::var_os("CARGO_CFG_LOOM").is_some() {
        println!("cargo::rustc-cfg=uring_reactor_loom");
    }
    println!("cargo::rerun-if-changed=build.rs");
}

//! The driver against a kernel whose answers are the fuzzer's. See `src/driver/hostile.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    uring_reactor::hostile_kernel(program);
});

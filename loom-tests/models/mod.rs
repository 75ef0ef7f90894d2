//! Models of the lock-free state, run by loom over the production types and a fake kernel.
//!
//! Each file is a concern, each test a model; what must hold is in its assertions. `../MODELS.md`
//! has the figures, `../MUTANTS.md` what the models fail for.

mod support;

mod deregister;
mod doorbell;
mod endings;
mod gone;
mod intent;
mod paths;
mod registration;
mod scout;
mod shared_waits;
mod spares;
mod wakers;

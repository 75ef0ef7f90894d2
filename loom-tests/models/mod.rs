//! Models of the lock-free state, run by loom over the production types.

mod support;

mod wakers;

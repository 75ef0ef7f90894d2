//! The synchronization primitives of the lock-free state: std's, or loom's when the models run.
//!
//! This is the only place that knows which. What two threads share is written against these names, so that
//! `loom-tests/` checks the code that ships and not a copy of it. (What decides nothing, as counters and
//! hints, is written against std, and says so.)

#[cfg(not(uring_reactor_loom))]
mod primitive {
    use std::any::Any;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
        compiler_fence, fence,
    };
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread;

    /// A sequentially consistent fence, right after an exchange. On x86 that was one itself: no load or
    /// store passes a locked instruction (Intel SDM, volume 3A, "Memory Ordering"), so there is only the compiler
    /// to be kept from moving them. Linux's `smp_mb__after_atomic`.
    #[inline(always)]
    pub(crate) fn fence_after_exchange() {
        // Miri has the memory of the language, not of a processor.
        if cfg!(all(
            any(target_arch = "x86", target_arch = "x86_64"),
            not(miri)
        )) {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// `std::cell::UnsafeCell` with loom's interface: access is a closure, so that loom can see
    /// where it starts and ends.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// Runs a user's waker and keeps its panic from reaching the caller, who has other wakers to
    /// call. The panic hook has reported it by then.
    #[inline(always)]
    pub(crate) fn contain(f: impl FnOnce()) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(f)) {
            bury(payload);
        }
    }

    #[cold]
    fn bury(payload: Box<dyn Any + Send>) {
        tracing::error!("a waker panicked while the reactor called it");
        // The payload's own destructor is the user's code too. If that panics, enough is enough.
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(another);
        }
    }
}

#[cfg(uring_reactor_loom)]
#[path = "../loom-tests/sync.rs"]
mod primitive;

pub(crate) use primitive::*;

/// A `const fn`, except under loom, whose atomics cannot be made in a constant.
macro_rules! const_unless_loom {
    ($(#[$attribute:meta])* $visibility:vis fn $($rest:tt)*) => {
        #[cfg(not(uring_reactor_loom))]
        $(#[$attribute])*
        $visibility const fn $($rest)*

        #[cfg(uring_reactor_loom)]
        $(#[$attribute])*
        $visibility fn $($rest)*
    };
}
pub(crate) use const_unless_loom;

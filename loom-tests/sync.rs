//! The primitives of `src/sync.rs` when the models run: loom's, with two of its blind spots mended.
//!
//! **Atomics.** Loom explores another order of two accesses only if it notices that they conflict,
//! and it remembers one access to an object, the last. A thread that loads before it writes (every
//! compare-exchange loop does) hides by its own load that somebody else had loaded, and so the order
//! in which the other's load comes after the write is never tried: see tokio-rs/loom#166 and #392.
//! Here each load first touches a companion, in a way that orders nothing but conflicts with the
//! touch of any other load. So the load itself is where the orders part.
//! (`loom_explores_what_our_models_need` in `models/support.rs` fails without it.)
//!
//! **Locks.** Loom sees its own objects, not the memory around them. What a list is published with
//! would go unchecked if the list held nothing but a lock. So a lock notes its birth, and whoever
//! takes it must have seen that.

pub(crate) use loom::cell::UnsafeCell;
pub(crate) use loom::sync::atomic::{Ordering, fence};
pub(crate) use loom::sync::{Arc, Condvar, MutexGuard};
use std::ops::Deref;
use std::sync::LockResult;

macro_rules! atomics {
    ($($name:ident$(<$parameter:ident>)?: $value:ty),* $(,)?) => {$(
        #[derive(Debug)]
        pub(crate) struct $name$(<$parameter>)? {
            touched: loom::sync::atomic::AtomicBool,
            value: loom::sync::atomic::$name$(<$parameter>)?,
        }

        impl$(<$parameter>)? $name$(<$parameter>)? {
            pub(crate) fn new(value: $value) -> Self {
                Self {
                    touched: loom::sync::atomic::AtomicBool::new(false),
                    value: loom::sync::atomic::$name::new(value),
                }
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.touched.swap(true, Ordering::Relaxed);
                self.value.load(order)
            }
        }

        /// Everything but a load is a conflict as it stands.
        impl$(<$parameter>)? Deref for $name$(<$parameter>)? {
            type Target = loom::sync::atomic::$name$(<$parameter>)?;

            fn deref(&self) -> &Self::Target {
                &self.value
            }
        }
    )*};
}

atomics! {
    AtomicBool: bool,
    AtomicPtr<T>: *mut T,
    AtomicU8: u8,
    AtomicU32: u32,
    AtomicU64: u64,
    AtomicUsize: usize,
}

/// What it is where an exchange is not a fence itself.
pub(crate) fn fence_after_exchange() {
    fence(Ordering::SeqCst);
}

#[derive(Debug)]
pub(crate) struct Mutex<T> {
    born: UnsafeCell<()>,
    mutex: loom::sync::Mutex<T>,
}

// SAFETY: `born` is nothing, and is never written after its birth; the rest is loom's.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex {
            born: UnsafeCell::new(()),
            mutex: loom::sync::Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        self.born.with(|_| ());
        self.mutex.lock()
    }

    pub(crate) fn get_mut(&mut self) -> LockResult<&mut T> {
        self.mutex.get_mut()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Mutex<T> {
        Mutex::new(T::default())
    }
}

pub(crate) mod thread {
    pub(crate) use loom::thread::{Builder, JoinHandle, ThreadId, current};

    pub(crate) fn sleep(_: std::time::Duration) {
        loom::thread::yield_now();
    }
}

/// A panic in a model is a finding and must end it.
pub(crate) fn contain(f: impl FnOnce()) {
    f();
}

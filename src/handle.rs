//! [`Handle`], the thread's default reactor, and the process's fallback.

use crate::error::Error;
use crate::metrics::Metrics;
use crate::reactor::Reactor;
use crate::shared::Shared;
use crate::sync::Arc;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Names a reactor, for registering with it and for waking it, from any thread.
///
/// The default handle is *lazy*: it stands for whatever is the default reactor where and when it is
/// used. That is the one which [`set_default`], [`with_default`] or
/// [`Reactor::block_on`](crate::Reactor::block_on) made the thread's default, or else the process's
/// fallback: the one which [`Reactor::set_fallback`](crate::Reactor::set_fallback) named, or else a
/// background reactor that is started then.
///
/// A handle does not keep its reactor alive.
///
/// ```
/// use uring_reactor::Reactor;
///
/// # fn main() -> std::io::Result<()> {
/// let mut reactor = Reactor::new()?;
/// let handle = reactor.handle();
/// std::thread::spawn(move || handle.wake());
/// // Returns because it is woken.
/// assert_eq!(reactor.turn(None)?.events(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Handle {
    shared: Option<Arc<Shared>>,
}

impl Handle {
    pub(crate) fn from_shared(shared: Arc<Shared>) -> Handle {
        Handle {
            shared: Some(shared),
        }
    }

    /// Calls `f` with the reactor that this handle stands for, here and now.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&Arc<Shared>) -> io::Result<R>) -> io::Result<R> {
        if let Some(shared) = &self.shared {
            return f(shared);
        }
        match current() {
            Some(shared) => f(&shared),
            None => f(&fallback()?),
        }
    }

    /// As `with`, but starts nothing.
    fn peek(&self) -> Option<Arc<Shared>> {
        self.shared
            .clone()
            .or_else(current)
            .or_else(|| Fallback::get().map(|fallback| Arc::clone(&fallback.shared)))
    }

    /// Makes the reactor's current turn return, or the next one if none is under way. Any number of
    /// calls before that turn count as one.
    ///
    /// A lazy handle wakes what is the default reactor at the time; if there is none, that is
    /// nothing. Waking a reactor that is gone does nothing.
    pub fn wake(&self) {
        if let Some(shared) = self.peek() {
            shared.counters.wakes.add_shared(1);
            shared.wake();
        }
    }

    /// The reactor's counters. All zero for a lazy handle where there is no default reactor.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.peek()
            .map(|shared| shared.metrics())
            .unwrap_or_default()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Handle");
        match &self.shared {
            Some(shared) => debug.field("registered", &shared.registered()),
            None => debug.field("lazy", &true),
        };
        debug.finish_non_exhaustive()
    }
}

/// What is the default reactor of a thread.
#[derive(Default)]
struct Defaults {
    /// What [`set_default`] named.
    set: Option<Arc<Shared>>,
    /// The reactor that [`block_on`](crate::Reactor::block_on) turns, which comes before that.
    turning: Option<Arc<Shared>>,
}

thread_local! {
    static DEFAULTS: RefCell<Defaults> = const {
        RefCell::new(Defaults {
            set: None,
            turning: None,
        })
    };
}

/// A thread whose storage is gone has no default, and gets none.
fn with_defaults<R: Default>(f: impl FnOnce(&mut Defaults) -> R) -> R {
    let with = |defaults: &RefCell<Defaults>| f(&mut defaults.borrow_mut());
    DEFAULTS.try_with(with).unwrap_or_default()
}

/// The thread's default.
fn current() -> Option<Arc<Shared>> {
    with_defaults(|defaults| defaults.turning.as_ref().or(defaults.set.as_ref()).cloned())
}

/// Makes a reactor the default of this thread until the guard is dropped.
///
/// ```
/// use uring_reactor::{Reactor, Registration, set_default};
///
/// # fn main() -> std::io::Result<()> {
/// let reactor = Reactor::new()?;
/// let _default = set_default(&reactor.handle());
/// let (ours, _theirs) = std::os::unix::net::UnixStream::pair()?;
/// Registration::new().register(&ours)?;
/// assert!(!reactor.is_idle());
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// If this thread has a default already, or if the handle is lazy.
#[must_use = "the default is unset when the guard is dropped"]
pub fn set_default(handle: &Handle) -> DefaultGuard {
    let Some(shared) = &handle.shared else {
        panic!("a lazy handle cannot be the default reactor: it stands for the default itself");
    };
    assert!(
        current().is_none(),
        "this thread has a default reactor already"
    );
    with_defaults(|defaults| defaults.set = Some(Arc::clone(shared)));
    DefaultGuard {
        bound_to_thread: PhantomData,
    }
}

/// Runs `f` with a reactor as the default of this thread. It is unset afterwards, also if `f`
/// panics.
///
/// # Panics
///
/// As [`set_default`].
pub fn with_default<R>(handle: &Handle, f: impl FnOnce() -> R) -> R {
    let _default = set_default(handle);
    f()
}

/// Unsets the default of the thread when dropped. See [`set_default`].
#[derive(Debug)]
pub struct DefaultGuard {
    bound_to_thread: PhantomData<*const ()>,
}

impl Drop for DefaultGuard {
    fn drop(&mut self) {
        // Dropped out here: that may be the last of the reactor's shared part.
        drop(with_defaults(|defaults| defaults.set.take()));
    }
}

/// As [`DefaultGuard`], for the reactor that this thread turns: over whatever default there is, which comes
/// back.
pub(crate) struct Swapped {
    before: Option<Arc<Shared>>,
    bound_to_thread: PhantomData<*const ()>,
}

impl Swapped {
    pub(crate) fn new(handle: Handle) -> Swapped {
        Swapped {
            before: with_defaults(|defaults| {
                std::mem::replace(&mut defaults.turning, handle.shared)
            }),
            bound_to_thread: PhantomData,
        }
    }
}

impl Drop for Swapped {
    fn drop(&mut self) {
        let before = self.before.take();
        drop(with_defaults(|defaults| {
            std::mem::replace(&mut defaults.turning, before)
        }));
    }
}

/// The process has a fallback reactor already.
#[derive(Debug)]
pub struct SetFallbackError(());

impl fmt::Display for SetFallbackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the process has a fallback reactor already")
    }
}

impl std::error::Error for SetFallbackError {}

impl From<SetFallbackError> for io::Error {
    fn from(error: SetFallbackError) -> io::Error {
        io::Error::new(io::ErrorKind::AlreadyExists, error)
    }
}

/// The process's fallback. Once published it stays for good, and the memory with it: whoever reads
/// it needs no lock. There is one a process, and one more for each fork that needs its own.
struct Fallback {
    shared: Arc<Shared>,
}

static FALLBACK: AtomicPtr<Fallback> = AtomicPtr::new(ptr::null_mut());

impl Fallback {
    fn get() -> Option<&'static Fallback> {
        let fallback = FALLBACK.load(Ordering::Acquire);
        // SAFETY: null, or published by `publish` and never freed.
        let fallback = unsafe { fallback.as_ref() }?;
        // One that has a thread in the parent has none here.
        (!fallback.shared.bell.is_orphaned()).then_some(fallback)
    }

    /// Publishes unless there is a living one.
    fn publish(self) -> Result<(), Fallback> {
        let fresh = Box::into_raw(Box::new(self));
        // Relaxed: compared, never followed. `get` acquires what it follows.
        let mut seen = FALLBACK.load(Ordering::Relaxed);
        while Fallback::get().is_none() {
            match FALLBACK.compare_exchange(seen, fresh, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(actual) => seen = actual,
            }
        }
        // SAFETY: from `Box::into_raw` above, and not published.
        Err(*unsafe { Box::from_raw(fresh) })
    }
}

/// The fallback, started if need be. A failure is not remembered.
fn fallback() -> io::Result<Arc<Shared>> {
    loop {
        if let Some(fallback) = Fallback::get() {
            return Ok(Arc::clone(&fallback.shared));
        }
        let background = Reactor::new().and_then(Reactor::background);
        if Fallback::get().is_some() {
            // Another thread was faster, and may have taken what ours failed for want of.
            continue;
        }
        let background = background?;
        let Some(shared) = background.handle().shared else {
            return Err(Error::ReactorGone.into());
        };
        if (Fallback { shared }).publish().is_ok() {
            background.forget();
        }
        // If another was faster after all, ours shuts down with the end of the scope.
    }
}

pub(crate) fn set_fallback(handle: &Handle) -> Result<(), SetFallbackError> {
    let Some(shared) = handle.shared.clone() else {
        return Err(SetFallbackError(()));
    };
    (Fallback { shared })
        .publish()
        .map_err(|_| SetFallbackError(()))
}

//! [`Reactor`]: takes turns.

use crate::backend::{Bell, choice};
use crate::background::Background;
use crate::driver::Driver;
use crate::handle::{Handle, SetFallbackError, Swapped};
use crate::local::LocalReactor;
use crate::metrics::Metrics;
use crate::shared::Shared;
use crate::sync::{Arc, AtomicBool, Ordering};
use std::fmt;
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// What a reactor waits with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// io_uring where the kernel lets us, else epoll, and then why is said once, in a `tracing` event
    /// at WARN. The variable `URING_REACTOR_BACKEND` (`auto`, `uring` or `epoll`)
    /// overrides this choice, and no other.
    #[default]
    Auto,
    /// io_uring, or an error that says what refuses it and what to do.
    Uring,
    /// epoll.
    Epoll,
}

/// Settings for a [`Reactor`].
///
/// ```
/// use uring_reactor::{Backend, Reactor};
///
/// # fn main() -> std::io::Result<()> {
/// let reactor = Reactor::builder().backend(Backend::Epoll).build()?;
/// assert_eq!(reactor.backend(), Backend::Epoll);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Builder {
    backend: Backend,
    spin: Duration,
}

impl Builder {
    /// Chooses the backend. The default is [`Backend::Auto`].
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Builder {
        self.backend = backend;
        self
    }

    /// How long a turn looks for events before it sleeps. The default is zero.
    ///
    /// To put a thread to sleep and to wake it costs the kernel, and in a virtual machine the host, more
    /// than most events do: some ten microseconds. A reactor that looks a little longer serves what
    /// comes meanwhile at once, and threads that register with it or wake it find it awake. It pays
    /// with a processor that is busy when there is nothing to do. Some tens of microseconds are a
    /// sensible value where latency counts.
    ///
    /// On a ring, to look is to read memory; on epoll it is a system call. A turn's timeout includes
    /// the time that it spins.
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> Builder {
        self.spin = spin;
        self
    }

    /// Makes the reactor.
    ///
    /// # Errors
    ///
    /// With [`Backend::Uring`]: an error of kind `Unsupported` or `PermissionDenied` that carries an
    /// [`Error`](crate::Error) and says what refuses io_uring and what to do.
    /// [`Error::UnknownBackend`](crate::Error::UnknownBackend) if the variable
    /// `URING_REACTOR_BACKEND` counts and has no valid value. Whatever the system says when there
    /// are no descriptors or no memory left.
    pub fn build(self) -> io::Result<Reactor> {
        let backend = choice::choose(self.backend)?;
        let shared = Arc::new(Shared::new(Bell::new()?));
        let (backend, kernel) = choice::build(backend, &shared)?;
        let driver = Driver::new(kernel, Arc::clone(&shared), self.spin);
        Ok(Reactor {
            driver: Some(driver),
            shared,
            backend,
        })
    }
}

/// Drives registrations: waits for the kernel, and wakes the tasks whose descriptors are ready.
///
/// Nothing happens on its own. A thread takes turns, with [`turn`](Reactor::turn) in a loop of its
/// own or with [`block_on`](Reactor::block_on); or [`background`](Reactor::background) starts a
/// thread that does.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
/// use uring_reactor::{Reactor, Registration};
///
/// # fn main() -> std::io::Result<()> {
/// let mut reactor = Reactor::new()?;
/// let (ours, theirs) = UnixStream::pair()?;
/// ours.set_nonblocking(true)?;
/// let registration = Registration::new();
/// registration.register_with(&ours, &reactor.handle())?;
///
/// drop(theirs);
/// while !registration.take_read_ready()?.is_some_and(|ready| ready.is_read_closed()) {
///     reactor.turn(Some(Duration::from_secs(1)))?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Threads
///
/// A reactor is `Send`. It may be built on one thread and turned on another, and may move between
/// turns. A ring belongs to the thread that enables it, so a move after the first turn costs a new
/// ring and the arming of every registration anew; no edge is lost. One that will never move is better
/// off as a [`LocalReactor`].
///
/// # Fork
///
/// A child process may use or drop a reactor that it inherited: it gets a ring of its own, and the
/// parent's is not touched. Descriptors that were on their way to be closed at the moment of the
/// fork may stay open in the child. A child that lives without doing either keeps the parent's ring,
/// and the files that it watches, alive.
///
/// # Drop
///
/// Every waiter is woken, and every readiness call of its registrations is answered with
/// [`Error::ReactorGone`](crate::Error::ReactorGone). The drop returns when the kernel has let go of
/// the registered files. With more than a thousand registrations, or on another thread than that of
/// the last turn, that can take some tens of milliseconds; ten seconds, and no more, if another process
/// keeps a ring alive, as a forked child may.
pub struct Reactor {
    /// Taken by the drop only.
    driver: Option<Driver>,
    shared: Arc<Shared>,
    backend: Backend,
}

impl Reactor {
    /// A reactor with [`Backend::Auto`].
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn new() -> io::Result<Reactor> {
        Reactor::builder().build()
    }

    /// Settings for a reactor.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A handle, by which any thread can register with this reactor.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::from_shared(Arc::clone(&self.shared))
    }

    /// One turn: tells the kernel about new and ended registrations, waits until something is
    /// ready, and wakes the tasks concerned.
    ///
    /// Waits at most once, and at most for `timeout`; `None` waits for ever, and `Some(ZERO)` does
    /// not sleep. Returns early, possibly without an event, when [`Handle::wake`] is called, when
    /// another thread deregisters or registers, and on a signal. (A registration for reading alone may
    /// let it sleep on until there is something to read.) On a ring, a turn with a zero timeout and
    /// nothing to do makes no system call.
    ///
    /// A waker that panics is contained, where panics unwind: the panic hook reports it, everybody else is
    /// woken, and the turn goes on.
    ///
    /// # Errors
    ///
    /// When no new ring can be made after a move or a fork, what [`Builder::build`] says then; and whatever
    /// the system says when it cannot wait. Registrations stay as they are; another turn may succeed.
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<Turn> {
        let events = self.driver_mut().turn(timeout, || true)?;
        Ok(Turn { events })
    }

    /// Runs a future to its end, taking turns while it waits. Meanwhile this reactor is the thread's
    /// default, whatever was the default before, and is so again afterwards. It may be nested.
    ///
    /// ```
    /// use uring_reactor::Reactor;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut reactor = Reactor::new()?;
    /// assert_eq!(reactor.block_on(async { 6 * 7 })?, 42);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`turn`](Reactor::turn). The future is dropped then.
    pub fn block_on<F: Future>(&mut self, future: F) -> io::Result<F::Output> {
        let _default = Swapped::new(self.handle());
        let mut future = pin!(future);
        let task = std::sync::Arc::new(Task {
            notified: AtomicBool::new(true),
            shared: Arc::clone(&self.shared),
        });
        let waker = Waker::from(std::sync::Arc::clone(&task));
        let mut cx = Context::from_waker(&waker);
        let pinned = Pinned::new(self.driver_mut());
        loop {
            // Acquire: pairs with `wake_by_ref`.
            if task.notified.swap(false, Ordering::Acquire)
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return Ok(output);
            }
            pinned
                .driver
                .turn(None, || !task.notified.load(Ordering::Relaxed))?;
        }
    }

    /// True if no registration lives: none was made, or all were deregistered, dropped, or refused by the
    /// kernel, and a turn has seen it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.shared.registered() == 0
    }

    /// Makes this the process's fallback: the reactor of every lazy handle on threads that have no
    /// default. It can be set once, before a fallback was needed, and for good: once this reactor is gone,
    /// those handles answer [`Error::ReactorGone`](crate::Error::ReactorGone).
    ///
    /// # Errors
    ///
    /// [`SetFallbackError`] if the process has a fallback.
    pub fn set_fallback(&self) -> Result<(), SetFallbackError> {
        crate::handle::set_fallback(&self.handle())
    }

    /// Moves the reactor to a thread of its own, which takes turns until it is shut down.
    ///
    /// # Errors
    ///
    /// Whatever the system says when it cannot start a thread. The reactor is dropped then.
    pub fn background(self) -> io::Result<Background> {
        Background::new(self)
    }

    /// Keeps the reactor on this thread from now on, for which it takes cheaper turns.
    #[must_use]
    pub fn into_local(self) -> LocalReactor {
        LocalReactor::new(self)
    }

    /// What this reactor waits with: [`Backend::Uring`] or [`Backend::Epoll`], never `Auto`.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The counters, as of now.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn driver_mut(&mut self) -> &mut Driver {
        self.driver
            .as_mut()
            .expect("only the drop takes the driver")
    }
}

impl AsFd for Reactor {
    /// A descriptor that becomes readable when a turn would dispatch an event, and when a turn is
    /// asked for by [`Handle::wake`] or by a registration, so that a reactor can be nested in
    /// another event loop. Level-triggered; a turn makes it unreadable.
    ///
    /// From the next turn on a reactor on a ring keeps its polls in an epoll instance, because a ring
    /// cannot be waited for in this way: it then costs what epoll costs. The first call makes a system
    /// call or two for each registration that there is. If some of these share a descriptor, or are for
    /// priority events, it leaves the reactor's readable until that turn.
    ///
    /// In a child of a fork, take a turn before asking: until then, the descriptor is the parent's, and
    /// whoever waits for it does not hear of what comes here.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.driver
            .as_ref()
            .expect("only the drop takes the driver")
            .descriptor()
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if let Some(driver) = mem::take(&mut self.driver) {
            driver.shut_down();
        }
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("backend", &self.backend)
            .field("registered", &self.shared.registered())
            .finish_non_exhaustive()
    }
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    events: usize,
}

impl Turn {
    /// How many events of registrations were dispatched.
    #[must_use]
    pub fn events(&self) -> usize {
        self.events
    }
}

/// The future of [`Reactor::block_on`].
struct Task {
    notified: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for Task {
    fn wake(self: std::sync::Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &std::sync::Arc<Self>) {
        // Where the reactor is awake it looks at `notified` before it sleeps; a parked one is rung. An
        // exchange, because a store would cover up that of another thread, and the poll to come must
        // see what both have done.
        self.notified.swap(true, Ordering::Release);
        self.shared.nudge();
    }
}

/// A driver that stays on this thread for a while.
struct Pinned<'a> {
    driver: &'a mut Driver,
    /// It did not before.
    newly: bool,
}

impl<'a> Pinned<'a> {
    fn new(driver: &'a mut Driver) -> Pinned<'a> {
        let newly = driver.pin();
        Pinned { driver, newly }
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        if self.newly {
            self.driver.unpin();
        }
    }
}

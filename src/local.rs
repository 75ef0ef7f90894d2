//! [`LocalReactor`]: stays on its thread.

use crate::reactor::{Reactor, Turn};
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// A [`Reactor`] that stays on the thread that made it one, and takes cheaper turns for that.
///
/// Each `io_uring_enter` looks up the ring's descriptor. A table of the thread's own rings spares the
/// kernel that (`IORING_REGISTER_RING_FDS`, Linux 5.18; `io_uring_register(2)`), which makes a turn with
/// one event a tenth cheaper. But no other thread can take a ring out of that table, and as long as it is
/// in there every registered file is held. A [`Reactor`] may leave its thread between any two turns, so it
/// uses the table in [`block_on`](Reactor::block_on) and [`background`](Reactor::background) alone. This
/// one is not `Send`, and uses it for every turn.
///
/// All that a shared reference to a reactor offers is there by `Deref`. Handles and registrations go to
/// any thread, as ever.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
/// use uring_reactor::{Reactor, Registration};
///
/// # fn main() -> std::io::Result<()> {
/// let mut reactor = Reactor::new()?.into_local();
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
/// It stays where it is:
///
/// ```compile_fail,E0277
/// # fn main() -> std::io::Result<()> {
/// let reactor = uring_reactor::Reactor::new()?.into_local();
/// std::thread::spawn(move || drop(reactor));
/// # Ok(())
/// # }
/// ```
///
/// # Limits
///
/// The table has 16 places a thread. Where it is full, or there is none, turns cost what they cost a
/// [`Reactor`]. On epoll nothing differs.
pub struct LocalReactor {
    reactor: Reactor,
    bound_to_thread: PhantomData<*const ()>,
}

impl LocalReactor {
    pub(crate) fn new(mut reactor: Reactor) -> LocalReactor {
        reactor.driver_mut().pin();
        LocalReactor {
            reactor,
            bound_to_thread: PhantomData,
        }
    }

    /// One turn, as [`Reactor::turn`].
    ///
    /// # Errors
    ///
    /// As [`Reactor::turn`].
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<Turn> {
        self.reactor.turn(timeout)
    }

    /// Runs a future to its end, as [`Reactor::block_on`].
    ///
    /// # Errors
    ///
    /// As [`Reactor::block_on`].
    pub fn block_on<F: Future>(&mut self, future: F) -> io::Result<F::Output> {
        self.reactor.block_on(future)
    }
}

impl Deref for LocalReactor {
    type Target = Reactor;

    fn deref(&self) -> &Reactor {
        &self.reactor
    }
}

impl AsFd for LocalReactor {
    /// As [`Reactor::as_fd`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reactor.as_fd()
    }
}

impl fmt::Debug for LocalReactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalReactor").field(&self.reactor).finish()
    }
}

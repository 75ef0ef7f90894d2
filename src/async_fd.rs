//! [`AsyncFd`]: a descriptor and its registration in one.
//!
//! The rooms: [`guard`] is what a task holds that found the descriptor ready, [`wait`] the loop that
//! all input and output goes through, [`close`] the end. [`tcp`], [`udp`] and [`unix`] are the
//! standard library's sockets, made of [`socket`]; `futures_io` and `tokio` the stream traits, made
//! of [`stream`].

mod close;
mod error;
#[cfg(feature = "futures-io")]
mod futures_io;
mod guard;
mod owned;
mod socket;
#[cfg(any(feature = "futures-io", feature = "tokio"))]
mod stream;
mod tcp;
#[cfg(feature = "tokio")]
mod tokio;
mod udp;
mod unix;
mod wait;

pub use self::error::{NewError, WouldBlock};
pub use self::guard::ReadyGuard;

use self::close::Close;
use self::wait::{Waiter, would_block};
use crate::handle::Handle;
use crate::ready::Interest;
use crate::registration::Registration;
use crate::source::Published;
use crate::source::word::Direction;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::task::{Context, Poll, ready};

/// A descriptor with its registration: owned, non-blocking, for any number of tasks.
///
/// Everything that waits takes `&self`, so one `AsyncFd` can be shared (in an `Arc`, or between
/// futures that one task joins). Any number of tasks may await one direction, and all of them make
/// progress.
///
/// ```
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
/// use uring_reactor::{AsyncFd, Interest, Reactor};
///
/// # fn main() -> std::io::Result<()> {
/// let mut reactor = Reactor::new()?;
/// let (ours, mut theirs) = UnixStream::pair()?;
/// let ours = AsyncFd::with_handle(ours, &reactor.handle())?;
///
/// theirs.write_all(b"hello")?;
/// let mut buffer = [0; 8];
/// let n = reactor.block_on(ours.async_io(Interest::READABLE, |mut io| io.read(&mut buffer)))??;
/// assert_eq!(&buffer[..n], b"hello");
/// # Ok(())
/// # }
/// ```
///
/// # Readiness
///
/// What the reactor reports is kept until somebody finds it wrong: I/O that answers `WouldBlock`
/// clears it, and the next task to ask waits for a newer event. [`ReadyGuard::try_io`],
/// [`AsyncFd::try_io`] and [`AsyncFd::async_io`] do so by themselves. An event that arrives between
/// the `WouldBlock` and the clearing is never lost.
///
/// The stream traits also clear it when a std TCP stream moves fewer bytes than it was asked to: then
/// its buffer is empty, or full. A read stops at urgent data, too. Who expects that registers
/// [`Interest::PRIORITY`], and is spared the shortcut.
///
/// [`HUP`](crate::Ready::HUP) and [`READ_CLOSED`](crate::Ready::READ_CLOSED) cannot be cleared. A
/// task whose I/O keeps answering `WouldBlock` in spite of them is made to yield, not to hang.
///
/// I/O that succeeds at once does not wait, and so does not yield. A task whose peer sends as fast as it
/// reads has its thread to itself, unless it yields for the sake of the others.
///
/// # Descriptors
///
/// All constructors but [`new_nonblocking`](AsyncFd::new_nonblocking) set `O_NONBLOCK`, which
/// belongs to the open file: it stays set after [`into_inner`](AsyncFd::into_inner), and whoever has
/// a duplicate of the descriptor has it too.
///
/// `T` is expected to answer [`AsFd::as_fd`] with the same descriptor always, and not to close it
/// while it is in here. If it does, events may be wrong or missing; nothing else breaks.
///
/// The `T` is handed out by shared reference. What reads and writes by a mutable one only, such as
/// [`ChildStdout`](std::process::ChildStdout), is converted first:
/// [`PipeReader`](std::io::PipeReader)`::from(OwnedFd::from(stdout))`.
///
/// Dropping an `AsyncFd` ends the registration, then drops the `T`. The reactor lets go of the file
/// in its next turn, and so the peer sees the end then. [`close`](AsyncFd::close) tells when. Whoever lets
/// go of a socket with `SO_LINGER` last is the one who waits for it, which may be the reactor.
///
/// Threads that register and deregister faster than the reactor's can follow are slowed down, see
/// [`Registration`].
///
/// # Sockets and streams
///
/// The standard library's sockets have `bind`, `connect`, `accept`, `send`, `recv` and so on, for
/// example [`AsyncFd::<TcpListener>::bind`](#method.bind). With the features `futures-io` and
/// `tokio`, every `AsyncFd<T>` where `&T` is [`Read`](std::io::Read) or [`Write`](std::io::Write)
/// has `AsyncRead` or `AsyncWrite` of that crate.
pub struct AsyncFd<T> {
    // Fields are dropped in this order: the end of the registration comes before the descriptor's.
    registration: Registration,
    io: T,
}

// `T` is never pinned: every method hands it out as a plain reference.
impl<T> Unpin for AsyncFd<T> {}

impl<T: AsFd> AsyncFd<T> {
    /// Sets `O_NONBLOCK` and registers with the default reactor: the thread's
    /// ([`set_default`](crate::set_default), [`Reactor::block_on`](crate::Reactor::block_on)), or
    /// else the process's fallback. The interest is `READABLE | WRITABLE`.
    ///
    /// A TCP socket should be registered after `connect` or `listen` was called on it, see
    /// [`Registration`].
    ///
    /// # Errors
    ///
    /// [`Error::ReactorGone`](crate::Error::ReactorGone), what kept the fallback from starting, or
    /// what `fcntl` says. The error holds the `io`; `?` turns it into an [`io::Error`].
    ///
    /// What only the kernel's poll can tell (a regular file cannot be waited for:
    /// `PermissionDenied`) comes with the first wait.
    pub fn new(io: T) -> Result<AsyncFd<T>, NewError<T>> {
        AsyncFd::with_handle(io, &Handle::default())
    }

    /// As [`new`](AsyncFd::new), for a descriptor that is non-blocking already: saves the system
    /// calls that see to it.
    ///
    /// With a blocking descriptor, I/O may block the thread: an event can be reported whose cause
    /// is gone by then.
    ///
    /// # Errors
    ///
    /// As [`new`](AsyncFd::new), but for `fcntl`.
    pub fn new_nonblocking(io: T) -> Result<AsyncFd<T>, NewError<T>> {
        AsyncFd::register(io, default_interest(), &Handle::default())
    }

    /// As [`new`](AsyncFd::new), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As [`new`](AsyncFd::new).
    pub fn with_handle(io: T, handle: &Handle) -> Result<AsyncFd<T>, NewError<T>> {
        AsyncFd::with_handle_and_interest(io, handle, default_interest())
    }

    /// As [`new`](AsyncFd::new), with this interest.
    ///
    /// Waiting for what is not in the interest adds it; asking for less from the start spares the
    /// reactor the events. [`Interest::PRIORITY`] is armed only where it is asked for.
    ///
    /// # Errors
    ///
    /// As [`new`](AsyncFd::new).
    pub fn with_interest(io: T, interest: Interest) -> Result<AsyncFd<T>, NewError<T>> {
        AsyncFd::with_handle_and_interest(io, &Handle::default(), interest)
    }

    /// As [`with_interest`](AsyncFd::with_interest), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As [`new`](AsyncFd::new).
    pub fn with_handle_and_interest(
        io: T,
        handle: &Handle,
        interest: Interest,
    ) -> Result<AsyncFd<T>, NewError<T>> {
        // Registered first: a reactor that is gone leaves the file's flags as they were.
        let registered = AsyncFd::register(io, interest, handle)?;
        match set_nonblocking(&registered.io) {
            Ok(()) => Ok(registered),
            Err(error) => Err(NewError::new(registered.into_inner(), error)),
        }
    }

    /// Registers a descriptor that is non-blocking already.
    fn register(io: T, interest: Interest, handle: &Handle) -> Result<AsyncFd<T>, NewError<T>> {
        let registration = Registration::new();
        match registration.register_interest(&io, interest, handle) {
            Ok(_) => Ok(AsyncFd { registration, io }),
            Err(error) => Err(NewError::new(io, error)),
        }
    }

    /// Ends the registration and closes the descriptor. The future completes when the peer can see
    /// it: a non-blocking read there finds the end, and the port of a listener can be bound again.
    ///
    /// The end of the registration begins with this call, and dropping the future takes nothing
    /// back. It needs the reactor's next turn, for only the reactor makes the kernel let go of the
    /// file. A reactor that is gone has let go of it, and then the future is ready at once.
    ///
    /// The standard library's sockets, pipes (also those of child processes), `File` and `OwnedFd` are closed
    /// by the reactor itself in that turn.
    /// Any other `T` is dropped by the future when the reactor has let go of the file. What that
    /// means to the peer is up to the `T`: one that does not own its descriptor, as
    /// `BorrowedFd<'_>` and `Arc<TcpStream>`, need not close it. Nor does the peer see the end
    /// while there are duplicates of the descriptor.
    ///
    /// ```
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    /// use uring_reactor::{AsyncFd, Reactor};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut reactor = Reactor::new()?;
    /// let (ours, mut theirs) = UnixStream::pair()?;
    /// theirs.set_nonblocking(true)?;
    /// let ours = AsyncFd::with_handle(ours, &reactor.handle())?;
    ///
    /// reactor.block_on(ours.close())??;
    /// assert_eq!(theirs.read(&mut [0])?, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// None today. What `close(2)` answers is not reported: the descriptor is gone in any case.
    pub fn close(self) -> impl Future<Output = io::Result<()>> {
        Close::start(self.registration, self.io)
    }
}

impl<T> AsyncFd<T> {
    /// The `T` in here.
    ///
    /// I/O may be done on it directly, but `WouldBlock` is then to be told to a
    /// [`ReadyGuard`] by hand, or else the next wait does not wait.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Ends the registration and gives the `T` back. It stays non-blocking.
    ///
    /// The reactor lets go of the file in its next turn: if the `T` is closed before that, its peer
    /// sees the end in that turn.
    pub fn into_inner(self) -> T {
        let AsyncFd { registration, io } = self;
        drop(registration);
        io
    }

    /// Waits until reading may make progress: [`ready`](AsyncFd::ready) with
    /// [`Interest::READABLE`].
    ///
    /// # Errors
    ///
    /// As [`ready`](AsyncFd::ready).
    ///
    /// # Cancel safety
    ///
    /// As [`ready`](AsyncFd::ready).
    pub async fn readable(&self) -> io::Result<ReadyGuard<'_, T>> {
        self.ready(Interest::READABLE).await
    }

    /// Waits until writing may make progress: [`ready`](AsyncFd::ready) with
    /// [`Interest::WRITABLE`].
    ///
    /// # Errors
    ///
    /// As [`ready`](AsyncFd::ready).
    ///
    /// # Cancel safety
    ///
    /// As [`ready`](AsyncFd::ready).
    pub async fn writable(&self) -> io::Result<ReadyGuard<'_, T>> {
        self.ready(Interest::WRITABLE).await
    }

    /// Waits until the descriptor is ready for something of `interest`, or has an error, or is
    /// closed in such a direction. (Whoever waits for `PRIORITY` alone hears of a peer that only shuts its
    /// writing side down if `READABLE` is armed as well.)
    ///
    /// The guard that comes out has the readiness to look at and to clear. As long as nobody clears
    /// it, every call returns at once.
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::os::unix::net::UnixStream;
    /// use uring_reactor::{AsyncFd, Reactor};
    ///
    /// async fn read(io: &AsyncFd<UnixStream>, buffer: &mut [u8]) -> std::io::Result<usize> {
    ///     loop {
    ///         let mut guard = io.readable().await?;
    ///         match guard.try_io(|io| io.get_ref().read(buffer)) {
    ///             Ok(outcome) => return outcome,
    ///             Err(_would_block) => continue,
    ///         }
    ///     }
    /// }
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut reactor = Reactor::new()?;
    /// let (ours, mut theirs) = UnixStream::pair()?;
    /// let ours = AsyncFd::with_handle(ours, &reactor.handle())?;
    /// theirs.write_all(b"ping")?;
    /// assert_eq!(reactor.block_on(read(&ours, &mut [0; 8]))??, 4);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ReactorGone`](crate::Error::ReactorGone), or the kernel's verdict on the descriptor:
    /// `PermissionDenied` for a file that cannot be waited for, as a regular one.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped takes no event with it.
    pub async fn ready(&self, interest: Interest) -> io::Result<ReadyGuard<'_, T>> {
        let mut waiter = Waiter::new(self.source(), interest);
        let event = poll_fn(|cx| waiter.poll(cx.waker())).await?;
        Ok(ReadyGuard::new(self, event, interest))
    }

    /// As [`readable`](AsyncFd::readable), for hand-written futures.
    ///
    /// There is room for **one task**: a call with another task's context takes its place, and the
    /// task that was there is woken, so that it can ask again. `AsyncRead` shares this place. The
    /// `async` methods do not.
    ///
    /// # Errors
    ///
    /// As [`ready`](AsyncFd::ready).
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<ReadyGuard<'_, T>>> {
        self.poll_ready(Direction::Read, cx)
    }

    /// As [`writable`](AsyncFd::writable), for hand-written futures.
    ///
    /// There is room for **one task**, as in [`poll_read_ready`](AsyncFd::poll_read_ready).
    /// `AsyncWrite` shares this place.
    ///
    /// # Errors
    ///
    /// As [`ready`](AsyncFd::ready).
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<ReadyGuard<'_, T>>> {
        self.poll_ready(Direction::Write, cx)
    }

    fn poll_ready(
        &self,
        direction: Direction,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<ReadyGuard<'_, T>>> {
        let event = ready!(self.poll_event(direction, cx.waker()))?;
        Poll::Ready(Ok(ReadyGuard::new(self, event, wait::interest(direction))))
    }

    /// Waits for the interest, then calls `io`, until that answers anything but `WouldBlock`.
    ///
    /// `io` is not called before the descriptor was reported ready. It should do one piece of
    /// non-blocking I/O and hand on what that says; a `WouldBlock` that did not come from this
    /// descriptor would make the call wait for an event that may never come.
    ///
    /// ```
    /// use rustix::event::EventfdFlags;
    /// use rustix::io::{read, write};
    /// use uring_reactor::{AsyncFd, Interest, Reactor};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut reactor = Reactor::new()?;
    /// let event_fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    /// let event_fd = AsyncFd::with_handle(event_fd, &reactor.handle())?;
    ///
    /// write(&event_fd, &3u64.to_ne_bytes())?;
    /// let mut count = [0; 8];
    /// reactor.block_on(event_fd.async_io(Interest::READABLE, |fd| Ok(read(fd, &mut count)?)))??;
    /// assert_eq!(u64::from_ne_bytes(count), 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// What `io` says, and as [`ready`](AsyncFd::ready). `Interrupted` is handed on as well.
    ///
    /// With an interest of both directions, one `WouldBlock` clears both, also for tasks that wait for
    /// the other one.
    ///
    /// # Cancel safety
    ///
    /// What `io` has done is never thrown away: a call that did it returns its result without
    /// another chance to be dropped.
    pub async fn async_io<R>(
        &self,
        interest: Interest,
        mut io: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut waiter = Waiter::new(self.source(), interest);
        poll_fn(|cx| waiter.poll_io(cx, || io(&self.io))).await
    }

    /// Calls `io` if the descriptor is known to be ready for something of `interest`.
    ///
    /// A `WouldBlock` from `io` clears the readiness it was called for. This call waits for nothing, and so
    /// adds nothing to the interest: of what is not in it, it will not know.
    ///
    /// # Errors
    ///
    /// What `io` says, and as [`ready`](AsyncFd::ready). `WouldBlock` without calling `io` if the
    /// descriptor is not known to be ready; this call does not make the reactor look.
    pub fn try_io<R>(
        &self,
        interest: Interest,
        io: impl FnOnce(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        let source = self.source();
        let Some(event) = source.peek(interest).transpose()? else {
            return Err(WouldBlock::new().into());
        };
        let outcome = io(&self.io);
        if would_block(&outcome) {
            source.clear(event, event.ready, interest);
        }
        outcome
    }

    fn source(&self) -> Published<'_> {
        self.registration
            .source()
            .expect("every constructor registers")
    }
}

fn default_interest() -> Interest {
    Interest::READABLE | Interest::WRITABLE
}

fn set_nonblocking(io: &impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(io)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(io, flags | OFlags::NONBLOCK)?;
    }
    Ok(())
}

impl<T: AsFd> AsFd for AsyncFd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl<T: AsFd> AsRawFd for AsyncFd<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.io.as_fd().as_raw_fd()
    }
}

/// Names the descriptor. What the `T` has to say is to be asked of [`AsyncFd::get_ref`], so that a `T`
/// need not be `Debug`.
impl<T> fmt::Debug for AsyncFd<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncFd")
            .field("registration", &self.registration)
            .finish_non_exhaustive()
    }
}

//! [`Registration`]: the association of a descriptor with a reactor.
//!
//! # Any number of `register` calls at once
//!
//! Each makes a source of its own and tries to publish it in the one pointer that there is. One
//! succeeds; the others free theirs, which nobody has seen. The winner may be held up right then,
//! before it has announced its source to the reactor. So whoever finds a source published, a late or
//! losing `register` or a poll, announces it unless that was done: by the time any of these returns,
//! somebody has set the bit that says so, and is on the way to the intake. It counts before it is
//! published, so that nobody sees a registration on a reactor that calls itself idle.
//! (`two_registers`, `three_registers`, `two_registers_and_a_poll`,
//! `two_registers_and_a_sleeping_reactor` in `loom-tests/`)

use crate::error::Error;
use crate::handle::Handle;
use crate::ready::{Interest, Ready};
use crate::source::word::Direction;
use crate::source::{Published, Source};
use crate::sync::{Arc, AtomicPtr, Ordering, const_unless_loom};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr;
use std::task::{Context, Poll};

/// Associates a descriptor with a reactor, and answers when it is ready.
///
/// This is the lowest level: two independent, edge-triggered streams of readiness, one for reading
/// and one for writing, each to be followed by one task. [`AsyncFd`](crate::AsyncFd) is the level
/// above, which owns its descriptor and serves any number of tasks.
///
/// ```
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
/// use uring_reactor::{Reactor, Registration};
///
/// # fn main() -> std::io::Result<()> {
/// let mut reactor = Reactor::new()?;
/// let (mut ours, mut theirs) = UnixStream::pair()?;
/// ours.set_nonblocking(true)?;
///
/// let mut registration = Registration::new();
/// registration.register_with(&ours, &reactor.handle())?;
/// theirs.write_all(b"hello")?;
/// let ready = reactor.block_on(std::future::poll_fn(|cx| registration.poll_read_ready(cx)))??;
/// assert!(ready.is_readable());
///
/// let mut buffer = [0; 8];
/// assert_eq!(ours.read(&mut buffer)?, 5);
/// registration.deregister(&ours)?;
/// # Ok(())
/// # }
/// ```
///
/// # Edges
///
/// A readiness call returns the events since the last such call, and consumes them. Do the I/O until
/// it answers `WouldBlock`, then ask again; or ask after every piece of I/O, at some cost: an event
/// that comes later is always reported, also if the descriptor was not drained. An event may be
/// reported whose cause is gone by then, so descriptors should be non-blocking.
///
/// [`HUP`](Ready::HUP), and in the read stream [`READ_CLOSED`](Ready::READ_CLOSED), stay: once
/// reported, they are part of every answer. The write stream carries
/// [`WRITABLE`](Ready::WRITABLE) and what ends it; everything else is in the read stream.
///
/// # Descriptors
///
/// Call [`deregister`](Registration::deregister), or drop the registration, **before** the
/// descriptor is closed. The kernel's poll holds the file: if the descriptor goes first, its peer
/// sees the end only when the registration goes. That is the whole harm.
///
/// A TCP socket should be registered after `connect` or `listen` was called on it. One that is
/// neither reports `HUP`, and that stays.
///
/// # Threads
///
/// All methods that take `&self` may be called from any thread at any time, and none of them waits for
/// another thread or spins, but for the first [`register`](Registration::register) of a process that needs the
/// fallback, which starts a thread. Two tasks that poll one direction take it from each other; the one that is
/// replaced is woken rather than forgotten.
///
/// Ending a registration has a brake. Threads that register and deregister faster than the reactor's can
/// follow, until it is thousands behind, are held up for a millisecond at each end while that lasts, so
/// that the memory of what has ended stays bounded. The reactor's own thread is not.
pub struct Registration {
    /// Null until `register` has published a source; then an `Arc`'s pointer until the drop.
    source: AtomicPtr<Source>,
}

impl Registration {
    const_unless_loom! {
        /// A registration that is not associated with anything yet.
        #[must_use]
        pub fn new() -> Registration {
            Registration {
                source: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    /// Registers with the default reactor: the thread's (inside [`block_on`](crate::Reactor::block_on), or by
    /// [`set_default`](crate::set_default)), or else the process's fallback. The interest is `READABLE | WRITABLE`.
    ///
    /// See [`register_interest`](Registration::register_interest).
    ///
    /// # Errors
    ///
    /// As `register_interest`, and whatever kept the fallback from starting. Such a failure is not
    /// final: the next call tries again.
    pub fn register<T: AsFd + ?Sized>(&self, io: &T) -> io::Result<bool> {
        self.register_with(io, &Handle::default())
    }

    /// Registers with the reactor of `handle`. The interest is `READABLE | WRITABLE`.
    ///
    /// See [`register_interest`](Registration::register_interest).
    ///
    /// # Errors
    ///
    /// As `register_interest`.
    pub fn register_with<T: AsFd + ?Sized>(&self, io: &T, handle: &Handle) -> io::Result<bool> {
        self.register_interest(io, Interest::READABLE | Interest::WRITABLE, handle)
    }

    /// Registers with the reactor of `handle` for the given interest.
    ///
    /// `Ok(true)` if this call made the association, `Ok(false)` if it was made before, also if it
    /// has ended since. Of any number of racing calls exactly one gets `Ok(true)`.
    ///
    /// The descriptor is armed by the next turn. It must be open until then, and so until
    /// [`deregister`](Registration::deregister). A turn that is under way is ended for that, but need
    /// not be if the interest is `READABLE` and there is nothing to read: to wake a thread costs the
    /// caller more than all else. The kernel's verdict on it comes with the readiness
    /// calls: `PermissionDenied` for a file that cannot be polled (a regular file, a directory,
    /// `/dev/null`), `EBADF` for a closed descriptor, `ENOMEM` where the kernel has no memory for it in
    /// several turns, and under epoll also `ENOSPC` (`/proc/sys/fs/epoll/max_user_watches`), and `EMFILE` or
    /// `ENFILE` for a second registration of a descriptor, which takes a duplicate. Polling a direction that is not in the
    /// interest adds it.
    ///
    /// # Errors
    ///
    /// [`Error::ReactorGone`]. The registration is then as it was before the call.
    pub fn register_interest<T: AsFd + ?Sized>(
        &self,
        io: &T,
        interest: Interest,
        handle: &Handle,
    ) -> io::Result<bool> {
        if let Some(source) = self.source() {
            source.announce();
            return Ok(false);
        }
        let io = io.as_fd();
        let fd = io.as_raw_fd();
        let [source, share] = handle.with(|shared| {
            shared.check()?;
            shared.count_up();
            Ok(Source::obtain(fd, interest, shared))
        })?;
        let raw = Arc::into_raw(source).cast_mut();
        // Release: who meets the source finds it made. The loser looks at the other's below.
        let published = self.source.compare_exchange(
            ptr::null_mut(),
            raw,
            Ordering::Release,
            Ordering::Relaxed,
        );
        if published.is_err() {
            // SAFETY: from `into_raw` above, and nobody has seen it.
            let unused = unsafe { Arc::from_raw(raw) };
            if unused.shared().count_down(1) {
                // A reactor that waits to become idle may have counted this one.
                unused.shared().wake();
            }
        }
        if let Some(source) = self.source() {
            if published.is_ok() {
                source.announce_open(share, io);
            } else {
                // The loser announces too, so that nobody has to wait for the winner to be scheduled.
                source.announce();
            }
        }
        if published.is_ok() {
            tracing::debug!(fd, ?interest, "registered");
        }
        Ok(published.is_ok())
    }

    /// Ends the association. No turn that starts after this call has returned notifies anybody
    /// through this registration; tasks that wait in it are woken, once, and every readiness call
    /// from now on answers [`Error::Deregistered`].
    ///
    /// The kernel lets go of the file in the reactor's next turn, and a sleeping reactor is woken
    /// for it; of thousands that end at once, in the next few turns. Until then the peer of a closed
    /// descriptor does not see the end.
    ///
    /// `Ok` without effect if nothing was ever registered, or if this descriptor was deregistered before.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDescriptor`] if `io` has another descriptor than the one that was registered.
    pub fn deregister<T: AsFd + ?Sized>(&mut self, io: &T) -> io::Result<()> {
        let Some(source) = self.source() else {
            return Ok(());
        };
        let io = io.as_fd();
        if source.fd() != io.as_raw_fd() {
            return Err(Error::WrongDescriptor.into());
        }
        source.withdraw(io);
        source.deregister(None);
        Ok(())
    }

    /// As [`deregister`](Registration::deregister), and the reactor closes the descriptor as well:
    /// in the batch of its next turn, without a system call of its own on a ring. The peer sees the
    /// end when that turn has run, or a few turns later if thousands are closed at once.
    ///
    /// A descriptor that was never registered, or was deregistered before, is closed here and now.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDescriptor`] if this is another descriptor than the one that was registered. It
    /// is closed all the same, for it was given away; the registration stays as it is.
    pub fn deregister_and_close(&mut self, io: impl Into<OwnedFd>) -> io::Result<()> {
        let io = io.into();
        let Some(source) = self.source() else {
            return Ok(());
        };
        if source.fd() != io.as_raw_fd() {
            return Err(Error::WrongDescriptor.into());
        }
        if source.is_closing() {
            return Ok(());
        }
        source.deregister(Some(io));
        Ok(())
    }

    /// The events of the read stream since the last call, or `Pending`, and the task is woken at
    /// the next event.
    ///
    /// Everything but `WRITABLE` is in this stream. If neither `READABLE` nor `PRIORITY` is in the
    /// interest, `READABLE` is added to it.
    ///
    /// # Errors
    ///
    /// [`Error::NotRegistered`], [`Error::Deregistered`], [`Error::ReactorGone`], or the kernel's
    /// verdict on the descriptor, which stays.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.poll_ready(Direction::Read, cx)
    }

    /// The events of the read stream since the last call, if there are any. Never leaves a waker.
    ///
    /// # Errors
    ///
    /// As [`poll_read_ready`](Registration::poll_read_ready).
    pub fn take_read_ready(&self) -> io::Result<Option<Ready>> {
        self.take_ready(Direction::Read)
    }

    /// The events of the write stream since the last call, or `Pending`, and the task is woken at
    /// the next event.
    ///
    /// The stream carries `WRITABLE`, and what ends writing: `WRITE_CLOSED`, `HUP`, `ERROR`. If
    /// `WRITABLE` is not in the interest, it is added.
    ///
    /// # Errors
    ///
    /// As [`poll_read_ready`](Registration::poll_read_ready).
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.poll_ready(Direction::Write, cx)
    }

    /// The events of the write stream since the last call, if there are any. Never leaves a waker.
    ///
    /// # Errors
    ///
    /// As [`poll_read_ready`](Registration::poll_read_ready).
    pub fn take_write_ready(&self) -> io::Result<Option<Ready>> {
        self.take_ready(Direction::Write)
    }

    fn poll_ready(&self, direction: Direction, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        match self.source() {
            Some(source) => source.poll(direction, cx.waker()),
            None => Poll::Ready(Err(Error::NotRegistered.into())),
        }
    }

    fn take_ready(&self, direction: Direction) -> io::Result<Option<Ready>> {
        match self.source() {
            Some(source) => source.take(direction).transpose(),
            None => Err(Error::NotRegistered.into()),
        }
    }

    /// The published source.
    pub(crate) fn source(&self) -> Option<Published<'_>> {
        let raw = self.source.load(Ordering::Acquire);
        if raw.is_null() {
            return None;
        }
        // SAFETY: published by `register`, with a strong count that only our drop gives back; the
        // result borrows us.
        Some(unsafe { Published::from_raw(raw) })
    }
}

// What a panic may interrupt is single atomic steps.
impl UnwindSafe for Registration {}
impl RefUnwindSafe for Registration {}

impl Default for Registration {
    fn default() -> Registration {
        Registration::new()
    }
}

impl Drop for Registration {
    /// Deregisters.
    fn drop(&mut self) {
        // Relaxed: nobody else has us any more.
        let raw = self.source.load(Ordering::Relaxed);
        if raw.is_null() {
            return;
        }
        if let Some(source) = self.source()
            && !source.is_closing()
        {
            source.deregister(None);
        }
        // SAFETY: published by `register`, with the strong count that we now give back.
        drop(unsafe { Arc::from_raw(raw) });
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Registration");
        match self.source() {
            Some(source) => debug.field("fd", &source.fd()),
            None => debug.field("fd", &None::<i32>),
        };
        debug.finish_non_exhaustive()
    }
}

//! Waiting, and the loop that all input and output goes through.
//!
//! A descriptor has one place a direction for a task that polls ([`AsyncFd::poll_io`], for the
//! stream traits), and a list for any number that await ([`Waiter`], for everything that is `async`).
//! What happens once the descriptor is ready is the same for both: [`poll_io`].

use super::AsyncFd;
#[cfg(any(feature = "futures-io", feature = "tokio"))]
use super::owned::is_tcp_stream;
use crate::ready::{Interest, Ready};
use crate::source::word::Direction;
use crate::source::{Event, Published, Source};
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker, ready};

/// How often in a row readiness may prove wrong before the task yields.
///
/// Once is a stale event, and by then the wait has begun again. More often is a descriptor that
/// hangs up for good and yet has nothing to say (a terminal or a FIFO between two peers): its
/// readiness cannot be cleared, and the executor's other tasks must not pay for it.
const ATTEMPTS: u32 = 3;

/// What to wait for before I/O in this direction.
pub(super) fn interest(direction: Direction) -> Interest {
    match direction {
        Direction::Read => Interest::READABLE,
        Direction::Write => Interest::WRITABLE,
    }
}

pub(super) fn would_block<R>(outcome: &io::Result<R>) -> bool {
    matches!(outcome, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Waits, calls `io`, and waits again while that answers `WouldBlock`. An outcome of which `is_last`
/// says that the next call would answer so clears the readiness, too.
fn poll_io<R>(
    source: &Source,
    interest: Interest,
    cx: &mut Context<'_>,
    mut poll_event: impl FnMut(&Waker) -> Poll<io::Result<Event>>,
    mut io: impl FnMut() -> io::Result<R>,
    is_last: impl Fn(&R) -> bool,
) -> Poll<io::Result<R>> {
    for _ in 0..ATTEMPTS {
        let event = ready!(poll_event(cx.waker()))?;
        let outcome = io();
        if !would_block(&outcome) {
            if outcome.as_ref().is_ok_and(&is_last) {
                source.clear(event, Ready::READABLE | Ready::WRITABLE, interest);
            }
            return Poll::Ready(outcome);
        }
        source.clear(event, event.ready, interest);
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Calls `io` again for as long as a signal keeps it from doing anything.
pub(super) fn uninterrupted<R>(mut io: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    loop {
        match io() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// One of any number of tasks that await the descriptor. Gives up its place when dropped.
pub(super) struct Waiter<'a> {
    source: Published<'a>,
    interest: Interest,
    place: Option<usize>,
}

impl<'a> Waiter<'a> {
    pub(super) fn new(source: Published<'a>, interest: Interest) -> Waiter<'a> {
        Waiter {
            source,
            interest,
            place: None,
        }
    }

    pub(super) fn poll(&mut self, waker: &Waker) -> Poll<io::Result<Event>> {
        poll_shared(&self.source, self.interest, &mut self.place, waker)
    }

    pub(super) fn poll_io<R>(
        &mut self,
        cx: &mut Context<'_>,
        io: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let Waiter {
            source,
            interest,
            place,
        } = self;
        let poll_event = |waker: &Waker| poll_shared(source, *interest, place, waker);
        poll_io(source, *interest, cx, poll_event, io, |_| false)
    }
}

fn poll_shared(
    source: &Published<'_>,
    interest: Interest,
    place: &mut Option<usize>,
    waker: &Waker,
) -> Poll<io::Result<Event>> {
    let event = source.poll_shared(interest, place, waker);
    if event.is_pending() {
        // The wait alone sees to it that its direction is armed; this, that it is for these bits.
        source.add_interest(interest);
    }
    event
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.source.leave(&mut self.place);
    }
}

impl<T> AsyncFd<T> {
    /// The event that a task which polls this direction waits for.
    pub(super) fn poll_event(
        &self,
        direction: Direction,
        waker: &Waker,
    ) -> Poll<io::Result<Event>> {
        let source = self.source();
        let event = source.poll_event(direction, interest(direction), waker);
        if event.is_pending() {
            source.add_interest(interest(direction));
        }
        event
    }

    /// Does `io` when the descriptor is ready for this direction, for the one task that polls it.
    #[cfg(any(feature = "futures-io", feature = "tokio"))]
    pub(super) fn poll_io<R>(
        &self,
        direction: Direction,
        cx: &mut Context<'_>,
        io: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        self.poll_until(direction, cx, io, |_| false)
    }

    /// As [`poll_io`](AsyncFd::poll_io), for `io` that moves up to `length` bytes and returns how many.
    ///
    /// A TCP socket that moved fewer has no more: its buffer is empty, or full, and what changes that
    /// is a new event. That spares the call that would only be told to wait. Of other files it is not
    /// true (a terminal gives a line a time, and a `T` may have a buffer of its own); nor of a socket
    /// with urgent data, at which a read stops, and whose user waits for that.
    #[cfg(any(feature = "futures-io", feature = "tokio"))]
    pub(super) fn poll_transfer(
        &self,
        direction: Direction,
        cx: &mut Context<'_>,
        length: usize,
        io: impl FnMut(&T) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let whole = is_tcp_stream::<T>() && !self.source().has_interest(Interest::PRIORITY);
        self.poll_until(direction, cx, io, |&moved| {
            whole && 0 < moved && moved < length
        })
    }

    #[cfg(any(feature = "futures-io", feature = "tokio"))]
    fn poll_until<R>(
        &self,
        direction: Direction,
        cx: &mut Context<'_>,
        mut io: impl FnMut(&T) -> io::Result<R>,
        is_last: impl Fn(&R) -> bool,
    ) -> Poll<io::Result<R>> {
        poll_io(
            &self.source(),
            interest(direction),
            cx,
            |waker| self.poll_event(direction, waker),
            || uninterrupted(|| io(self.get_ref())),
            is_last,
        )
    }

    /// Does `io` when the descriptor is ready for this direction, beside any number of others.
    pub(super) async fn operate<R>(
        &self,
        direction: Direction,
        mut io: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut waiter = Waiter::new(self.source(), interest(direction));
        poll_fn(|cx| waiter.poll_io(cx, || uninterrupted(|| io(self.get_ref())))).await
    }
}

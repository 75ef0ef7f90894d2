//! [`ReadyGuard`]: what a task holds that found the descriptor ready.

use super::wait::would_block;
use super::{AsyncFd, WouldBlock};
use crate::ready::{Interest, Ready};
use crate::source::Event;
use std::fmt;
use std::io;

/// What clearing leaves: a peer that has closed does not come back.
fn permanent() -> Ready {
    Ready::HUP | Ready::READ_CLOSED | Ready::WRITE_CLOSED
}

/// The readiness that a wait came back with, from [`AsyncFd::ready`] and its kin.
///
/// The readiness stays until a guard clears it. A guard that is dropped has cleared nothing by
/// that. Whoever meets `WouldBlock` has to clear it, or the next wait returns at once; the best way
/// is [`try_io`](ReadyGuard::try_io), which does both.
///
/// Any number of guards of one `AsyncFd` may be held at a time. A guard clears only what it has
/// seen: if a newer event has come in since, clearing does nothing and the next wait returns at
/// once.
#[must_use = "a guard that clears nothing leaves the readiness in place"]
pub struct ReadyGuard<'a, T> {
    async_fd: &'a AsyncFd<T>,
    event: Event,
    interest: Interest,
}

impl<'a, T> ReadyGuard<'a, T> {
    pub(super) fn new(
        async_fd: &'a AsyncFd<T>,
        event: Event,
        interest: Interest,
    ) -> ReadyGuard<'a, T> {
        ReadyGuard {
            async_fd,
            event,
            interest,
        }
    }

    /// What the descriptor was ready for, without what this guard has cleared since.
    #[must_use]
    pub fn ready(&self) -> Ready {
        self.event.ready
    }

    /// Calls `io`, and if that answers `WouldBlock` clears the readiness.
    ///
    /// With a guard for more than one direction, all of its readiness is cleared. Where the I/O
    /// concerns only one of them, call it by hand and clear that one with
    /// [`clear_ready_matching`](ReadyGuard::clear_ready_matching).
    ///
    /// See [`AsyncFd::ready`] for an example.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] on the outside: time to wait again. Anything else that `io` says is on the
    /// inside.
    pub fn try_io<R>(
        &mut self,
        io: impl FnOnce(&'a AsyncFd<T>) -> io::Result<R>,
    ) -> Result<io::Result<R>, WouldBlock> {
        let outcome = io(self.async_fd);
        if would_block(&outcome) {
            self.clear_ready();
            return Err(WouldBlock::new());
        }
        Ok(outcome)
    }

    /// Clears all the readiness that this guard has seen, but for [`HUP`](Ready::HUP),
    /// [`READ_CLOSED`](Ready::READ_CLOSED) and [`WRITE_CLOSED`](Ready::WRITE_CLOSED), which stay.
    ///
    /// To be called only after I/O that answered `WouldBlock`: there is no other sign of the same
    /// event.
    pub fn clear_ready(&mut self) {
        self.clear_ready_matching(Ready::ALL);
    }

    /// As [`clear_ready`](ReadyGuard::clear_ready), for these bits only.
    ///
    /// [`ERROR`](Ready::ERROR) is cleared in the directions of the guard's interest.
    pub fn clear_ready_matching(&mut self, ready: Ready) {
        self.async_fd
            .source()
            .clear(self.event, ready, self.interest);
        self.event.ready -= ready - permanent();
    }

    /// Leaves the readiness in place, as dropping the guard does. For the reader's sake.
    pub fn retain_ready(&mut self) {}

    /// The `AsyncFd` that was waited for.
    #[must_use]
    pub fn get_ref(&self) -> &'a AsyncFd<T> {
        self.async_fd
    }

    /// The `T` in it.
    #[must_use]
    pub fn get_inner(&self) -> &'a T {
        self.async_fd.get_ref()
    }
}

impl<T> fmt::Debug for ReadyGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyGuard")
            .field("ready", &self.ready())
            .field("interest", &self.interest)
            .finish_non_exhaustive()
    }
}

//! What the stream traits of futures-io and tokio have in common.

use super::AsyncFd;
use super::wait::{uninterrupted, would_block};
use crate::source::word::Direction;
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

/// Slices that one call takes (`IOV_MAX`, see `readv(2)`), as std knows.
const MOST_SLICES: usize = 1024;

/// How many bytes one call can move, by the lengths of the slices that it is given.
pub(super) fn capacity(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.take(MOST_SLICES).fold(0, usize::saturating_add)
}

impl<T: AsFd> AsyncFd<T>
where
    for<'a> &'a T: Write,
{
    /// Flushes what `T` itself holds back. For a bare descriptor that is nothing, and so it is tried
    /// before it is waited for.
    pub(super) fn poll_flush_io(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = uninterrupted(|| self.get_ref().flush());
        if would_block(&outcome) {
            self.poll_io(Direction::Write, cx, |mut io| io.flush())
        } else {
            Poll::Ready(outcome)
        }
    }

    /// Flushes, and tells the peer of a connected socket that there is no more to come.
    pub(super) fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush_io(cx))?;
        Poll::Ready(match shutdown(self, Shutdown::Write) {
            // Not a socket, not connected (any more), or of a family that cannot half-close: there
            // is nobody to tell.
            Ok(()) | Err(Errno::NOTSOCK | Errno::NOTCONN | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }
}

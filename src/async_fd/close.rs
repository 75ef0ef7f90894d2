//! [`Close`]: the end of an `AsyncFd` whose peer is to see it.
//!
//! An armed poll holds the file, so closing the descriptor is not enough: the peer sees the end when
//! the descriptor is closed *and* the kernel has let go of the poll. Where the type of the resource
//! says that it is nothing but an owned descriptor, the reactor does both in one batch. Any other is
//! dropped here, after the second.

use super::owned::into_owned_fd;
use crate::registration::Registration;
use crate::source::Source;
use crate::sync::Arc;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Waits until the peer can see the end.
pub(super) struct Close<T> {
    source: Arc<Source>,
    /// To be dropped at the end, unless the reactor has its descriptor.
    io: Option<T>,
}

// `io` is never pinned.
impl<T> Unpin for Close<T> {}

impl<T> Close<T> {
    pub(super) fn start(registration: Registration, io: T) -> Close<T> {
        let published = registration.source().expect("every constructor registers");
        let source = Arc::clone(&published);
        let io = match into_owned_fd(io) {
            Ok(fd) => {
                published.deregister(Some(fd));
                None
            }
            Err(io) => {
                published.deregister(None);
                Some(io)
            }
        };
        Close { source, io }
    }
}

impl<T> Future for Close<T> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.source.poll_released(cx.waker()));
        drop(self.io.take());
        Poll::Ready(Ok(()))
    }
}

//! Who is compared, with tasks: a reactor with an executor on one thread, behind one trait.
//!
//! Each is set up as its documentation shows, and its streams do the same: try when the descriptor
//! was reported ready, and after a read that filled less than the buffer take it for drained. tokio
//! does the latter by itself; with ours it is the guard's `clear_ready`. async-io tries first.

mod async_io;
mod ours;
mod tokio;

use crate::measure::Contender;
use crate::server::Control;
use crate::services::Service;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::task::{Context, Poll};
use uring_reactor::Backend;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// `AsyncFd` with async-executor.
    Ours,
    OursOnEpoll,
    /// Current-thread.
    Tokio,
    /// `Async` with async-executor.
    AsyncIo,
}

/// Everybody but ours.
pub(crate) const PEERS: [Runtime; 3] = [Runtime::Tokio, Runtime::AsyncIo, Runtime::OursOnEpoll];

impl Contender for Runtime {
    const OURS: Runtime = Runtime::Ours;

    fn name(self) -> &'static str {
        match self {
            Runtime::Ours => "uring-reactor",
            Runtime::OursOnEpoll => "own epoll backend",
            Runtime::Tokio => "tokio",
            Runtime::AsyncIo => "async-io",
        }
    }

    fn is_limit(self) -> bool {
        false
    }
}

/// Room for what is read.
pub(crate) type Spare = [MaybeUninit<u8>];

/// A connection, in poll style: what both `async` code and hyper can be served with.
pub(crate) trait Stream: Send + Unpin + 'static {
    /// How many bytes were put at the start of `buffer`.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Spare) -> Poll<io::Result<usize>>;
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Closes it in the way that is best here.
    fn close(self) -> impl Future<Output = ()> + Send;
}

impl Runtime {
    /// Serves until the control says that it is over.
    pub(crate) fn serve(self, listener: TcpListener, service: impl Service, control: &Control) {
        match self {
            Runtime::Ours => ours::serve(Backend::Uring, listener, service, control),
            Runtime::OursOnEpoll => ours::serve(Backend::Epoll, listener, service, control),
            Runtime::Tokio => tokio::serve(listener, service, control),
            Runtime::AsyncIo => async_io::serve(listener, service, control),
        }
    }

    pub(crate) fn block_on<F: Future>(self, future: F) -> F::Output {
        match self {
            Runtime::Ours => ours::block_on(Backend::Uring, future),
            Runtime::OursOnEpoll => ours::block_on(Backend::Epoll, future),
            Runtime::Tokio => tokio::runtime().block_on(future),
            Runtime::AsyncIo => ::async_io::block_on(future),
        }
    }
}

//! `AsyncFd` on a reactor, with async-executor's local executor.

use super::{Spare, Stream};
use crate::server::Control;
use crate::services::Service;
use async_executor::LocalExecutor;
use socket2::SockRef;
use std::future::Future;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::task::{Context, Poll, ready};
use uring_reactor::{AsyncFd, Backend, Reactor};

/// Runs a future on a reactor of its own.
pub(super) fn block_on<F: Future>(backend: Backend, future: F) -> F::Output {
    let reactor = Reactor::builder().backend(backend).build();
    let mut reactor = reactor.expect("this system has the backend").into_local();
    reactor.block_on(future).expect("a turn works")
}

pub(super) fn serve(
    backend: Backend,
    listener: TcpListener,
    service: impl Service,
    control: &Control,
) {
    let executor = LocalExecutor::new();
    let served = executor.run(async {
        let listener = AsyncFd::new(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            if control.is_stopped() {
                return io::Result::Ok(());
            }
            executor.spawn(service.serve(stream)).detach();
        }
    });
    block_on(backend, served).expect("connections can be accepted");
}

impl Stream for AsyncFd<TcpStream> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Spare) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|stream| SockRef::from(stream.get_ref()).recv(buffer))
            {
                if matches!(result, Ok(count) if 0 < count && count < buffer.len()) {
                    // That was all: what comes later is a new event. The end of the stream is
                    // remembered whatever is cleared.
                    guard.clear_ready();
                }
                return Poll::Ready(result);
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|stream| stream.get_ref().write(bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    /// In the batch of the next turn.
    async fn close(self) {
        let _ = AsyncFd::close(self).await;
    }
}

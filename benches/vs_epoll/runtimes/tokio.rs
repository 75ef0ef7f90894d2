//! tokio's current-thread runtime and `TcpStream`.

use super::{Spare, Stream};
use crate::server::Control;
use crate::services::Service;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

pub(super) fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("an epoll instance can be made")
}

pub(super) fn serve(listener: std::net::TcpListener, service: impl Service, control: &Control) {
    let served = runtime().block_on(async {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            if control.is_stopped() {
                return io::Result::Ok(());
            }
            tokio::spawn(service.serve(stream));
        }
    });
    served.expect("connections can be accepted");
}

impl Stream for TcpStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Spare) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::uninit(buffer);
        ready!(AsyncRead::poll_read(Pin::new(self), cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(self), cx, bytes)
    }

    async fn close(self) {}
}

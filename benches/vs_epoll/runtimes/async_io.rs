//! async-io's `Async`, with async-executor's local executor.

use super::{Spare, Stream};
use crate::server::Control;
use crate::services::Service;
use async_executor::LocalExecutor;
use async_io::Async;
use socket2::SockRef;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::task::{Context, Poll, ready};

pub(super) fn serve(listener: TcpListener, service: impl Service, control: &Control) {
    let executor = LocalExecutor::new();
    let served = async_io::block_on(executor.run(async {
        let listener = Async::new(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            if control.is_stopped() {
                return io::Result::Ok(());
            }
            executor.spawn(service.serve(stream)).detach();
        }
    }));
    served.expect("connections can be accepted");
}

impl Stream for Async<TcpStream> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Spare) -> Poll<io::Result<usize>> {
        // As its own `AsyncRead` does.
        loop {
            match SockRef::from(self.get_ref()).recv(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_readable(cx))?;
                }
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.get_ref().write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_writable(cx))?;
                }
                result => return Poll::Ready(result),
            }
        }
    }

    async fn close(self) {}
}

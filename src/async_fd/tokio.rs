//! `AsyncRead` and `AsyncWrite` of tokio.

use super::AsyncFd;
use super::owned::is_owned_fd;
use super::stream::capacity;
use crate::source::word::Direction;
use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use std::io::{IoSlice, Read, Result, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

/// One task may read at a time, see [`AsyncFd::poll_read_ready`].
impl<T: AsFd> AsyncRead for AsyncFd<T>
where
    for<'a> &'a T: Read,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let length = buffer.remaining();
        self.poll_transfer(Direction::Read, cx, length, |io| read(io, buffer))
            .map_ok(drop)
    }
}

fn read<T: AsFd>(mut io: &T, buffer: &mut ReadBuf<'_>) -> Result<usize>
where
    for<'a> &'a T: Read,
{
    let n = if is_owned_fd::<T>() {
        // What reading these types is, and the kernel only writes to the memory.
        // SAFETY: nothing is made uninitialized: `read` gives out what it has initialized, and
        // leaves the rest alone.
        let room = unsafe { buffer.unfilled_mut() };
        let n = rustix::io::read(io, room)?.0.len();
        // SAFETY: `read` has initialized that many bytes from the start.
        unsafe { buffer.assume_init(n) };
        n
    } else {
        io.read(buffer.initialize_unfilled())?
    };
    buffer.advance(n);
    Ok(n)
}

/// One task may write at a time, see [`AsyncFd::poll_write_ready`]. Shutting down flushes, and sends
/// FIN on a connected socket; elsewhere that is all it does. The descriptor stays open in any case.
impl<T: AsFd> AsyncWrite for AsyncFd<T>
where
    for<'a> &'a T: Write,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<Result<usize>> {
        self.poll_transfer(Direction::Write, cx, buffer.len(), |mut io| {
            io.write(buffer)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let length = capacity(buffers.iter().map(|buffer| buffer.len()));
        self.poll_transfer(Direction::Write, cx, length, |mut io| {
            io.write_vectored(buffers)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_flush_io(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_finish(cx)
    }
}

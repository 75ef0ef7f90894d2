//! `AsyncRead` and `AsyncWrite` of futures-io.

use super::AsyncFd;
use super::stream::capacity;
use crate::source::word::Direction;
use ::futures_io::{AsyncRead, AsyncWrite};
use std::io::{IoSlice, IoSliceMut, Read, Result, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

/// One task may read at a time, see [`AsyncFd::poll_read_ready`].
impl<T: AsFd> AsyncRead for &AsyncFd<T>
where
    for<'a> &'a T: Read,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize>> {
        let length = buffer.len();
        self.poll_transfer(Direction::Read, cx, length, |mut io| io.read(buffer))
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<Result<usize>> {
        let length = capacity(buffers.iter().map(|buffer| buffer.len()));
        self.poll_transfer(Direction::Read, cx, length, |mut io| {
            io.read_vectored(buffers)
        })
    }
}

/// One task may write at a time, see [`AsyncFd::poll_write_ready`]. Closing flushes, and sends FIN
/// on a connected socket; elsewhere that is all it does. The descriptor stays open in any case.
impl<T: AsFd> AsyncWrite for &AsyncFd<T>
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

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_flush_io(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_finish(cx)
    }
}

/// One task may read at a time, see [`AsyncFd::poll_read_ready`].
impl<T: AsFd> AsyncRead for AsyncFd<T>
where
    for<'a> &'a T: Read,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut &*self).poll_read(cx, buffer)
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut &*self).poll_read_vectored(cx, buffers)
    }
}

/// One task may write at a time, see [`AsyncFd::poll_write_ready`]. Closing flushes, and sends FIN
/// on a connected socket; elsewhere that is all it does. The descriptor stays open in any case.
impl<T: AsFd> AsyncWrite for AsyncFd<T>
where
    for<'a> &'a T: Write,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut &*self).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut &*self).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut &*self).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut &*self).poll_close(cx)
    }
}

//! `AsyncRead` and `AsyncWrite` of futures-io and of tokio: the same tests for both.

#![cfg(all(feature = "futures-io", feature = "tokio"))]

mod common;

use common::descriptors::*;
use common::*;
use futures_lite::future::zip;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll};
use uring_reactor::{AsyncFd, Interest, Reactor};

fn async_fd<T: AsFd>(io: T, reactor: &Reactor) -> AsyncFd<T> {
    AsyncFd::with_handle(io, &reactor.handle()).unwrap()
}

/// What both families can do, so that one test serves them. Reading keeps to the slice it is given.
trait Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    fn read(&mut self, buffer: &mut [u8]) -> impl Future<Output = io::Result<usize>> {
        poll_fn(|cx| self.poll_read(cx, buffer))
    }

    fn write(&mut self, data: &[u8]) -> impl Future<Output = io::Result<usize>> {
        poll_fn(|cx| self.poll_write(cx, data))
    }

    async fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = [0; 4000];
        loop {
            match self.read(&mut buffer).await? {
                0 => return Ok(all),
                n => all.extend_from_slice(&buffer[..n]),
            }
        }
    }

    async fn write_all(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let n = self.write(data).await?;
            data = &data[n..];
        }
        Ok(())
    }

    fn close(&mut self) -> impl Future<Output = io::Result<()>> {
        poll_fn(|cx| self.poll_close(cx))
    }
}

struct Futures<S>(S);

impl<S> Stream for Futures<S>
where
    S: futures_io::AsyncRead + futures_io::AsyncWrite + Unpin,
{
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

struct Tokio<S>(S);

impl<S> Stream for Tokio<S>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = tokio::io::ReadBuf::new(buffer);
        Pin::new(&mut self.0)
            .poll_read(cx, &mut buffer)
            .map_ok(|()| buffer.filled().len())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        assert!(self.0.is_write_vectored());
        Pin::new(&mut self.0).poll_write_vectored(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Runs a test for the owner with futures-io, a reference to it with futures-io, and the owner with
/// tokio. `$make` makes a fresh one each time, beside whatever else the test needs.
macro_rules! with_every_stream {
    ($make:expr, |$stream:ident, $rest:pat_param| $body:block) => {{
        let (io, $rest) = $make;
        let mut $stream = Futures(io);
        $body
    }
    {
        let (io, $rest) = $make;
        let mut $stream = Futures(&io);
        $body
    }
    {
        let (io, $rest) = $make;
        let mut $stream = Tokio(io);
        $body
    }};
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 / 7) as u8).collect()
}

/// A type of one's own: it collects what is written until it is flushed.
struct Buffered {
    stream: UnixStream,
    pending: Mutex<Vec<u8>>,
}

impl AsFd for Buffered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for &Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buffer)
    }
}

impl Write for &Buffered {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.pending.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut pending = self.pending.lock().unwrap();
        while !pending.is_empty() {
            let n = (&self.stream).write(&pending)?;
            pending.drain(..n);
        }
        Ok(())
    }
}

/// A stream whose every other call is interrupted by a signal.
struct Interrupted {
    stream: UnixStream,
    interrupt: Mutex<bool>,
}

impl Interrupted {
    fn pass(&self) -> io::Result<()> {
        let mut interrupt = self.interrupt.lock().unwrap();
        *interrupt = !*interrupt;
        if *interrupt {
            Err(ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    }
}

impl AsFd for Interrupted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for &Interrupted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pass()?;
        (&self.stream).read(buffer)
    }
}

impl Write for &Interrupted {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.pass()?;
        (&self.stream).write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass()
    }
}

both_backends! {
    fn a_stream_carries_more_than_fits_its_buffers_both_ways(backend: Backend) {
        let mut reactor = reactor(backend);
        let data = pattern(3_000_000);
        with_every_stream!({
            let (ours, theirs) = tcp_pair();
            (async_fd(ours, &reactor), async_fd(theirs, &reactor))
        }, |ours, theirs| {
            let mut theirs = Tokio(theirs);
            reactor.block_on(async {
                let send = async {
                    ours.write_all(&data).await.unwrap();
                    ours.close().await.unwrap();
                };
                let ((), received) = zip(send, theirs.read_to_end()).await;
                assert!(received.unwrap() == data);
                let send = async {
                    theirs.write_all(&data).await.unwrap();
                    theirs.close().await.unwrap();
                };
                let ((), received) = zip(send, ours.read_to_end()).await;
                assert!(received.unwrap() == data);
            }).unwrap();
        });
    }

    fn one_owner_is_read_and_written_at_the_same_time(backend: Backend) {
        let mut reactor = reactor(backend);
        let data = pattern(1_000_000);
        let (ours, theirs) = unix_pair();
        let (ours, theirs) = (async_fd(ours, &reactor), async_fd(theirs, &reactor));
        reactor.block_on(async {
            let send = |io| {
                let data = &data;
                async move {
                    let mut io = Futures(io);
                    io.write_all(data).await.unwrap();
                    io.close().await.unwrap();
                }
            };
            let receive = |io| async move { Futures(io).read_to_end().await.unwrap() };
            let sent = zip(send(&ours), send(&theirs));
            let received = zip(receive(&ours), receive(&theirs));
            let (_, (one, other)) = zip(sent, received).await;
            assert!(one == data && other == data);
        }).unwrap();
    }

    fn reading_waits_for_data_and_meets_the_end(backend: Backend) {
        let mut reactor = reactor(backend);
        with_every_stream!({
            let (ours, theirs) = unix_pair();
            (async_fd(ours, &reactor), theirs)
        }, |ours, theirs| {
            let mut buffer = [0; 8];
            {
                let mut read = pin!(ours.read(&mut buffer));
                assert!(poll_once(read.as_mut()).is_pending());
                settle(&mut reactor);
                assert!(poll_once(read.as_mut()).is_pending());
                put(&theirs, b"hello");
                assert_eq!(reactor.block_on(read).unwrap().unwrap(), 5);
            }
            assert_eq!(&buffer[..5], b"hello");
            drop(theirs);
            for _ in 0..2 {
                assert_eq!(reactor.block_on(ours.read(&mut buffer)).unwrap().unwrap(), 0);
            }
        });
    }

    fn data_that_is_read_in_pieces_is_read_without_waiting(backend: Backend) {
        let mut reactor = reactor(backend);
        with_every_stream!({
            let (ours, theirs) = unix_pair();
            (async_fd(ours, &reactor), theirs)
        }, |ours, theirs| {
            put(&theirs, b"hello");
            let mut byte = [0];
            assert_eq!(reactor.block_on(ours.read(&mut byte)).unwrap().unwrap(), 1);
            for expected in b"ello" {
                let Poll::Ready(Ok(1)) = poll_once(ours.read(&mut byte)) else {
                    panic!("there was more to read");
                };
                assert_eq!(byte[0], *expected);
            }
            assert!(poll_once(ours.read(&mut byte)).is_pending());
        });
    }

    fn a_tcp_read_that_got_less_than_it_asked_for_waits_for_an_event(backend: Backend) {
        let mut reactor = reactor(backend);
        with_every_stream!({
            let (ours, theirs) = tcp_pair();
            (async_fd(ours, &reactor), theirs)
        }, |ours, theirs| {
            put(&theirs, b"hello");
            let mut buffer = [0; 8];
            assert_eq!(reactor.block_on(ours.read(&mut buffer)).unwrap().unwrap(), 5);
            put(&theirs, b", you");
            // It is there, but no turn has said so, and nobody looks.
            assert!(poll_once(ours.read(&mut buffer)).is_pending());
            assert_eq!(reactor.block_on(ours.read(&mut buffer)).unwrap().unwrap(), 5);
            assert_eq!(&buffer[..5], b", you");
            drop(theirs);
            assert_eq!(reactor.block_on(ours.read(&mut buffer)).unwrap().unwrap(), 0);
        });
    }

    fn a_short_read_of_a_socket_with_urgent_data_is_followed_by_another(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let ours = async_fd(ours, &reactor);
        assert!(poll_once(pin!(ours.ready(Interest::PRIORITY))).is_pending());
        rustix::net::send(&theirs, b"before!", rustix::net::SendFlags::OOB).unwrap();
        put(&theirs, b"after");
        reactor.block_on(async {
            drop(ours.ready(Interest::PRIORITY).await.unwrap());
            let mut stream = Futures(ours);
            let mut buffer = [0; 32];
            let mut all = Vec::new();
            // A read stops in front of the urgent byte.
            while all.len() < b"beforeafter".len() {
                let n = stream.read(&mut buffer).await.unwrap();
                all.extend_from_slice(&buffer[..n]);
            }
            assert_eq!(all, b"beforeafter");
        }).unwrap();
    }

    fn writing_waits_for_room_and_meets_the_end(backend: Backend) {
        let mut reactor = reactor(backend);
        with_every_stream!({
            let (ours, theirs) = unix_pair();
            fill(&ours);
            (async_fd(ours, &reactor), theirs)
        }, |ours, theirs| {
            {
                let mut write = pin!(ours.write(b"hello"));
                assert!(poll_once(write.as_mut()).is_pending());
                settle(&mut reactor);
                assert!(poll_once(write.as_mut()).is_pending());
                drain(&theirs);
                assert_eq!(reactor.block_on(write).unwrap().unwrap(), 5);
            }
            get(&theirs, b"hello");
            drop(theirs);
            let error = reactor.block_on(ours.write(b"hello")).unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        });
    }

    fn several_buffers_go_in_one_call(backend: Backend) {
        let mut reactor = reactor(backend);
        with_every_stream!({
            let (ours, theirs) = unix_pair();
            (async_fd(ours, &reactor), theirs)
        }, |ours, theirs| {
            let data = [IoSlice::new(b"hello"), IoSlice::new(b" "), IoSlice::new(b"world")];
            let write = poll_fn(|cx| ours.poll_write_vectored(cx, &data));
            assert_eq!(reactor.block_on(write).unwrap().unwrap(), 11);
            get(&theirs, b"hello world");
        });

        let (ours, theirs) = unix_pair();
        let mut ours = async_fd(ours, &reactor);
        put(&theirs, b"hello world");
        let (mut one, mut other) = ([0; 6], [0; 6]);
        let mut buffers = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut other)];
        let read = poll_fn(|cx| {
            futures_io::AsyncRead::poll_read_vectored(Pin::new(&mut ours), cx, &mut buffers)
        });
        assert_eq!(reactor.block_on(read).unwrap().unwrap(), 11);
        assert_eq!((&one, &other[..5]), (b"hello ", &b"world"[..]));
    }

    fn more_buffers_than_one_call_takes_go_in_several(backend: Backend) {
        const MANY: usize = 2500;
        let mut reactor = reactor(backend);
        with_every_stream!({
            let (ours, theirs) = tcp_pair();
            (async_fd(ours, &reactor), theirs)
        }, |ours, theirs| {
            let data = [IoSlice::new(b"x"); MANY];
            let write_all = async {
                let mut sent = 0;
                while sent < data.len() {
                    sent += poll_fn(|cx| ours.poll_write_vectored(cx, &data[sent..])).await?;
                }
                io::Result::Ok(())
            };
            reactor.block_on(write_all).unwrap().unwrap();
            get(&theirs, &[b'x'; MANY]);
        });

        let (ours, theirs) = tcp_pair();
        let mut ours = async_fd(ours, &reactor);
        put(&theirs, &[b'x'; MANY]);
        let mut bytes = [[0]; MANY];
        let mut buffers: Vec<_> = bytes.iter_mut().map(|byte| IoSliceMut::new(byte)).collect();
        let read_all = async {
            let mut received = 0;
            while received < MANY {
                received += poll_fn(|cx| {
                    let buffers = &mut buffers[received..];
                    futures_io::AsyncRead::poll_read_vectored(Pin::new(&mut ours), cx, buffers)
                })
                .await?;
            }
            io::Result::Ok(())
        };
        reactor.block_on(read_all).unwrap().unwrap();
        assert_eq!(bytes, [[b'x']; MANY]);
    }

    fn closing_ends_writing_and_not_reading(backend: Backend) {
        let mut reactor = reactor(backend);
        with_every_stream!({
            let (ours, theirs) = tcp_pair();
            (async_fd(ours, &reactor), theirs)
        }, |ours, theirs| {
            reactor.block_on(ours.close()).unwrap().unwrap();
            turn_until(&mut reactor, || at_end(&theirs));
            put(&theirs, b"still heard");
            let mut buffer = [0; 16];
            let n = reactor.block_on(ours.read(&mut buffer)).unwrap().unwrap();
            assert_eq!(&buffer[..n], b"still heard");
            let error = reactor.block_on(ours.write(b"!")).unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            // Closing again, and after the peer has reset the connection, is no error.
            reactor.block_on(ours.close()).unwrap().unwrap();
            put(&theirs, b"unread");
            drop(theirs);
            reactor.block_on(ours.close()).unwrap().unwrap();
        });
    }

    fn closing_what_cannot_be_half_closed_is_no_error(backend: Backend) {
        let mut reactor = reactor(backend);
        let (controller, _terminal) = pty_pair();
        with_every_stream!((async_fd(controller.try_clone().unwrap(), &reactor), ()), |file, _| {
            reactor.block_on(file.close()).unwrap().unwrap();
        });

        let unconnected = || {
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::STREAM,
                None,
            );
            TcpStream::from(socket.unwrap())
        };
        with_every_stream!((async_fd(unconnected(), &reactor), ()), |socket, _| {
            reactor.block_on(socket.close()).unwrap().unwrap();
        });
    }

    fn a_pipe_is_read_and_written(backend: Backend) {
        let mut reactor = reactor(backend);
        let (reader, writer) = pipe_pair();
        let (mut reader, mut writer) = (async_fd(reader, &reactor), async_fd(writer, &reactor));
        let n = reactor.block_on(poll_fn(|cx| {
            futures_io::AsyncWrite::poll_write(Pin::new(&mut writer), cx, b"hello")
        }));
        assert_eq!(n.unwrap().unwrap(), 5);
        // Only closing the descriptor ends a pipe.
        reactor.block_on(poll_fn(|cx| {
            tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut writer), cx)
        })).unwrap().unwrap();
        let mut buffer = [0; 8];
        let mut read = || reactor.block_on(poll_fn(|cx| {
            futures_io::AsyncRead::poll_read(Pin::new(&mut reader), cx, &mut buffer)
        })).unwrap().unwrap();
        assert_eq!(read(), 5);
        drop(writer);
        assert_eq!(read(), 0);
    }

    fn a_file_s_descriptor_serves_as_a_stream(backend: Backend) {
        let mut reactor = reactor(backend);
        let (controller, terminal) = pty_pair();
        let mut controller: Tokio<AsyncFd<File>> = Tokio(async_fd(controller, &reactor));
        put(&terminal, b"login:");
        let mut buffer = [0; 16];
        let n = reactor.block_on(controller.read(&mut buffer)).unwrap().unwrap();
        assert_eq!(&buffer[..n], b"login:");
    }

    fn flushing_waits_until_all_is_written(backend: Backend) {
        let mut reactor = reactor(backend);
        let data = pattern(1_000_000);
        with_every_stream!({
            let (stream, theirs) = unix_pair();
            let buffered = Buffered { stream, pending: Mutex::default() };
            (async_fd(buffered, &reactor), theirs)
        }, |ours, theirs| {
            reactor.block_on(ours.write_all(&data)).unwrap().unwrap();
            assert!(!at_end(&theirs));
            let mut flush = pin!(poll_fn(|cx| ours.poll_flush(cx)));
            assert!(poll_once(flush.as_mut()).is_pending());
            let theirs = async_fd(theirs, &reactor);
            let receive = async {
                let mut received = vec![0; data.len()];
                let mut start = 0;
                while start < data.len() {
                    start += Futures(&theirs).read(&mut received[start..]).await.unwrap();
                }
                received
            };
            let (flushed, received) = reactor.block_on(zip(flush, receive)).unwrap();
            flushed.unwrap();
            assert!(received == data);
        });
    }

    fn closing_flushes_first(backend: Backend) {
        let mut reactor = reactor(backend);
        with_every_stream!({
            let (stream, theirs) = unix_pair();
            let buffered = Buffered { stream, pending: Mutex::default() };
            (async_fd(buffered, &reactor), theirs)
        }, |ours, theirs| {
            reactor.block_on(ours.write_all(b"the last word")).unwrap().unwrap();
            reactor.block_on(ours.close()).unwrap().unwrap();
            get(&theirs, b"the last word");
            assert!(at_end(&theirs));
        });
    }

    fn a_signal_does_not_end_a_read_or_a_write(backend: Backend) {
        let mut reactor = reactor(backend);
        with_every_stream!({
            let (stream, theirs) = unix_pair();
            (async_fd(Interrupted { stream, interrupt: Mutex::new(false) }, &reactor), theirs)
        }, |ours, theirs| {
            assert_eq!(reactor.block_on(ours.write(b"hello")).unwrap().unwrap(), 5);
            get(&theirs, b"hello");
            put(&theirs, b"hello");
            assert_eq!(reactor.block_on(ours.read(&mut [0; 8])).unwrap().unwrap(), 5);
            reactor.block_on(ours.close()).unwrap().unwrap();
            assert!(at_end(&theirs));
        });
    }

    fn tokio_s_buffer_is_filled_where_it_is_not_initialized(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut ours = async_fd(ours, &reactor);
        put(&theirs, b"hello world");
        let mut memory = [std::mem::MaybeUninit::uninit(); 8];
        let mut buffer = tokio::io::ReadBuf::uninit(&mut memory);
        buffer.put_slice(b"> ");
        let read = poll_fn(|cx| {
            tokio::io::AsyncRead::poll_read(Pin::new(&mut ours), cx, &mut buffer)
        });
        reactor.block_on(read).unwrap().unwrap();
        assert_eq!(buffer.filled(), b"> hello ");
        assert_eq!(buffer.remaining(), 0);
    }

    fn a_stream_and_tasks_that_await_do_not_disturb_each_other(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let (first, first_waker) = counting_waker();
        let mut stream = Futures(&io);
        let mut buffer = [0; 8];
        let mut cx = Context::from_waker(&first_waker);
        assert!(stream.poll_read(&mut cx, &mut buffer).is_pending());
        let mut readable = pin!(io.readable());
        let (second, second_waker) = counting_waker();
        assert!(readable.as_mut().poll(&mut Context::from_waker(&second_waker)).is_pending());
        put(&theirs, b"hello");
        settle(&mut reactor);
        assert_eq!((first.get(), second.get()), (1, 1));
        assert!(matches!(stream.poll_read(&mut cx, &mut buffer), Poll::Ready(Ok(5))));
        assert!(readable.poll(&mut Context::from_waker(&second_waker)).is_ready());
        let outcome = io.try_io(Interest::READABLE, |mut io| io.read(&mut [0]));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    fn the_end_of_the_reactor_is_an_error_of_the_stream(backend: Backend) {
        let reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let mut ours = Futures(async_fd(ours, &reactor));
        let (count, waker) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(ours.poll_read(&mut cx, &mut [0]).is_pending());
        drop(reactor);
        assert_eq!(count.get(), 1);
        let Poll::Ready(Err(error)) = ours.poll_read(&mut cx, &mut [0]) else {
            panic!("the reactor is gone");
        };
        assert!(matches!(reason(&error), Some(uring_reactor::Error::ReactorGone)));
    }
}

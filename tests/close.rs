//! `AsyncFd::close`: what the peer sees, and when.
//!
//! No test here starts a process: for a moment the child would hold what its parent closes, and the
//! peer would see the end too late.

mod common;

use common::descriptors::*;
use common::*;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use uring_reactor::{AsyncFd, Interest, Reactor};

/// True if that number names a ring.
fn is_ring(number: i32) -> bool {
    let file = std::fs::read_link(format!("/proc/self/fd/{number}"));
    file.is_ok_and(|file| file.to_str() == Some("anon_inode:[io_uring]"))
}

fn async_fd<T: AsFd>(io: T, reactor: &Reactor) -> AsyncFd<T> {
    AsyncFd::with_handle(io, &reactor.handle()).unwrap()
}

/// A stream that is more than a descriptor, and not `'static`.
struct Wrapped<'a> {
    stream: UnixStream,
    dropped: &'a Cell<bool>,
}

impl AsFd for Wrapped<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for Wrapped<'_> {
    fn drop(&mut self) {
        self.dropped.set(true);
    }
}

/// Registers, lets the kernel arm it, closes, and looks at the peer as soon as that is done.
#[track_caller]
fn peer_sees_the_end<T: AsFd>(reactor: &mut Reactor, ours: T, theirs: &impl AsFd) {
    let io = async_fd(ours, reactor);
    settle(reactor);
    assert!(!at_end(theirs));
    reactor.block_on(io.close()).unwrap().unwrap();
    assert!(at_end(theirs));
    assert!(reactor.is_idle());
}

both_backends! {
    fn the_peer_of_every_kind_of_stream_sees_the_end_upon_completion(backend: Backend) {
        let mut reactor = reactor(backend);
        let reactor = &mut reactor;
        for _ in 0..20 {
            let (ours, theirs) = tcp_pair();
            peer_sees_the_end(reactor, ours, &theirs);
            let (ours, theirs) = unix_pair();
            peer_sees_the_end(reactor, ours, &theirs);
            let (ours, theirs) = unix_pair();
            peer_sees_the_end(reactor, OwnedFd::from(ours), &theirs);
            let (ours, theirs) = unix_pair();
            peer_sees_the_end(reactor, File::from(OwnedFd::from(ours)), &theirs);
            let (theirs, ours) = pipe_pair();
            peer_sees_the_end(reactor, ours, &theirs);
            let (ours, theirs) = tcp_pair();
            peer_sees_the_end(reactor, Box::new(ours), &theirs);
        }
    }

    fn a_pipe_s_writer_is_refused_upon_completion(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = pipe_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        reactor.block_on(io.close()).unwrap().unwrap();
        assert_eq!(rustix::io::write(&theirs, b"!"), Err(rustix::io::Errno::PIPE));
    }

    fn a_descriptor_that_no_turn_has_seen_is_closed_as_well(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        reactor.block_on(io.close()).unwrap().unwrap();
        assert!(at_end(&theirs) && reactor.is_idle());
    }

    fn a_listener_s_address_can_be_bound_again_upon_completion(backend: Backend) {
        let mut reactor = reactor(backend);
        let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        for _ in 0..50 {
            let io = async_fd(listener, &reactor);
            settle(&mut reactor);
            assert!(TcpListener::bind(address).is_err());
            reactor.block_on(io.close()).unwrap().unwrap();
            listener = TcpListener::bind(address).unwrap();
        }

        let mut socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        for _ in 0..50 {
            let io = async_fd(socket, &reactor);
            settle(&mut reactor);
            assert!(UdpSocket::bind(address).is_err());
            reactor.block_on(io.close()).unwrap().unwrap();
            socket = UdpSocket::bind(address).unwrap();
        }
    }

    fn clients_of_a_unix_listener_are_refused_upon_completion(backend: Backend) {
        let mut reactor = reactor(backend);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let io = async_fd(UnixListener::bind(&path).unwrap(), &reactor);
        settle(&mut reactor);
        let waiting = UnixStream::connect(&path).unwrap();
        reactor.block_on(io.close()).unwrap().unwrap();
        let error = UnixStream::connect(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        nonblocking(&waiting);
        assert!(at_end(&waiting));
    }

    fn senders_to_a_datagram_socket_are_refused_upon_completion(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = datagram_pair();
        let io: AsyncFd<UnixDatagram> = async_fd(ours, &reactor);
        settle(&mut reactor);
        reactor.block_on(io.close()).unwrap().unwrap();
        assert!(theirs.send(b"!").is_err());
    }

    fn a_type_of_one_s_own_is_dropped_upon_completion_and_not_before(backend: Backend) {
        let mut reactor = reactor(backend);
        let (stream, theirs) = unix_pair();
        let dropped = Cell::new(false);
        let io = async_fd(Wrapped { stream, dropped: &dropped }, &reactor);
        settle(&mut reactor);
        let close = io.close();
        settle(&mut reactor);
        assert!(!dropped.get() && reactor.is_idle());
        reactor.block_on(close).unwrap().unwrap();
        assert!(dropped.get() && at_end(&theirs));
    }

    fn a_borrowed_descriptor_is_deregistered_and_stays_open(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours.as_fd(), &reactor);
        settle(&mut reactor);
        reactor.block_on(io.close()).unwrap().unwrap();
        assert!(reactor.is_idle());
        put(&ours, b"still open");
        get(&theirs, b"still open");
    }

    fn a_close_that_nobody_awaits_happens_all_the_same(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        drop(io.close());
        turn_until(&mut reactor, || at_end(&theirs));

        let (stream, theirs) = unix_pair();
        let dropped = Cell::new(false);
        let io = async_fd(Wrapped { stream, dropped: &dropped }, &reactor);
        settle(&mut reactor);
        drop(io.close());
        assert!(dropped.get());
        turn_until(&mut reactor, || at_end(&theirs));
    }

    fn a_close_that_is_given_up_half_way_happens_all_the_same(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        let mut close = Box::pin(io.close());
        assert!(close.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop((close, waker));
        turn_until(&mut reactor, || at_end(&theirs));
        assert_eq!(Arc::strong_count(&count), 1, "its task is forgotten");
    }

    fn closing_wakes_who_waits_for_it_once(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        let mut close = pin!(io.close());
        assert!(close.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        turn_until(&mut reactor, || count.get() > 0);
        settle(&mut reactor);
        assert_eq!(count.get(), 1);
        assert!(close.poll(&mut Context::from_waker(&waker)).is_ready());
    }

    fn unread_data_does_not_keep_a_close_from_completing(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        put(&theirs, b"never read");
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        reactor.block_on(io.close()).unwrap().unwrap();
        // Reset rather than end.
        assert!(at_end(&theirs));
    }

    fn what_was_written_before_the_close_arrives(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, mut theirs) = tcp_pair();
        put(&ours, b"the last word");
        let io = async_fd(ours, &reactor);
        reactor.block_on(io.close()).unwrap().unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "the last word");
    }

    fn with_the_reactor_gone_a_close_completes_at_once(backend: Backend) {
        let mut first = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let (stream, wrapped_theirs) = unix_pair();
        let dropped = Cell::new(false);
        let io = async_fd(ours, &first);
        let wrapped = async_fd(Wrapped { stream, dropped: &dropped }, &first);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = async_fd(listener, &first);
        settle(&mut first);
        drop(first);
        assert!(matches!(poll_once(io.close()), Poll::Ready(Ok(()))));
        assert!(at_end(&theirs));
        assert!(matches!(poll_once(wrapped.close()), Poll::Ready(Ok(()))));
        assert!(dropped.get() && at_end(&wrapped_theirs));
        assert!(matches!(poll_once(listener.close()), Poll::Ready(Ok(()))));
        TcpListener::bind(address).unwrap();
    }

    fn a_close_under_way_completes_when_the_reactor_goes(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        let mut close = pin!(io.close());
        assert!(close.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(reactor);
        assert_eq!(count.get(), 1);
        assert!(close.poll(&mut Context::from_waker(&waker)).is_ready());
        assert!(at_end(&theirs));
    }

    fn many_closes_under_way_complete_when_the_reactor_goes(backend: Backend) {
        for turns in 0..3 {
            let mut reactor = reactor(backend);
            let (ours, theirs): (Vec<_>, Vec<_>) = (0..100).map(|_| unix_pair()).unzip();
            let ours: Vec<_> = ours.into_iter().map(|io| async_fd(io, &reactor)).collect();
            settle(&mut reactor);
            let closes: Vec<_> = ours.into_iter().map(AsyncFd::close).collect();
            for _ in 0..turns {
                reactor.turn(Some(std::time::Duration::ZERO)).unwrap();
            }
            drop(reactor);
            for (close, theirs) in closes.into_iter().zip(&theirs) {
                assert!(matches!(poll_once(close), Poll::Ready(Ok(()))));
                assert!(at_end(theirs));
            }
        }
    }

    fn a_sleeping_reactor_is_woken_to_close(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        for _ in 0..20 {
            let (ours, theirs) = tcp_pair();
            let io = AsyncFd::with_handle(ours, turning.handle()).unwrap();
            turning.wait_until_parked();
            futures_lite::future::block_on(io.close()).unwrap();
            assert!(at_end(&theirs));
        }
    }

    fn many_closes_in_one_batch_all_complete(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..300).map(|_| unix_pair()).unzip();
        let ours: Vec<_> = ours.into_iter().map(|io| async_fd(io, &reactor)).collect();
        settle(&mut reactor);
        let closes: Vec<_> = ours.into_iter().map(AsyncFd::close).collect();
        reactor.block_on(async {
            for (close, theirs) in closes.into_iter().zip(&theirs) {
                close.await.unwrap();
                assert!(at_end(theirs));
            }
        }).unwrap();
        assert!(reactor.is_idle());
    }

    fn a_file_that_could_not_be_polled_is_closed_as_well(backend: Backend) {
        let mut reactor = reactor(backend);
        let io = async_fd(tempfile::tempfile().unwrap(), &reactor);
        reactor.block_on(io.readable()).unwrap().unwrap_err();
        reactor.block_on(io.close()).unwrap().unwrap();
        assert!(reactor.is_idle());
    }

    fn a_dropped_owner_s_peer_sees_the_end_after_the_next_turn(backend: Backend) {
        let mut reactor = reactor(backend);
        for _ in 0..20 {
            let (ours, theirs) = tcp_pair();
            let io = async_fd(ours, &reactor);
            settle(&mut reactor);
            drop(io);
            reactor.turn(Some(std::time::Duration::ZERO)).unwrap();
            assert!(at_end(&theirs));
        }
    }

    fn closing_races_with_the_end_of_the_reactor(backend: Backend) {
        for _ in 0..50 {
            let mut reactor = reactor(backend);
            let pairs: Vec<_> = (0..8).map(|_| {
                let (ours, theirs) = unix_pair();
                (async_fd(ours, &reactor), theirs)
            }).collect();
            reactor.turn(Some(std::time::Duration::ZERO)).unwrap();
            let closing = thread::spawn(move || {
                for (io, theirs) in pairs {
                    futures_lite::future::block_on(io.close()).unwrap();
                    assert!(at_end(&theirs));
                }
            });
            reactor.turn(Some(std::time::Duration::ZERO)).unwrap();
            drop(reactor);
            closing.join().unwrap();
        }
    }
}

#[test]
fn an_address_of_one_s_own_comes_back_through_the_fallback() {
    let io = AsyncFd::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
    let address: SocketAddr = io.get_ref().local_addr().unwrap();
    let _client = TcpStream::connect(address).unwrap();
    futures_lite::future::block_on(async {
        drop(io.ready(Interest::READABLE).await.unwrap());
        io.close().await.unwrap();
    });
    TcpListener::bind(address).unwrap();
}

// Alone, because a number that is free may be somebody else's soon.
both_backends_in_child! {
    fn a_ring_of_another_s_is_closed_as_well(backend: Backend) {
        let mut reactor = reactor(backend);
        let ring = io_uring::IoUring::new(2).unwrap();
        // SAFETY: the ring has it open.
        let ring_fd = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&ring)) };
        let ours = ring_fd.try_clone_to_owned().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&ours);
        let ours = async_fd(ours, &reactor);
        settle(&mut reactor);
        assert!(is_ring(number));
        reactor.block_on(ours.close()).unwrap().unwrap();
        assert!(!is_ring(number));
    }
}

//! The standard library's sockets.

mod common;

use common::descriptors::*;
use common::*;
use futures_lite::future::zip;
use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixDatagram, UnixListener, UnixStream};
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use uring_reactor::{AsyncFd, Error, Interest, set_default, with_default};

const ANY_PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn is_nonblocking_and_cloexec(io: &impl AsFd) -> bool {
    rustix::fs::fcntl_getfl(io)
        .unwrap()
        .contains(OFlags::NONBLOCK)
        && rustix::io::fcntl_getfd(io)
            .unwrap()
            .contains(FdFlags::CLOEXEC)
}

/// Sends and receives through two streams that should be each other's ends.
async fn exchange<S>(one: &AsyncFd<S>, other: &AsyncFd<S>)
where
    for<'a> &'a S: Read + Write,
{
    for (from, to) in [(one, other), (other, one)] {
        let n = from
            .async_io(Interest::WRITABLE, |mut io| io.write(b"hello"))
            .await
            .unwrap();
        assert_eq!(n, 5);
        let mut buffer = [0; 8];
        let n = to
            .async_io(Interest::READABLE, |mut io| io.read(&mut buffer))
            .await
            .unwrap();
        assert_eq!(&buffer[..n], b"hello");
    }
}

/// An address of this machine where a connection would be refused, for as long as the socket lives.
fn refusing_address() -> (OwnedFd, SocketAddr) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(ANY_PORT)).unwrap();
    let address = rustix::net::getsockname(&socket)
        .unwrap()
        .try_into()
        .unwrap();
    (socket, address)
}

/// A listener that lets the next connection wait: its queue is full.
fn busy_listener() -> (TcpListener, SocketAddr, TcpStream) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(ANY_PORT)).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let first = TcpStream::connect(address).unwrap();
    (listener, address, first)
}

both_backends! {
    fn tcp_streams_connect_and_are_accepted(backend: Backend) {
        let mut reactor = reactor(backend);
        let listener = reactor.block_on(async {
            let listener = AsyncFd::<TcpListener>::bind(ANY_PORT).unwrap();
            let address = listener.get_ref().local_addr().unwrap();
            for _ in 0..10 {
                let connect = AsyncFd::<TcpStream>::connect(address);
                let (stream, accepted) = zip(connect, listener.accept()).await;
                let (stream, (accepted, peer)) = (stream.unwrap(), accepted.unwrap());
                assert_eq!(peer, stream.get_ref().local_addr().unwrap());
                assert_eq!(accepted.get_ref().peer_addr().unwrap(), peer);
                assert!(is_nonblocking_and_cloexec(&stream));
                assert!(is_nonblocking_and_cloexec(&accepted));
                exchange(&stream, &accepted).await;
            }
            listener
        }).unwrap();
        assert!(is_nonblocking_and_cloexec(&listener));
        drop(listener);
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn ipv6_is_served_where_there_is_any(backend: Backend) {
        let mut reactor = reactor(backend);
        reactor.block_on(async {
            let Ok(listener) = AsyncFd::<TcpListener>::bind((Ipv6Addr::LOCALHOST, 0)) else {
                return;
            };
            let address = listener.get_ref().local_addr().unwrap();
            let stream = AsyncFd::<TcpStream>::connect(address).await.unwrap();
            let (accepted, peer) = listener.accept().await.unwrap();
            assert_eq!(peer, stream.get_ref().local_addr().unwrap());
            exchange(&stream, &accepted).await;
        }).unwrap();
    }

    fn an_accepted_socket_is_on_its_listener_s_reactor(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        let other = reactor(backend);
        // The thread's default is another reactor, which nobody turns.
        let _default = set_default(&other.handle());
        let listener = AsyncFd::<TcpListener>::bind_with(ANY_PORT, turning.handle()).unwrap();
        let address = listener.get_ref().local_addr().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let before = turning.handle().metrics().registered;
        let (accepted, _) = futures_lite::future::block_on(listener.accept()).unwrap();
        assert_eq!(turning.handle().metrics().registered, before + 1);
        assert!(other.is_idle());
        futures_lite::future::block_on(accepted.writable()).map(drop).unwrap();

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = AsyncFd::<UnixListener>::bind_with(&path, turning.handle()).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let (accepted, _) = futures_lite::future::block_on(listener.accept()).unwrap();
        assert!(other.is_idle());
        futures_lite::future::block_on(accepted.writable()).map(drop).unwrap();
    }

    fn everything_can_be_made_on_a_named_reactor(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        let handle = turning.handle();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("listener");
        let other_path = directory.path().join("datagram");
        let other = reactor(backend);
        with_default(&other.handle(), || futures_lite::future::block_on(async {
            let tcp = AsyncFd::<TcpListener>::bind_with(ANY_PORT, handle).unwrap();
            let address = tcp.get_ref().local_addr().unwrap();
            let unix = AsyncFd::<UnixListener>::bind_with(&path, handle).unwrap();
            let made = (
                AsyncFd::<TcpStream>::connect_with(address, handle).await.unwrap(),
                AsyncFd::<UdpSocket>::bind_with(ANY_PORT, handle).unwrap(),
                AsyncFd::<UnixStream>::connect_with(&path, handle).await.unwrap(),
                AsyncFd::<UnixStream>::pair_with(handle).unwrap(),
                AsyncFd::<UnixDatagram>::bind_with(&other_path, handle).unwrap(),
                AsyncFd::<UnixDatagram>::unbound_with(handle).unwrap(),
                AsyncFd::<UnixDatagram>::pair_with(handle).unwrap(),
            );
            assert_eq!(handle.metrics().registered, 11);
            drop((made, tcp, unix));
        }));
        assert!(other.is_idle());
    }

    fn a_refused_connection_is_an_error(backend: Backend) {
        let mut reactor = reactor(backend);
        let (_socket, address) = refusing_address();
        let error = reactor.block_on(AsyncFd::<TcpStream>::connect(address)).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let connect = || AsyncFd::<UnixStream>::connect(&path);
        let error = reactor.block_on(connect()).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        drop(UnixListener::bind(&path).unwrap());
        let error = reactor.block_on(connect()).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn a_connection_that_takes_its_time_is_waited_for(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let (listener, address, _first) = busy_listener();
        let mut connect = pin!(AsyncFd::<TcpStream>::connect_with(address, &handle));
        assert!(poll_once(connect.as_mut()).is_pending());
        settle(&mut reactor);
        assert!(poll_once(connect.as_mut()).is_pending());
        drop(listener.accept().unwrap());
        // The kernel tries again after a second.
        let stream = reactor.block_on(connect).unwrap().unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, stream.get_ref().local_addr().unwrap());
        let accepted = AsyncFd::with_handle(accepted, &reactor.handle()).unwrap();
        reactor.block_on(exchange(&stream, &accepted)).unwrap();
    }

    fn a_connection_that_is_refused_late_is_an_error(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let (listener, address, _first) = busy_listener();
        let mut connect = pin!(AsyncFd::<TcpStream>::connect_with(address, &handle));
        assert!(poll_once(connect.as_mut()).is_pending());
        settle(&mut reactor);
        drop(listener);
        let error = reactor.block_on(connect).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    fn a_connection_that_is_given_up_leaves_nothing_behind(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let (_listener, address, _first) = busy_listener();
        {
            let mut connect = pin!(AsyncFd::<TcpStream>::connect_with(address, &handle));
            assert!(poll_once(connect.as_mut()).is_pending());
            settle(&mut reactor);
            assert!(!reactor.is_idle());
        }
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn an_address_in_use_is_an_error(backend: Backend) {
        let reactor = reactor(backend);
        let handle = reactor.handle();
        let listener = AsyncFd::<TcpListener>::bind_with(ANY_PORT, &handle).unwrap();
        let address = listener.get_ref().local_addr().unwrap();
        let error = AsyncFd::<TcpListener>::bind_with(address, &handle).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = AsyncFd::<UnixListener>::bind_with(&path, &handle).unwrap();
        let error = AsyncFd::<UnixListener>::bind_with(&path, &handle).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let error = AsyncFd::<UnixDatagram>::bind_with(&path, &handle).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    fn a_reactor_that_is_gone_is_an_error(backend: Backend) {
        let gone = reactor(backend).handle();
        let error = AsyncFd::<TcpListener>::bind_with(ANY_PORT, &gone).unwrap_err();
        assert!(matches!(reason(&error), Some(Error::ReactorGone)));
        let (listener, address, _first) = busy_listener();
        let connect = pin!(AsyncFd::<TcpStream>::connect_with(address, &gone));
        let error = futures_lite::future::block_on(connect).unwrap_err();
        assert!(matches!(reason(&error), Some(Error::ReactorGone)));
        drop(listener);

        let reactor = reactor(backend);
        let listener = AsyncFd::<TcpListener>::bind_with(ANY_PORT, &reactor.handle()).unwrap();
        drop(reactor);
        let error = futures_lite::future::block_on(listener.accept()).unwrap_err();
        assert!(matches!(reason(&error), Some(Error::ReactorGone)));
    }

    fn any_number_of_tasks_may_accept(backend: Backend) {
        const TASKS: usize = 8;
        const CONNECTIONS: usize = 10;

        let turning = Turning::start(reactor(backend));
        let listener = AsyncFd::<TcpListener>::bind_with(ANY_PORT, turning.handle()).unwrap();
        let listener = Arc::new(listener);
        let address = listener.get_ref().local_addr().unwrap();
        let tasks: Vec<_> = (0..TASKS).map(|_| {
            let listener = Arc::clone(&listener);
            thread::spawn(move || for _ in 0..CONNECTIONS {
                drop(futures_lite::future::block_on(listener.accept()).unwrap());
            })
        }).collect();
        for _ in 0..TASKS * CONNECTIONS {
            drop(TcpStream::connect(address).unwrap());
        }
        for task in tasks {
            task.join().unwrap();
        }
    }

    fn peeking_leaves_the_data_in_place(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let io = AsyncFd::with_handle(ours, &reactor.handle()).unwrap();
        put(&theirs, b"hello");
        let mut buffer = [0; 8];
        assert_eq!(reactor.block_on(io.peek(&mut buffer)).unwrap().unwrap(), 5);
        assert_eq!(&buffer[..5], b"hello");
        get(io.get_ref(), b"hello");
    }

    fn udp_sockets_send_and_receive(backend: Backend) {
        let mut reactor = reactor(backend);
        reactor.block_on(async {
            let one = AsyncFd::<UdpSocket>::bind(ANY_PORT).unwrap();
            let other = AsyncFd::<UdpSocket>::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let one_address = one.get_ref().local_addr().unwrap();
            let other_address = other.get_ref().local_addr().unwrap();
            let mut buffer = [0; 8];

            let (sent, received) =
                zip(one.send_to(b"1", other_address), other.recv_from(&mut buffer)).await;
            assert_eq!(sent.unwrap(), 1);
            assert_eq!(received.unwrap(), (1, one_address));

            one.send_to(b"22", other_address).await.unwrap();
            assert_eq!(other.peek_from(&mut buffer).await.unwrap(), (2, one_address));
            other.connect(one_address).await.unwrap();
            assert_eq!(other.peek(&mut buffer).await.unwrap(), 2);
            assert_eq!(other.recv(&mut buffer).await.unwrap(), 2);
            assert_eq!(&buffer[..2], b"22");
            assert_eq!(other.send(b"333").await.unwrap(), 3);
            assert_eq!(one.recv_from(&mut buffer).await.unwrap(), (3, other_address));
        }).unwrap();
    }

    fn a_refused_datagram_is_an_error_of_the_next_call(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = udp_pair();
        drop(theirs);
        let io = AsyncFd::with_handle(ours, &reactor.handle()).unwrap();
        let error = reactor.block_on(async {
            io.send(b"!").await.unwrap();
            io.recv(&mut [0; 8]).await.unwrap_err()
        }).unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    fn unix_streams_connect_and_are_accepted(backend: Backend) {
        let mut reactor = reactor(backend);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        reactor.block_on(async {
            let listener = AsyncFd::<UnixListener>::bind(&path).unwrap();
            for _ in 0..10 {
                let connect = AsyncFd::<UnixStream>::connect(&path);
                let (stream, accepted) = zip(connect, listener.accept()).await;
                let (stream, (accepted, peer)) = (stream.unwrap(), accepted.unwrap());
                assert!(peer.is_unnamed());
                assert!(is_nonblocking_and_cloexec(&stream));
                assert!(is_nonblocking_and_cloexec(&accepted));
                exchange(&stream, &accepted).await;
            }
        }).unwrap();
    }

    fn a_unix_peer_s_name_is_told(backend: Backend) {
        let mut reactor = reactor(backend);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("listener");
        let listener = AsyncFd::<UnixListener>::bind_with(&path, &reactor.handle()).unwrap();
        let mut peer_of = |name: &SocketAddrUnix| {
            let client = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
            rustix::net::bind(&client, name).unwrap();
            rustix::net::connect(&client, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            reactor.block_on(listener.accept()).unwrap().unwrap().1
        };
        let name = directory.path().join("client");
        let peer = peer_of(&SocketAddrUnix::new(&name).unwrap());
        assert_eq!(peer.as_pathname(), Some(&*name));
        // As long as it can be: there is no room for the final zero.
        let mut name = directory.path().to_str().unwrap().to_owned();
        name.push('/');
        name.extend(std::iter::repeat_n('x', 108 - name.len()));
        if let Ok(address) = SocketAddrUnix::new(&name) {
            let peer = peer_of(&address);
            assert_eq!(peer.as_pathname().and_then(|path| path.to_str()), Some(&*name));
        }
        let name = format!("uring-reactor {}", directory.path().display());
        let peer = peer_of(&SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap());
        assert_eq!(peer.as_abstract_name(), Some(name.as_bytes()));
    }

    fn a_full_unix_listener_is_an_error(backend: Backend) {
        let mut reactor = reactor(backend);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let error = reactor.block_on(AsyncFd::<UnixStream>::connect(&path)).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    fn abstract_addresses_go_through_std(backend: Backend) {
        let mut reactor = reactor(backend);
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().to_str().unwrap().as_bytes();
        let address = unix::SocketAddr::from_abstract_name(name).unwrap();
        reactor.block_on(async {
            let listener = AsyncFd::new(UnixListener::bind_addr(&address).unwrap()).unwrap();
            let stream = AsyncFd::new(UnixStream::connect_addr(&address).unwrap()).unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            exchange(&stream, &accepted).await;
        }).unwrap();
    }

    fn a_path_that_is_none_is_answered_as_by_std(backend: Backend) {
        let mut reactor = reactor(backend);
        let long = "x".repeat(300);
        for path in ["", "with\0zero", &long, "/nowhere/at/all"] {
            let theirs = UnixStream::connect(path).unwrap_err().kind();
            let ours = reactor.block_on(AsyncFd::<UnixStream>::connect(path));
            assert_eq!(ours.unwrap().unwrap_err().kind(), theirs, "{path:?}");
        }
    }

    fn unix_pairs_are_connected(backend: Backend) {
        let mut reactor = reactor(backend);
        reactor.block_on(async {
            let (one, other) = AsyncFd::<UnixStream>::pair().unwrap();
            assert!(is_nonblocking_and_cloexec(&one) && is_nonblocking_and_cloexec(&other));
            exchange(&one, &other).await;

            let (one, other) = AsyncFd::<UnixDatagram>::pair().unwrap();
            let mut buffer = [0; 8];
            let (sent, received) = zip(one.send(b"hello"), other.recv(&mut buffer)).await;
            assert_eq!((sent.unwrap(), received.unwrap()), (5, 5));
            assert_eq!(&buffer[..5], b"hello");
        }).unwrap();
    }

    fn unix_datagrams_are_sent_to_paths(backend: Backend) {
        let mut reactor = reactor(backend);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        reactor.block_on(async {
            let bound = AsyncFd::<UnixDatagram>::bind(&path).unwrap();
            let unbound = AsyncFd::<UnixDatagram>::unbound().unwrap();
            assert!(is_nonblocking_and_cloexec(&bound) && is_nonblocking_and_cloexec(&unbound));
            let mut buffer = [0; 8];
            assert_eq!(unbound.send_to(b"1", &path).await.unwrap(), 1);
            let (n, from) = bound.recv_from(&mut buffer).await.unwrap();
            assert!(n == 1 && from.is_unnamed());
            unbound.connect(&path).await.unwrap();
            assert_eq!(unbound.send(b"22").await.unwrap(), 2);
            assert_eq!(bound.recv(&mut buffer).await.unwrap(), 2);
            // A socket may send to itself.
            assert_eq!(bound.send_to(b"333", &path).await.unwrap(), 3);
            let (n, from) = bound.recv_from(&mut buffer).await.unwrap();
            assert_eq!((n, from.as_pathname()), (3, Some(&*path)));
        }).unwrap();
    }

    fn a_full_queue_is_waited_for(backend: Backend) {
        let mut reactor = reactor(backend);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let sender = AsyncFd::<UnixDatagram>::unbound_with(&reactor.handle()).unwrap();
        settle(&mut reactor);
        while sender.get_ref().send_to(b"full", &path).is_ok() {}
        let mut send = pin!(sender.send_to(b"last", &path));
        assert!(poll_once(send.as_mut()).is_pending());
        settle(&mut reactor);
        assert!(poll_once(send.as_mut()).is_pending());
        receiver.recv(&mut [0; 8]).unwrap();
        assert_eq!(reactor.block_on(send).unwrap().unwrap(), 4);
    }
}

#[test]
fn what_is_awaited_is_send() {
    fn send<T: Send>(_: T) {}

    let address = SocketAddr::from(ANY_PORT);
    send(AsyncFd::<TcpStream>::connect(address));
    send(AsyncFd::<UnixStream>::connect("nowhere"));
    fn methods(tcp: &AsyncFd<TcpListener>, udp: &AsyncFd<UdpSocket>, unix: &AsyncFd<UnixListener>) {
        send(tcp.accept());
        send(unix.accept());
        send(udp.recv_from(&mut [0]));
        send(udp.send_to(&[0], ANY_PORT));
    }
    let _ = methods;
}

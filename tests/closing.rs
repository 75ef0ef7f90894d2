//! Whatever the reactor is doing, the peers of what is closed see the end, ports come free, and no
//! descriptor stays open; how long each takes is printed.

mod common;

use common::descriptors::*;
use common::*;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use uring_reactor::{Backend, Handle, Registration};

/// From the deregistration to the last sign of the end, on any reactor that turns at all.
const SOON: Duration = Duration::from_secs(2);

/// How a registration and its descriptor go.
#[derive(Clone, Copy, Debug)]
enum Way {
    DeregisterThenClose,
    Together,
    DropThenClose,
}

const WAYS: [Way; 3] = [Way::DeregisterThenClose, Way::Together, Way::DropThenClose];

/// One of each: what is closed, and from where that can be seen.
struct Open {
    ours: Vec<(OwnedFd, Registration)>,
    peers: Vec<OwnedFd>,
    address: SocketAddr,
}

impl Open {
    fn new(handle: &Handle) -> Open {
        let (stream, stream_peer) = unix_pair();
        let (writer, reader) = {
            let (reader, writer) = pipe_pair();
            (writer, reader)
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        // Never accepted: it ends with its listener.
        let waiting = TcpStream::connect(address).unwrap();
        waiting.set_nonblocking(true).unwrap();
        let ours: [OwnedFd; 3] = [stream.into(), writer.into(), listener.into()];
        let ours = ours.map(|io| {
            let registration = Registration::new();
            assert!(registration.register_with(&io, handle).unwrap());
            (io, registration)
        });
        Open {
            ours: ours.into(),
            peers: vec![stream_peer.into(), reader.into(), waiting.into()],
            address,
        }
    }

    /// Closes everything, and waits until it shows.
    #[track_caller]
    fn close(self, way: Way) -> Duration {
        let start = Instant::now();
        for (io, mut registration) in self.ours {
            match way {
                Way::DeregisterThenClose => registration.deregister(&io).unwrap(),
                Way::Together => registration.deregister_and_close(io).unwrap(),
                Way::DropThenClose => drop(registration),
            }
        }
        wait_until(|| self.peers.iter().all(at_end));
        wait_until(|| TcpStream::connect(self.address).is_err());
        start.elapsed()
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn report(what: &str, way: Way, took: Duration) {
    println!("{what}, {way:?}: {took:?}");
    assert!(took < SOON, "{what}, {way:?}: {took:?}");
}

both_backends_in_child! {
    fn while_it_sleeps(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        turning.pass();
        let before = descriptors();
        for way in WAYS {
            let open = Open::new(turning.handle());
            turning.pass();
            turning.wait_until_parked();
            report("asleep", way, open.close(way));
        }
        wait_until(|| descriptors() == before);
    }

    fn while_it_is_busy(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        let over = Arc::new(AtomicBool::new(false));
        let event = event_fd();
        let _registration = {
            let registration = Registration::new();
            registration.register_with(&event, turning.handle()).unwrap();
            registration
        };
        turning.pass();
        thread::scope(|scope| {
            let flag = Arc::clone(&over);
            let event = event.as_fd();
            scope.spawn(move || {
                while !flag.load(Ordering::Relaxed) {
                    signal(&event);
                }
            });
            let before = descriptors();
            for way in WAYS {
                let open = Open::new(turning.handle());
                turning.pass();
                report("busy", way, open.close(way));
            }
            wait_until(|| descriptors() == before);
            over.store(true, Ordering::Relaxed);
        });
    }

    fn while_nobody_turns_it_and_then_somebody_does(backend: Backend) {
        let mut reactor = reactor(backend);
        settle(&mut reactor);
        let before = descriptors();
        for way in WAYS {
            let open = Open::new(&reactor.handle());
            settle(&mut reactor);
            let took = thread::scope(|scope| {
                let closing = scope.spawn(move || open.close(way));
                while !closing.is_finished() {
                    reactor.turn(Some(Duration::from_millis(1))).unwrap();
                }
                closing.join().unwrap()
            });
            report("turned by hand", way, took);
        }
        settle(&mut reactor);
        assert_eq!(descriptors(), before);
    }

    fn before_it_was_ever_turned(backend: Backend) {
        for way in WAYS {
            let mut reactor = reactor(backend);
            let before = descriptors();
            let open = Open::new(&reactor.handle());
            let took = thread::scope(|scope| {
                let closing = scope.spawn(move || open.close(way));
                while !closing.is_finished() {
                    reactor.turn(Some(Duration::from_millis(1))).unwrap();
                }
                closing.join().unwrap()
            });
            report("never turned", way, took);
            settle(&mut reactor);
            assert_eq!(descriptors(), before);
        }
    }

    fn when_its_thread_was_told_to_end(backend: Backend) {
        for way in WAYS {
            let before = descriptors();
            let background = reactor(backend).background().unwrap();
            let open = Open::new(&background.handle());
            let shutdown = background.shutdown_now();
            // Before, while or after it ends.
            report("shutting down", way, open.close(way));
            shutdown.wait();
            wait_until(|| descriptors() == before);
        }
    }

    fn when_it_was_dropped(backend: Backend) {
        for way in WAYS {
            let before = descriptors();
            let mut reactor = reactor(backend);
            let open = Open::new(&reactor.handle());
            settle(&mut reactor);
            drop(reactor);
            report("dropped", way, open.close(way));
            wait_until(|| descriptors() == before);
        }
    }

    fn when_it_has_moved(backend: Backend) {
        let mut reactor = reactor(backend);
        settle(&mut reactor);
        for way in WAYS {
            let open = Open::new(&reactor.handle());
            settle(&mut reactor);
            let turning = Turning::start(reactor);
            turning.pass();
            report("moved", way, open.close(way));
            reactor = turning.stop();
        }
    }
}

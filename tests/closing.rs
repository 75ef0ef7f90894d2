//! How soon the world sees that something was closed: its peer the end, others its port. Whatever the
//! reactor does at that time, in whichever way it is closed. `close.rs`, `deregister.rs` and `ends.rs`
//! say what must hold; here it is timed.

mod common;

use common::descriptors::*;
use common::*;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use uring_reactor::{AsyncFd, Handle, Interest, Registration};

const NOW: Option<Duration> = Some(Duration::ZERO);
const ROUNDS: usize = 12;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Unix,
    Pipe,
    Listener,
}

const KINDS: [Kind; 4] = [Kind::Tcp, Kind::Unix, Kind::Pipe, Kind::Listener];

/// How to find out that it is closed.
type Seen = Box<dyn Fn() -> bool>;
/// How to make it ready.
type Poke = Box<dyn Fn()>;

fn open(kind: Kind) -> (OwnedFd, Seen, Poke) {
    fn pair<A: Into<OwnedFd>, B: Into<OwnedFd>>((ours, theirs): (A, B)) -> (OwnedFd, Seen, Poke) {
        let theirs = theirs.into();
        let other = theirs.try_clone().unwrap();
        let poke = move || {
            // A pipe is read at this end.
            let _ = rustix::io::write(&other, b"x");
        };
        (
            ours.into(),
            Box::new(move || at_end(&theirs)),
            Box::new(poke),
        )
    }
    match kind {
        Kind::Tcp => pair(tcp_pair()),
        Kind::Unix => pair(unix_pair()),
        Kind::Pipe => {
            let (reader, writer) = pipe_pair();
            pair((writer, reader))
        }
        Kind::Listener => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            nonblocking(&listener);
            let address = listener.local_addr().unwrap();
            let seen = move || TcpListener::bind(address).is_ok();
            let poke = move || drop(TcpStream::connect(address).unwrap());
            (listener.into(), Box::new(seen), Box::new(poke))
        }
    }
}

/// Something registered, by the ways there are to end it.
enum Registered {
    /// To be deregistered, then closed.
    Apart(Registration, OwnedFd),
    /// To be handed over.
    HandedOver(Registration, OwnedFd),
    /// To be dropped.
    Dropped(AsyncFd<OwnedFd>),
    /// To be closed and waited for.
    Closed(AsyncFd<OwnedFd>),
}

const WAYS: [&str; 4] = [
    "deregister, close",
    "deregister_and_close",
    "AsyncFd, drop",
    "AsyncFd, close().await",
];

impl Registered {
    fn new(way: usize, io: OwnedFd, handle: &Handle) -> Registered {
        let registered = |io: &OwnedFd| {
            let registration = Registration::new();
            assert!(registration.register_with(io, handle).unwrap());
            registration
        };
        match way {
            0 => Registered::Apart(registered(&io), io),
            1 => Registered::HandedOver(registered(&io), io),
            2 => Registered::Dropped(AsyncFd::with_handle(io, handle).unwrap()),
            _ => Registered::Closed(AsyncFd::with_handle(io, handle).unwrap()),
        }
    }

    /// Returns whether it is promised that everybody can see the end now.
    fn end(self) -> bool {
        match self {
            Registered::Apart(mut registration, io) => {
                registration.deregister(&io).unwrap();
                drop(io);
                false
            }
            Registered::HandedOver(mut registration, io) => {
                registration.deregister_and_close(io).unwrap();
                false
            }
            Registered::Dropped(io) => {
                drop(io);
                false
            }
            Registered::Closed(io) => {
                futures_lite::future::block_on(io.close()).unwrap();
                true
            }
        }
    }
}

/// Times of one kind and way.
struct Times {
    name: String,
    all: Vec<Duration>,
}

impl Times {
    fn new(name: String) -> Times {
        Times {
            name,
            all: Vec::new(),
        }
    }

    fn print(mut self) {
        self.all.sort();
        let (median, worst) = (self.all[self.all.len() / 2], self.all.last().unwrap());
        println!(
            "{:40} median {median:>10.1?}, worst {worst:>10.1?}",
            self.name
        );
    }
}

/// Closes each kind in each way, with a reactor that another thread turns, and waits until that is seen.
/// `before` brings the reactor into the state that it shall be in.
fn time_elsewhere(handle: &Handle, before: impl Fn()) {
    let at_first = open_descriptors();
    for (way, name) in WAYS.into_iter().enumerate() {
        for kind in KINDS {
            let mut times = Times::new(format!("{name}, {kind:?}"));
            for round in 0..ROUNDS {
                let (io, seen, poke) = open(kind);
                let registered = Registered::new(way, io, handle);
                pass(handle);
                before();
                assert!(!seen());
                if round % 2 == 1 {
                    poke();
                }
                let start = Instant::now();
                let at_once = registered.end();
                if at_once {
                    assert!(seen(), "{name}, {kind:?}: complete, and not closed");
                } else {
                    yield_until(&seen);
                }
                times.all.push(start.elapsed());
            }
            times.print();
        }
    }
    wait_until(|| open_descriptors() == at_first);
}

/// Waits for a turn that began after this call: what was registered before is armed then.
fn pass(handle: &Handle) {
    let before = handle.metrics().turns;
    wait_until(|| {
        handle.wake();
        handle.metrics().turns >= before + 3
    });
}

/// As [`wait_until`], to the microsecond.
#[track_caller]
fn yield_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < BOUND,
            "the condition did not hold in time"
        );
        thread::yield_now();
    }
}

/// With a reactor that nobody turns any more: all of it is closed when the call returns.
fn time_without_turns(name: &str, mut reactor: impl FnMut() -> (Handle, Box<dyn FnOnce()>)) {
    let at_first = open_descriptors();
    for (way, way_name) in WAYS.into_iter().enumerate() {
        let (handle, end) = reactor();
        let open: Vec<_> = KINDS
            .into_iter()
            .map(|kind| {
                let (io, seen, _) = open(kind);
                (kind, Registered::new(way, io, &handle), seen)
            })
            .collect();
        end();
        for (kind, registered, seen) in open {
            let mut times = Times::new(format!("{name}: {way_name}, {kind:?}"));
            let start = Instant::now();
            registered.end();
            assert!(seen(), "{way_name}, {kind:?}");
            times.all.push(start.elapsed());
            times.print();
        }
        drop(handle);
        assert_eq!(open_descriptors(), at_first);
    }
}

both_backends_in_child! {
    fn with_a_busy_reactor(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        let handle = turning.handle();
        // Never without an event: each waker asks for the next.
        let over = Arc::new(AtomicBool::new(false));
        let whirls: Vec<_> = (0..64).map(|_| Whirl::start(handle, &over)).collect();
        time_elsewhere(handle, || {});
        over.store(true, Ordering::Relaxed);
        drop(whirls);
        let mut reactor = turning.stop();
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn with_a_sleeping_reactor(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        time_elsewhere(turning.handle(), || turning.wait_until_parked());
    }

    fn with_a_reactor_that_sleeps_for_itself(backend: Backend) {
        let background = reactor(backend).background().unwrap();
        time_elsewhere(&background.handle(), || {});
    }

    fn with_a_reactor_that_has_moved(backend: Backend) {
        let mut first = reactor(backend);
        settle(&mut first);
        // Its files are held by the ring that it left behind, for as long as that takes.
        for (way, name) in WAYS.into_iter().enumerate() {
            let at_first = open_descriptors();
            let open: Vec<_> = KINDS
                .into_iter()
                .map(|kind| {
                    let (io, seen, _) = open(kind);
                    (kind, Registered::new(way, io, &first.handle()), seen)
                })
                .collect();
            settle(&mut first);
            let turning = Turning::start(first);
            pass(turning.handle());
            let start = Instant::now();
            for (kind, registered, seen) in open {
                let at_once = registered.end();
                assert!(!at_once || seen());
                yield_until(seen);
                println!("{name}, {kind:?}, moved before: {:?}", start.elapsed());
            }
            first = turning.stop();
            settle(&mut first);
            let first = &mut first;
            wait_until(|| {
                first.turn(NOW).unwrap();
                open_descriptors() == at_first
            });
        }
    }

    fn all_at_once_after_a_move(backend: Backend) {
        // The kernel lets go of many files one after the other.
        let n = descriptors_to_spare(2_000) / 2;
        let mut reactor = reactor(backend);
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..n).map(|_| unix_pair()).unzip();
        let ours: Vec<_> = ours
            .into_iter()
            .map(|io| AsyncFd::with_handle(io, &reactor.handle()).unwrap())
            .collect();
        settle(&mut reactor);
        thread::scope(|scope| {
            scope.spawn(|| {
                reactor.turn(NOW).unwrap();
                let start = Instant::now();
                let closes: Vec<_> = ours.into_iter().map(AsyncFd::close).collect();
                reactor.block_on(async {
                    for (close, theirs) in closes.into_iter().zip(&theirs) {
                        close.await.unwrap();
                        assert!(at_end(theirs), "complete, and not closed");
                    }
                }).unwrap();
                println!("{n} at once: {:?}", start.elapsed());
            });
        });
        assert!(reactor.is_idle());
    }

    fn between_the_turns_of_an_idle_reactor(backend: Backend) {
        let mut reactor = reactor(backend);
        settle(&mut reactor);
        let at_first = open_descriptors();
        for (way, name) in WAYS.into_iter().enumerate() {
            for kind in KINDS {
                let mut times = Times::new(format!("{name}, {kind:?}"));
                for round in 0..ROUNDS {
                    let (io, seen, poke) = open(kind);
                    let registered = Registered::new(way, io, &reactor.handle());
                    settle(&mut reactor);
                    assert!(!seen());
                    if round % 2 == 1 {
                        // A wake-up is under way.
                        poke();
                    }
                    let start = Instant::now();
                    if let Registered::Closed(io) = registered {
                        reactor.block_on(io.close()).unwrap().unwrap();
                    } else {
                        registered.end();
                        reactor.turn(NOW).unwrap();
                    }
                    assert!(seen(), "{name}, {kind:?}");
                    times.all.push(start.elapsed());
                }
                times.print();
            }
        }
        assert!(reactor.is_idle());
        assert_eq!(open_descriptors(), at_first);
    }

    fn after_a_shutdown(backend: Backend) {
        time_without_turns("shut down", || {
            let background = reactor(backend).background().unwrap();
            let handle = background.handle();
            (handle, Box::new(move || background.shutdown_now().wait()))
        });
    }

    fn after_the_drop_of_the_reactor(backend: Backend) {
        for turns in 0..2 {
            time_without_turns("dropped", || {
                let mut reactor = reactor(backend);
                let handle = reactor.handle();
                let end = move || {
                    for _ in 0..turns {
                        reactor.turn(NOW).unwrap();
                    }
                    drop(reactor);
                };
                (handle, Box::new(end))
            });
        }
    }

    fn before_the_drop_of_the_reactor(backend: Backend) {
        let at_first = open_descriptors();
        for (way, name) in WAYS.into_iter().enumerate().take(3) {
            let mut times = Times::new(format!("{name}, all, then the reactor's drop"));
            for _ in 0..ROUNDS {
                let mut reactor = reactor(backend);
                let open: Vec<_> = KINDS
                    .into_iter()
                    .map(|kind| {
                        let (io, seen, _) = open(kind);
                        (Registered::new(way, io, &reactor.handle()), seen)
                    })
                    .collect();
                settle(&mut reactor);
                let start = Instant::now();
                let (registered, seen): (Vec<_>, Vec<_>) = open.into_iter().unzip();
                for registered in registered {
                    registered.end();
                }
                drop(reactor);
                assert!(seen.iter().all(|seen| seen()), "{name}");
                times.all.push(start.elapsed());
            }
            times.print();
        }
        assert_eq!(open_descriptors(), at_first);
    }

    fn thousands_at_once(backend: Backend) {
        let n = descriptors_to_spare(10_000) / 2;
        let mut reactor = reactor(backend);
        settle(&mut reactor);
        let at_first = open_descriptors();
        for (way, name) in WAYS.into_iter().enumerate().take(3) {
            let (registered, peers): (Vec<_>, Vec<_>) = (0..n)
                .map(|_| {
                    let (ours, theirs) = unix_pair();
                    (Registered::new(way, ours.into(), &reactor.handle()), theirs)
                })
                .unzip();
            settle(&mut reactor);
            let (start, mut turns) = (Instant::now(), 0);
            for registered in registered {
                registered.end();
            }
            wait_until(|| {
                turns += 1;
                reactor.turn(NOW).unwrap();
                peers.iter().all(at_end)
            });
            println!("{name}, {n} at once: {turns} turns, {:?}", start.elapsed());
            assert!(turns <= 1 + n / 1000, "{turns} turns for {n}");
            assert!(reactor.is_idle());
            drop(peers);
            assert_eq!(open_descriptors(), at_first);
        }
    }
}

/// A descriptor that becomes ready again whenever somebody hears that it is.
struct Whirl {
    _io: Arc<OwnedFd>,
    _registration: Arc<Registration>,
}

impl Whirl {
    fn start(handle: &Handle, over: &Arc<AtomicBool>) -> Whirl {
        let io = Arc::new(event_fd());
        let registration = Arc::new(Registration::new());
        let first = registration.register_interest(&*io, Interest::READABLE, handle);
        assert!(first.unwrap());
        Whirl::again(&io, &registration, over);
        Whirl {
            _io: io,
            _registration: registration,
        }
    }

    fn again(io: &Arc<OwnedFd>, registration: &Arc<Registration>, over: &Arc<AtomicBool>) {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let (inner, own, over) = (
            Arc::clone(io),
            Arc::downgrade(registration),
            Arc::clone(over),
        );
        let waker = waker_fn(move || {
            if let Some(registration) = own.upgrade() {
                let _ = registration.take_read_ready();
                Whirl::again(&inner, &registration, &over);
            }
        });
        while poll_read(registration, &waker).is_ready() {}
        signal(&**io);
    }
}

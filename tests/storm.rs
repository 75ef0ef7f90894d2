//! Everything at once: threads that register, poll, end and close at random, and what must hold
//! when the dust has settled.

mod common;

use common::descriptors::*;
use common::*;
use std::env;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uring_reactor::{Handle, Interest, Reactor, Registration};

const THREADS: u64 = 4;
const STEPS: usize = 2_000;

/// Sets the seed that a failure has printed.
const SEED: &str = "URING_REACTOR_TEST_SEED";

/// A small generator of random numbers (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn new() -> Random {
        let seed = match env::var(SEED) {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                now.as_nanos() as u64
            }
        };
        println!("{SEED}={seed}");
        Random(seed | 1)
    }

    fn fork(&mut self) -> Random {
        Random(self.next().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// One connection of the storm, as far as it lives.
struct Connection {
    ours: Option<UnixStream>,
    theirs: UnixStream,
    registrations: Vec<Registration>,
    /// By registration and stream: whose last answer was to wait, and how many had been woken before that.
    waiting: [[Option<usize>; 2]; 2],
    woken: Arc<Count>,
}

impl Connection {
    fn new(handle: &Handle, random: &mut Random) -> Connection {
        let (ours, theirs) = unix_pair();
        let interests = [
            Interest::READABLE,
            Interest::WRITABLE,
            Interest::READABLE | Interest::WRITABLE,
            Interest::READABLE | Interest::PRIORITY,
        ];
        let registrations = (0..=random.below(2))
            .map(|_| {
                let registration = Registration::new();
                let interest = interests[random.below(interests.len())];
                assert!(
                    registration
                        .register_interest(&ours, interest, handle)
                        .unwrap()
                );
                registration
            })
            .collect();
        let (woken, _) = counting_waker();
        Connection {
            ours: Some(ours),
            theirs,
            registrations,
            waiting: [[None; 2]; 2],
            woken,
        }
    }

    fn step(&mut self, random: &mut Random) {
        let which = random.below(self.registrations.len());
        let registration = &self.registrations[which];
        let waker = std::task::Waker::from(Arc::clone(&self.woken));
        let woken = self.woken.get();
        match random.below(6) {
            0 => drop(rustix::io::write(&self.theirs, b"some")),
            1 => drop(drain(&self.theirs)),
            2 => {
                let answer = poll_read(registration, &waker);
                self.waiting[which][0] = answer.is_pending().then_some(woken);
            }
            3 => {
                let answer = poll_write(registration, &waker);
                self.waiting[which][1] = answer.is_pending().then_some(woken);
            }
            4 => {
                if let Some(ours) = &self.ours {
                    let _ = registration.take_read_ready().unwrap();
                    drain(ours);
                }
            }
            _ => {
                if let Some(ours) = &self.ours {
                    let _ = registration.take_write_ready().unwrap();
                    fill(ours);
                }
            }
        }
    }

    /// Ends it in one of the ways there are. The peer's end is what is left.
    fn end(mut self, random: &mut Random) -> UnixStream {
        let ours = self.ours.take().unwrap();
        match random.below(5) {
            0 => drop((self.registrations, ours)),
            // Out of order, which safe code can do.
            1 => drop((ours, self.registrations)),
            2 => {
                for registration in &mut self.registrations {
                    registration.deregister(&ours).unwrap();
                }
                drop(ours);
            }
            3 => {
                let mut last = self.registrations.pop().unwrap();
                drop(self.registrations);
                last.deregister_and_close(ours).unwrap();
            }
            _ => {
                let first = &mut self.registrations[0];
                first.deregister(&ours).unwrap();
                first.deregister_and_close(ours).unwrap();
                self.registrations.clear();
            }
        }
        // By a turn that was under way already, it may be, and so a moment later.
        let waiting = self.waiting.into_iter().flatten().flatten();
        wait_until(|| waiting.clone().all(|before| self.woken.get() > before));
        self.theirs
    }
}

/// What one thread does.
fn rage(handle: &Handle, mut random: Random) -> Vec<UnixStream> {
    let mut connections = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..STEPS {
        match random.below(8) {
            0 if connections.len() < 40 => connections.push(Connection::new(handle, &mut random)),
            1 if !connections.is_empty() => {
                let connection = connections.swap_remove(random.below(connections.len()));
                peers.push(connection.end(&mut random));
            }
            2 => handle.wake(),
            _ if !connections.is_empty() => {
                let index = random.below(connections.len());
                connections[index].step(&mut random);
            }
            _ => {}
        }
    }
    peers.extend(
        connections
            .into_iter()
            .map(|connection| connection.end(&mut random)),
    );
    peers
}

fn storm(handle: &Handle) -> Vec<UnixStream> {
    let mut random = Random::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let random = random.fork();
                scope.spawn(move || rage(handle, random))
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Whether every peer has seen the end.
fn all_at_end(peers: &[UnixStream]) -> bool {
    peers.iter().all(at_end)
}

#[track_caller]
fn assert_calm(reactor: &mut Reactor, peers: Vec<UnixStream>, open: usize) {
    reactor.turn(Some(Duration::ZERO)).unwrap();
    assert!(all_at_end(&peers));
    settle(reactor);
    assert!(reactor.is_idle());
    assert_eq!(reactor.metrics().registered, 0);
    drop(peers);
    // A ring that was left behind in a move takes its time, and a descriptor to watch its end.
    wait_until(|| {
        settle(reactor);
        open_descriptors() == open
    });
    // Still good for something.
    let event = event_fd();
    let registration = register(&event, reactor);
    signal(&event);
    read_ready(reactor, &registration, uring_reactor::Ready::READABLE);
}

both_backends_in_child! {
    fn a_reactor_that_turns_elsewhere_weathers_it(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        turning.pass();
        let open = open_descriptors();
        let peers = storm(turning.handle());
        // Nobody asks for it: what has ended is let go.
        wait_until(|| all_at_end(&peers));
        let mut reactor = turning.stop();
        assert_calm(&mut reactor, peers, open);
    }

    fn a_reactor_that_moves_all_the_time_weathers_it(backend: Backend) {
        let mut reactor = reactor(backend);
        settle(&mut reactor);
        let handle = reactor.handle();
        let over = AtomicUsize::new(0);
        let (mut reactor, peers) = thread::scope(|scope| {
            let mover = scope.spawn(|| {
                while over.load(Ordering::SeqCst) == 0 {
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            for _ in 0..10 {
                                reactor.turn(Some(Duration::from_millis(1))).unwrap();
                            }
                        });
                    });
                }
                reactor
            });
            let peers = storm(&handle);
            over.store(1, Ordering::SeqCst);
            (mover.join().unwrap(), peers)
        });
        settle(&mut reactor);
        // The rings that were left behind take their time.
        wait_until(|| {
            reactor.turn(Some(Duration::ZERO)).unwrap();
            all_at_end(&peers)
        });
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn a_nested_reactor_weathers_it(backend: Backend) {
        let mut reactor = reactor(backend);
        reactor.as_fd();
        settle(&mut reactor);
        let open = open_descriptors();
        let handle = reactor.handle();
        let over = AtomicUsize::new(0);
        let (mut reactor, peers) = thread::scope(|scope| {
            let outer = scope.spawn(|| {
                while over.load(Ordering::SeqCst) == 0 {
                    assert!(is_readable(&reactor, BOUND));
                    reactor.turn(Some(Duration::ZERO)).unwrap();
                }
                reactor
            });
            let peers = storm(&handle);
            over.store(1, Ordering::SeqCst);
            handle.wake();
            (outer.join().unwrap(), peers)
        });
        assert_calm(&mut reactor, peers, open);
    }

    fn its_end_in_the_middle_of_it_is_weathered(backend: Backend) {
        for _ in 0..10 {
            let mut random = Random::new();
            let open = open_descriptors();
            let background = reactor(backend).background().unwrap();
            let handle = background.handle();
            let peers = thread::scope(|scope| {
                let (handle, random) = (&handle, random.fork());
                let user = scope.spawn(move || rage_until_gone(handle, random));
                thread::sleep(Duration::from_millis(5));
                drop(background);
                user.join().unwrap()
            });
            assert!(all_at_end(&peers));
            drop((peers, handle));
            assert_eq!(open_descriptors(), open);
        }
    }
}

/// Registers, waits and ends, until it is told that the reactor is gone.
fn rage_until_gone(handle: &Handle, mut random: Random) -> Vec<UnixStream> {
    let mut peers = Vec::new();
    loop {
        let (ours, theirs) = unix_pair();
        let mut registration = Registration::new();
        peers.push(theirs);
        if registration.register_with(&ours, handle).is_err() {
            return peers;
        }
        let (count, waker) = counting_waker();
        if random.below(2) == 0 && poll_read(&registration, &waker).is_pending() {
            put(peers.last().unwrap(), b"x");
            // By the event, or by the end of the reactor.
            wait_until(|| count.get() == 1);
        }
        match random.below(3) {
            0 => registration.deregister(&ours).unwrap(),
            1 => registration.deregister_and_close(ours).unwrap(),
            _ => {}
        }
    }
}

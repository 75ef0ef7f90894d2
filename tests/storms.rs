//! More at once than fits: overflowed queues, re-armings by the thousand, floods of writes, an intake
//! that fills faster than it is drained.

mod common;

use common::descriptors::*;
use common::*;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};
use uring_reactor::{Backend, Handle, Interest, Reactor, Ready, Registration};

const NOW: Option<Duration> = Some(Duration::ZERO);

/// Little enough memory that the queues of a ring come out small.
const LITTLE: u64 = 64 * 1024;

fn many(reactor: &Reactor, n: usize) -> Vec<(OwnedFd, Registration)> {
    (0..n)
        .map(|_| {
            let event = event_fd();
            let registration = register_interest(&event, Interest::READABLE, reactor);
            (event, registration)
        })
        .collect()
}

/// Makes a small queue overflow with the next turn. What polls report is posted a few at a time, which a
/// reactor keeps up with. But that a descriptor was closed is posted at once, and there can be any number
/// of those in one batch, if no cancel goes before them: as for polls for urgent data, which are not on
/// the ring.
fn overflow(reactor: &mut Reactor, n: usize) {
    let closing: Vec<_> = (0..n)
        .map(|_| {
            let event = event_fd();
            let registration = register_interest(&event, Interest::PRIORITY, reactor);
            (event, registration)
        })
        .collect();
    reactor.turn(NOW).unwrap();
    for (event, mut registration) in closing {
        registration.deregister_and_close(event).unwrap();
    }
}

fn signal_all(many: &[(OwnedFd, Registration)]) {
    for (event, _) in many {
        signal(event);
    }
}

/// Turns until each has reported once more.
#[track_caller]
fn hear_all(reactor: &mut Reactor, many: &[(OwnedFd, Registration)]) {
    let mut heard = vec![false; many.len()];
    turn_until(reactor, || {
        for (heard, (_, registration)) in heard.iter_mut().zip(many) {
            *heard |= registration.take_read_ready().unwrap().is_some();
        }
        heard.iter().all(|heard| *heard)
    });
}

fn assert_overflowed(reactor: &Reactor) {
    let metrics = reactor.metrics();
    if reactor.backend() == Backend::Uring {
        assert!(metrics.overflows > 0, "nothing overflew: {metrics:?}");
        assert!(metrics.rearms > 0, "no poll was ended: {metrics:?}");
    }
}

/// A reactor that overflows early, and how many descriptors will make it.
fn easily_overflowing(backend: Backend) -> (Reactor, usize) {
    limit_locked_memory(LITTLE);
    (reactor(backend), descriptors_to_spare(2_000) / 2)
}

both_backends_in_child! {
    fn every_round_of_an_overflow_is_heard(backend: Backend) {
        let (mut reactor, n) = easily_overflowing(backend);
        let many = many(&reactor, n);
        for _ in 0..4 {
            overflow(&mut reactor, n);
            signal_all(&many);
            hear_all(&mut reactor, &many);
        }
        assert_overflowed(&reactor);
    }

    fn what_comes_while_the_queue_overflows_is_heard(backend: Backend) {
        let (mut reactor, n) = easily_overflowing(backend);
        let many = many(&reactor, n);
        for _ in 0..4 {
            overflow(&mut reactor, n);
            signal_all(&many);
            // One turn may leave some of it behind; what it reported is forgotten, and comes again.
            reactor.turn(NOW).unwrap();
            for (_, registration) in &many {
                registration.take_read_ready().unwrap();
            }
            signal_all(&many);
            hear_all(&mut reactor, &many);
        }
        assert_overflowed(&reactor);
    }

    fn an_overflow_does_not_take_the_doorbell_away(backend: Backend) {
        let (mut reactor, n) = easily_overflowing(backend);
        let handle = reactor.handle();
        settle(&mut reactor);
        let many = many(&reactor, n);
        for _ in 0..4 {
            overflow(&mut reactor, n);
            signal_all(&many);
            thread::scope(|scope| {
                // In the middle of the rest, so that its completion may be one without room.
                scope.spawn(|| {
                    for _ in 0..100 {
                        handle.wake();
                        thread::yield_now();
                    }
                });
                hear_all(&mut reactor, &many);
            });
            settle(&mut reactor);
            let start = Instant::now();
            thread::scope(|scope| {
                scope.spawn(|| handle.wake());
                reactor.turn(Some(BOUND)).unwrap();
            });
            assert!(start.elapsed() < BOUND / 2, "a wake was not heard");
            let event = event_fd();
            let registration = Registration::new();
            thread::scope(|scope| {
                scope.spawn(|| {
                    registration.register_with(&event, &handle).unwrap();
                    signal(&event);
                });
                read_ready_of(&mut reactor, &registration);
            });
        }
        assert_overflowed(&reactor);
    }

    fn what_ends_in_an_overflow_is_let_go(backend: Backend) {
        let (mut reactor, n) = easily_overflowing(backend);
        settle(&mut reactor);
        let open = open_descriptors();
        for _ in 0..3 {
            let (pairs, registrations): (Vec<_>, Vec<_>) = (0..n)
                .map(|_| {
                    let pair = unix_pair();
                    let registration = register(&pair.0, &reactor);
                    (pair, registration)
                })
                .unzip();
            reactor.turn(NOW).unwrap();
            for (_, theirs) in &pairs {
                put(theirs, b"x");
            }
            drop(registrations);
            let peers: Vec<_> = pairs.into_iter().map(|(_, theirs)| theirs).collect();
            turn_until_zero(&mut reactor, || peers.iter().all(at_end));
            settle(&mut reactor);
            assert!(reactor.is_idle());
            drop(peers);
            assert_eq!(open_descriptors(), open);
        }
    }

    fn a_move_finds_room_for_its_ring_where_locked_memory_is_short(backend: Backend) {
        // Enough for one ring, and for none besides.
        for limit in [64, 32, 24].map(|kibibytes| kibibytes << 10) {
            limit_locked_memory(limit);
            let mut reactor = reactor(backend);
            let event = event_fd();
            let registration = register_interest(&event, Interest::READABLE, &reactor);
            settle(&mut reactor);
            for _ in 0..5 {
                signal(&event);
                let (reactor, registration) = (&mut reactor, &registration);
                thread::scope(|scope| {
                    scope.spawn(|| read_ready(reactor, registration, Ready::READABLE));
                });
            }
        }
    }

    fn an_intake_that_is_filled_without_pause_is_caught_up_with(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        turning.pass();
        let over = AtomicBool::new(false);
        let (made, before) = (AtomicU64::new(0), resident());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let event = event_fd();
                    while !over.load(Ordering::Relaxed) {
                        let registration = Registration::new();
                        registration.register_with(&event, turning.handle()).unwrap();
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let seconds = std::env::var("URING_REACTOR_TEST_SECONDS");
            let seconds = Duration::from_secs(seconds.map_or(1, |seconds| seconds.parse().unwrap()));
            let (start, mut most, mut caught_up) = (Instant::now(), 0, 0);
            // Left to themselves, four threads get ahead of one further and further.
            while start.elapsed() < seconds || caught_up < 3 {
                let further = made.load(Ordering::Relaxed) + 300_000;
                holds_within(BOUND / 4, || made.load(Ordering::Relaxed) > further);
                let soon = holds_within(BOUND, || {
                    let waiting = turning.handle().metrics().registered;
                    most = most.max(waiting);
                    waiting < 50_000
                });
                if !soon {
                    break;
                }
                caught_up += 1;
            }
            over.store(true, Ordering::Relaxed);
            let grown = resident().saturating_sub(before) >> 20;
            println!("{made:?} registrations came and went, {most} at most at a time, +{grown} MiB");
            assert!(caught_up >= 3, "the reactor falls behind");
            assert!(most < 5_000_000, "{most} were waiting");
        });
        let mut reactor = turning.stop();
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }
}

both_backends! {
    fn a_storm_of_writes_on_unix_sockets_loses_no_turnaround(backend: Backend) {
        let mut reactor = reactor(backend);
        let pairs: Vec<_> = (0..16).map(|_| unix_pair()).collect();
        storm_of_writes(&mut reactor, &pairs);
    }

    fn a_storm_of_datagrams_loses_no_turnaround(backend: Backend) {
        let mut reactor = reactor(backend);
        let pairs: Vec<_> = (0..16).map(|_| datagram_pair()).collect();
        storm_of_writes(&mut reactor, &pairs);
    }

    fn wakers_that_do_everything_leave_nothing_behind(backend: Backend) {
        let mut reactor = reactor(backend);
        let events: Arc<Vec<OwnedFd>> = Arc::new((0..16).map(|_| event_fd()).collect());
        let places: Vec<_> = (0..64).map(|_| Mutex::new(None)).collect();
        let whirl = Arc::new(Whirl {
            handle: reactor.handle(),
            events: Arc::clone(&events),
            places,
            calls: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        for place in 0..whirl.places.len() {
            whirl.renew(place);
        }
        turn_until_zero(&mut reactor, || {
            events.iter().for_each(signal);
            whirl.calls.load(Ordering::Relaxed) > 20_000
        });
        // The end of a registration calls its waker, too.
        whirl.over.store(true, Ordering::Relaxed);
        for place in &whirl.places {
            drop(place.lock().unwrap().take());
        }
        settle(&mut reactor);
        assert!(reactor.is_idle());
        // Every waker is gone, and with it what it held.
        assert_eq!(Arc::strong_count(&whirl), 1);
    }

    fn a_storm_of_rearmings_ends(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        signal(&event);
        // Each of these widens its interest, which ends its poll and arms another.
        for _ in 0..5 {
            let registrations: Vec<_> = (0..200)
                .map(|_| register_interest(&event, Interest::READABLE, &reactor))
                .collect();
            reactor.turn(NOW).unwrap();
            for registration in &registrations {
                let _ = poll_write(registration, std::task::Waker::noop());
            }
            for registration in &registrations {
                write_ready(&mut reactor, registration, Ready::WRITABLE);
            }
            drop(registrations);
            settle(&mut reactor);
            assert!(reactor.is_idle());
        }
    }
}

/// Registrations whose wakers end, make, poll and wake registrations.
struct Whirl {
    handle: Handle,
    events: Arc<Vec<OwnedFd>>,
    places: Vec<Mutex<Option<Registration>>>,
    calls: AtomicU64,
    over: AtomicBool,
}

impl Whirl {
    fn waker(self: &Arc<Whirl>, place: usize) -> Waker {
        let whirl = Arc::clone(self);
        waker_fn(move || {
            if whirl.over.load(Ordering::Relaxed) {
                return;
            }
            let call = whirl.calls.fetch_add(1, Ordering::Relaxed) as usize;
            let other = (place * 7 + call) % whirl.places.len();
            match call % 4 {
                // Itself, while it is being called.
                0 => whirl.renew(place),
                1 => whirl.renew(other),
                2 => whirl.handle.wake(),
                _ => drop(whirl.waker(other).clone()),
            }
            whirl.poll(place);
        })
    }

    fn renew(self: &Arc<Whirl>, place: usize) {
        let registration = Registration::new();
        let event = &self.events[place % self.events.len()];
        let _ = registration.register_interest(event, Interest::READABLE, &self.handle);
        let Ok(mut held) = self.places[place].try_lock() else {
            return;
        };
        let before = held.replace(registration);
        drop(held);
        drop(before);
        self.poll(place);
    }

    fn poll(self: &Arc<Whirl>, place: usize) {
        let waker = self.waker(place);
        // A waker of ours is called by this very poll, and comes back here.
        if let Ok(held) = self.places[place].try_lock()
            && let Some(registration) = &*held
        {
            while matches!(
                poll_read(registration, &waker),
                std::task::Poll::Ready(Ok(_))
            ) {}
        }
    }
}

/// Turns until a registration that another thread is making has reported.
#[track_caller]
fn read_ready_of(reactor: &mut Reactor, registration: &Registration) {
    turn_until(
        reactor,
        || matches!(registration.take_read_ready(), Ok(Some(ready)) if ready.is_readable()),
    );
}

/// Turns, without sleeping, until the condition holds.
#[track_caller]
fn turn_until_zero(reactor: &mut Reactor, mut condition: impl FnMut() -> bool) {
    wait_until(|| {
        reactor.turn(NOW).unwrap();
        condition()
    });
}

/// Each end is filled and emptied in turns; whoever found no room, or nothing, is told when there is.
fn storm_of_writes<S: AsFd>(reactor: &mut Reactor, pairs: &[(S, S)]) {
    let registrations: Vec<_> = pairs
        .iter()
        .map(|(ours, _)| register(ours, reactor))
        .collect();
    settle(reactor);
    for _ in 0..10 {
        for ((ours, theirs), registration) in pairs.iter().zip(&registrations) {
            fill_bytes(ours);
            fill_bytes(theirs);
            registration.take_read_ready().unwrap();
            registration.take_write_ready().unwrap();
        }
        settle(reactor);
        for ((ours, theirs), registration) in pairs.iter().zip(&registrations) {
            registration.take_read_ready().unwrap();
            registration.take_write_ready().unwrap();
            empty(ours);
            empty(theirs);
            fill_bytes(theirs);
        }
        for registration in &registrations {
            read_ready(reactor, registration, Ready::READABLE);
            write_ready(reactor, registration, Ready::WRITABLE);
        }
        for (ours, _) in pairs {
            empty(ours);
        }
    }
}

/// Small pieces until there is no room.
fn fill_bytes(io: &impl AsFd) {
    while rustix::io::write(io, &[7; 2048]).is_ok() {}
}

fn empty(io: &impl AsFd) {
    while rustix::io::read(io, &mut [0; 4096]).is_ok_and(|n| n > 0) {}
}

/// Memory in use, in bytes.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

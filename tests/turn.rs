//! Turns: how long they take, what ends them, and what they count.

mod common;

use common::descriptors::*;
use common::*;
use std::mem;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use uring_reactor::{Backend, Interest, Reactor, Ready, Registration};

/// Long enough to fail a test that waits for it.
const LONG: Option<Duration> = Some(Duration::from_secs(1000));
const ZERO: Option<Duration> = Some(Duration::ZERO);

fn many_event_fds(n: usize) -> Vec<OwnedFd> {
    (0..n).map(|_| event_fd()).collect()
}

/// How many of these have reported readable since the last look.
fn readable(registrations: &[Registration]) -> usize {
    registrations
        .iter()
        .filter(|registration| {
            let ready = registration.take_read_ready().unwrap();
            ready.is_some_and(|ready| ready.is_readable())
        })
        .count()
}

both_backends! {
    fn a_zero_timeout_never_sleeps(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let before = sleeps();
        for _ in 0..1000 {
            assert_eq!(reactor.turn(ZERO).unwrap().events(), 0);
        }
        let switches = sleeps() - before;
        assert!(switches < 100, "{switches} sleeps in 1000 turns");
        drop(registration);
    }

    fn a_zero_timeout_sees_what_is_ready(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        for _ in 0..50 {
            settle(&mut reactor);
            signal(&event);
            assert_eq!(reactor.turn(ZERO).unwrap().events(), 1);
            assert_eq!(
                registration.take_read_ready().unwrap(),
                Some(Ready::READABLE)
            );
        }
    }

    fn a_turn_without_events_takes_its_timeout_and_not_more(backend: Backend) {
        let mut reactor = reactor(backend);
        for registered in [false, true] {
            let (ours, _theirs) = unix_pair();
            let _registration =
                registered.then(|| register_interest(&ours, Interest::READABLE, &reactor));
            settle(&mut reactor);
            for timeout in [Duration::from_millis(50), Duration::from_micros(300)] {
                let start = Instant::now();
                let turn = reactor.turn(Some(timeout)).unwrap();
                assert_eq!(turn.events(), 0);
                let took = start.elapsed();
                assert!(took >= timeout * 9 / 10, "{timeout:?}: only {took:?}");
                assert!(
                    took < timeout + Duration::from_secs(3),
                    "{timeout:?}: {took:?}"
                );
            }
        }
    }

    fn a_timeout_is_not_rounded_up_to_the_next_millisecond(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let _registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let timeout = Duration::from_micros(50);
        let mut shortest = Duration::MAX;
        for _ in 0..1000 {
            let start = Instant::now();
            reactor.turn(Some(timeout)).unwrap();
            shortest = shortest.min(start.elapsed());
        }
        assert!(shortest >= timeout, "{shortest:?}");
        assert!(shortest < Duration::from_millis(1), "{shortest:?}");
    }

    fn a_turn_waits_at_most_once(backend: Backend) {
        // Events that nobody asked for any more, and entries of its own, do not make it wait anew.
        let mut reactor = reactor(backend);
        let timeout = Duration::from_millis(400);
        for _ in 0..3 {
            let (ours, theirs) = unix_pair();
            let registration = register(&ours, &reactor);
            settle(&mut reactor);
            put(&theirs, b"x");
            drop(registration);
            let start = Instant::now();
            reactor.turn(Some(timeout)).unwrap();
            assert!(start.elapsed() < timeout * 2);
        }
    }

    fn an_event_ends_a_turn_at_once(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        for round in 0..20 {
            settle(&mut reactor);
            registration.take_read_ready().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    if round % 2 == 0 {
                        thread::sleep(Duration::from_millis(2));
                    }
                    signal(&event);
                });
                let start = Instant::now();
                let turn = reactor
                    .turn(if round % 3 == 0 { None } else { LONG })
                    .unwrap();
                assert_eq!(turn.events(), 1);
                assert!(start.elapsed() < BOUND);
            });
        }
    }

    fn the_longest_timeout_is_a_timeout(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        for timeout in [
            Duration::MAX,
            Duration::from_secs(i64::MAX as u64),
            Duration::from_millis(u64::MAX),
        ] {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(5));
                    handle.wake();
                });
                reactor.turn(Some(timeout)).unwrap();
            });
        }
    }

    fn the_shortest_timeout_ends(backend: Backend) {
        let mut reactor = reactor(backend);
        for _ in 0..100 {
            reactor.turn(Some(Duration::from_nanos(1))).unwrap();
        }
    }

    fn a_wake_ends_the_current_turn(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        for _ in 0..20 {
            turning.wait_until_parked();
            let before = turning.handle().metrics().turns;
            turning.handle().wake();
            wait_until(|| turning.handle().metrics().turns > before);
        }
    }

    fn a_wake_before_a_turn_ends_the_next_one(backend: Backend) {
        let mut reactor = reactor(backend);
        // Also before the very first.
        for _ in 0..5 {
            reactor.handle().wake();
            assert_eq!(reactor.turn(None).unwrap().events(), 0);
        }
    }

    fn a_wake_is_no_event(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        for _ in 0..20 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(1));
                    handle.wake();
                });
                assert_eq!(reactor.turn(None).unwrap().events(), 0);
            });
        }
        assert_eq!(reactor.metrics().events, 0);
    }

    fn wakes_coalesce(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let timeout = Duration::from_millis(30);
        for _ in 0..3 {
            for _ in 0..1000 {
                handle.wake();
            }
            assert_eq!(reactor.turn(None).unwrap().events(), 0);
            let start = Instant::now();
            for _ in 0..3 {
                reactor.turn(Some(timeout)).unwrap();
            }
            assert!(start.elapsed() > timeout * 2, "turns went on ending early");
        }
        assert_eq!(reactor.metrics().wakes, 3000);
    }

    fn wakes_from_many_threads_coalesce_while_it_sleeps(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let timeout = Duration::from_millis(30);
        for _ in 0..5 {
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..100 {
                            handle.wake();
                        }
                    });
                }
                assert_eq!(reactor.turn(None).unwrap().events(), 0);
            });
            // One more at most: a wake that came after that turn.
            reactor.turn(ZERO).unwrap();
            let start = Instant::now();
            for _ in 0..3 {
                reactor.turn(Some(timeout)).unwrap();
            }
            assert!(start.elapsed() > timeout * 2, "turns went on ending early");
        }
    }

    fn no_wake_is_lost(backend: Backend) {
        const ROUNDS: u32 = 5_000;
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let asked = AtomicU32::new(0);
        let answered = AtomicU32::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    asked.store(round, Ordering::SeqCst);
                    handle.wake();
                    while answered.load(Ordering::SeqCst) < round {
                        thread::yield_now();
                    }
                }
            });
            while answered.load(Ordering::SeqCst) < ROUNDS {
                reactor.turn(None).unwrap();
                answered.store(asked.load(Ordering::SeqCst), Ordering::SeqCst);
            }
        });
    }

    fn a_registration_from_another_thread_ends_a_turn_without_a_timeout(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        let event = event_fd();
        signal(&event);
        for _ in 0..20 {
            turning.wait_until_parked();
            let registration = Registration::new();
            let (count, waker) = counting_waker();
            registration
                .register_interest(&event, Interest::READABLE, turning.handle())
                .unwrap();
            if poll_read(&registration, &waker).is_pending() {
                wait_until(|| count.get() == 1);
            }
        }
    }

    fn a_signal_ends_a_turn_early(backend: Backend) {
        extern "C" fn handler(_: libc::c_int) {}
        // SAFETY: the handler does nothing, which is safe in any context. An all-zero `sigaction`
        // has no flags (so system calls are interrupted) and an empty mask.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            assert_eq!(
                libc::sigaction(libc::SIGURG, &raw const action, ptr::null_mut()),
                0
            );
        }
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let over = AtomicBool::new(false);
        for timeout in [None, LONG] {
            over.store(false, Ordering::SeqCst);
            thread::scope(|scope| {
                let (tell, told) = mpsc::channel();
                let (over, reactor) = (&over, &mut reactor);
                let turning = scope.spawn(move || {
                    // SAFETY: it only says which thread this is.
                    tell.send(unsafe { libc::pthread_self() }).unwrap();
                    let turn = reactor.turn(timeout).unwrap();
                    over.store(true, Ordering::SeqCst);
                    turn.events()
                });
                let thread = told.recv().unwrap();
                // It may not sleep yet when the first comes.
                wait_until(|| {
                    if !over.load(Ordering::SeqCst) {
                        // SAFETY: the thread is not joined yet, so its id is valid.
                        let error = unsafe { libc::pthread_kill(thread, libc::SIGURG) };
                        assert_eq!(error, 0);
                    }
                    over.load(Ordering::SeqCst)
                });
                assert_eq!(turning.join().unwrap(), 0);
            });
        }
        signal(&event);
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn a_turn_tells_how_many_events_it_dispatched(backend: Backend) {
        let mut reactor = reactor(backend);
        let events = many_event_fds(15);
        let registrations: Vec<_> = events
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        assert_eq!(reactor.turn(ZERO).unwrap().events(), 0);
        let before = reactor.metrics().events;
        let mut counted = 0;
        for ready in [1, 7, 15] {
            for event in &events[..ready] {
                signal(event);
            }
            let mut dispatched = 0;
            for _ in 0..20 {
                dispatched += reactor.turn(ZERO).unwrap().events();
            }
            assert_eq!(dispatched, ready);
            assert_eq!(readable(&registrations), ready);
            counted += ready;
        }
        assert_eq!(reactor.metrics().events - before, counted as u64);
    }

    fn a_hundred_that_are_ready_at_once_are_all_reported(backend: Backend) {
        let mut reactor = reactor(backend);
        let events = many_event_fds(100);
        let registrations: Vec<_> = events
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        settle(&mut reactor);
        for _ in 0..20 {
            events.iter().for_each(signal);
            settle(&mut reactor);
            assert_eq!(readable(&registrations), 100);
        }
        // Ready when they are registered, too.
        drop(registrations);
        settle(&mut reactor);
        let registrations: Vec<_> = events
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        settle(&mut reactor);
        assert_eq!(readable(&registrations), 100);
    }

    fn one_that_is_always_ready_does_not_starve_another(backend: Backend) {
        let mut reactor = reactor(backend);
        let loud = many_event_fds(200);
        let quiet = event_fd();
        let _noise: Vec<_> = loud
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        let registration = register_interest(&quiet, Interest::READABLE, &reactor);
        settle(&mut reactor);
        for _ in 0..20 {
            loud.iter().for_each(signal);
            signal(&quiet);
            let mut seen = false;
            for _ in 0..10 {
                reactor.turn(ZERO).unwrap();
                loud.iter().for_each(signal);
                seen |= registration.take_read_ready().unwrap().is_some();
            }
            assert!(seen, "not within ten turns");
        }
    }

    fn a_registration_made_while_events_flow_is_seen_to(backend: Backend) {
        let mut reactor = reactor(backend);
        let loud = many_event_fds(200);
        let _noise: Vec<_> = loud
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        settle(&mut reactor);
        for _ in 0..20 {
            let (ours, theirs) = unix_pair();
            put(&theirs, b"x");
            let mut registration = register_interest(&ours, Interest::READABLE, &reactor);
            for _ in 0..10 {
                loud.iter().for_each(signal);
                reactor.turn(ZERO).unwrap();
            }
            assert!(registration.take_read_ready().unwrap().is_some());
            registration.deregister(&ours).unwrap();
            drop(ours);
            for _ in 0..10 {
                loud.iter().for_each(signal);
                reactor.turn(ZERO).unwrap();
            }
            assert!(at_end(&theirs));
        }
    }
}

/// All of these are ready at once, again and again, and then the reactor still can be woken.
fn reports_all_of_them(reactor: &mut Reactor, n: usize) {
    let events = many_event_fds(n);
    let registrations: Vec<_> = events
        .iter()
        .map(|event| register_interest(event, Interest::READABLE, reactor))
        .collect();
    settle(reactor);
    for round in 0..3 {
        events.iter().for_each(signal);
        settle(reactor);
        assert_eq!(readable(&registrations), n, "round {round}");
        for event in &events {
            assert_eq!(rustix::io::read(event, &mut [0; 8]), Ok(8));
        }
        settle(reactor);
        readable(&registrations);
        // Nothing goes round in circles.
        assert_eq!(reactor.turn(ZERO).unwrap().events(), 0);
    }
    // What the reactor watches for its own sake has survived.
    let handle = reactor.handle();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(5));
            handle.wake();
        });
        reactor.turn(None).unwrap();
    });
    // Ready while they are armed.
    events.iter().for_each(signal);
    drop(registrations);
    let registrations: Vec<_> = events
        .iter()
        .map(|event| register_interest(event, Interest::READABLE, reactor))
        .collect();
    settle(reactor);
    assert_eq!(readable(&registrations), n);
    drop(registrations);
    reactor.turn(ZERO).unwrap();
    assert!(reactor.is_idle());
}

/// Hands over this many descriptors at once, more than any queue has room for, while others have
/// something to report.
fn closes_all_of_them(reactor: &mut Reactor, n: usize) {
    let watched = many_event_fds(200);
    let watching: Vec<_> = watched
        .iter()
        .map(|event| register_interest(event, Interest::READABLE, reactor))
        .collect();
    for round in 0..2 {
        let before = open_descriptors();
        let handed_over: Vec<_> = many_event_fds(n)
            .into_iter()
            .map(|event| (register(&event, reactor), event))
            .collect();
        settle(reactor);
        readable(&watching);
        let (ours, theirs) = unix_pair();
        let mut last = register(&ours, reactor);
        settle(reactor);
        watched.iter().for_each(signal);
        for (mut registration, event) in handed_over {
            signal(&event);
            registration.deregister_and_close(event).unwrap();
        }
        last.deregister_and_close(ours).unwrap();
        // A turn does so much and not more, so as not to keep those waiting who have events. But
        // nobody has to do anything else for the rest.
        for _ in 0..20 {
            reactor.turn(ZERO).unwrap();
        }
        // But for the other end of the last one.
        assert_eq!(open_descriptors(), before + 1, "round {round}");
        assert!(at_end(&theirs), "round {round}");
        settle(reactor);
        assert_eq!(readable(&watching), watched.len(), "round {round}");
        assert_eq!(reactor.metrics().registered, watched.len() as u64);
        // What the reactor watches for its own sake has survived.
        let handle = reactor.handle();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(5));
                handle.wake();
            });
            reactor.turn(None).unwrap();
        });
    }
    drop(watching);
    reactor.turn(ZERO).unwrap();
    assert!(reactor.is_idle());
}

// In processes of their own, for the sake of limits and of the number of descriptors.
both_backends_in_child! {
    fn thousands_that_are_ready_at_once_are_all_reported(backend: Backend) {
        let n = descriptors_to_spare(12_000);
        reports_all_of_them(&mut reactor(backend), n);
    }

    fn thousands_handed_over_for_closing_at_once_are_all_closed(backend: Backend) {
        let n = descriptors_to_spare(10_500) - 500;
        closes_all_of_them(&mut reactor(backend), n);
    }

    fn in_little_memory_it_is_the_same(backend: Backend) {
        // So little that the queues of a ring come out small.
        limit_locked_memory(64 * 1024);
        let mut reactor = reactor_in_little_memory(backend);
        let n = descriptors_to_spare(3_000) - 500;
        reports_all_of_them(&mut reactor, n);
        closes_all_of_them(&mut reactor, n);
    }
}

/// A reactor, as soon as there is memory. It is counted by user, and rings that have ended keep
/// theirs for a moment, those of failed attempts too.
fn reactor_in_little_memory(backend: Backend) -> Reactor {
    let start = Instant::now();
    loop {
        match Reactor::builder().backend(backend).build() {
            Ok(reactor) => return reactor,
            Err(error) => assert!(start.elapsed() < BOUND, "{error}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

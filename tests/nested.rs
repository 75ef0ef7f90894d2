//! A reactor inside another event loop: its descriptor says when a turn is due.

mod common;

use common::descriptors::*;
use common::*;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use uring_reactor::{AsyncFd, Backend, Interest, Reactor, Ready, Registration};

const ZERO: Option<Duration> = Some(Duration::ZERO);

/// Turns until it reports nothing, as an outer loop would.
fn serve(reactor: &mut Reactor) {
    reactor.as_fd();
    settle(reactor);
}

/// A nested reactor with nothing to do.
fn nested(backend: Backend) -> Reactor {
    let mut reactor = reactor(backend);
    serve(&mut reactor);
    assert!(!is_readable(&reactor, Duration::ZERO));
    reactor
}

both_backends! {
    fn an_event_makes_it_readable_and_a_turn_makes_it_unreadable(backend: Backend) {
        let mut reactor = nested(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        serve(&mut reactor);
        for round in 0..50 {
            assert!(!is_readable(&reactor, Duration::ZERO), "round {round}");
            signal(&event);
            assert!(is_readable(&reactor, BOUND), "round {round}");
            // Level-triggered: it can be asked again.
            assert!(is_readable(&reactor, Duration::ZERO), "round {round}");
            assert_eq!(reactor.turn(ZERO).unwrap().events(), 1, "round {round}");
            assert_eq!(
                registration.take_read_ready().unwrap(),
                Some(Ready::READABLE)
            );
            serve(&mut reactor);
        }
    }

    fn an_event_reaches_a_loop_that_sleeps_on_it(backend: Backend) {
        let mut reactor = nested(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        serve(&mut reactor);
        for _ in 0..20 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(2));
                    signal(&event);
                });
                assert!(is_readable(&reactor, BOUND));
            });
            serve(&mut reactor);
            assert!(registration.take_read_ready().unwrap().is_some());
        }
    }

    fn a_wake_makes_it_readable(backend: Backend) {
        let mut reactor = nested(backend);
        for _ in 0..20 {
            reactor.handle().wake();
            assert!(is_readable(&reactor, BOUND));
            assert_eq!(reactor.turn(None).unwrap().events(), 0);
            serve(&mut reactor);
            assert!(!is_readable(&reactor, Duration::ZERO));
        }
        let handle = reactor.handle();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(2));
                handle.wake();
            });
            assert!(is_readable(&reactor, BOUND));
        });
    }

    fn a_registration_from_another_thread_makes_it_readable(backend: Backend) {
        let mut reactor = nested(backend);
        let handle = reactor.handle();
        for _ in 0..20 {
            let (ours, theirs) = unix_pair();
            put(&theirs, b"x");
            let registration = Registration::new();
            thread::scope(|scope| {
                scope.spawn(|| {
                    registration
                        .register_interest(&ours, Interest::READABLE, &handle)
                        .unwrap();
                });
                assert!(is_readable(&reactor, BOUND));
            });
            serve(&mut reactor);
            assert!(
                registration
                    .take_read_ready()
                    .unwrap()
                    .unwrap()
                    .is_readable()
            );
            drop(registration);
            serve(&mut reactor);
            assert!(!is_readable(&reactor, Duration::ZERO));
        }
    }

    fn a_deregistration_from_another_thread_makes_it_readable(backend: Backend) {
        let mut reactor = nested(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        serve(&mut reactor);
        assert!(!is_readable(&reactor, Duration::ZERO));
        thread::scope(|scope| {
            scope.spawn(|| {
                registration.deregister(&ours).unwrap();
                drop(ours);
            });
            assert!(is_readable(&reactor, BOUND));
        });
        serve(&mut reactor);
        assert!(at_end(&theirs));
        assert!(!is_readable(&reactor, Duration::ZERO));
    }

    fn a_widened_interest_makes_it_readable(backend: Backend) {
        let mut reactor = nested(backend);
        let (ours, _theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        serve(&mut reactor);
        assert!(!is_readable(&reactor, Duration::ZERO));
        let (count, waker) = counting_waker();
        thread::scope(|scope| {
            scope.spawn(|| assert!(poll_write(&registration, &waker).is_pending()));
            assert!(is_readable(&reactor, BOUND));
        });
        serve(&mut reactor);
        assert_eq!(count.get(), 1);
    }

    fn what_is_ready_when_it_is_nested_is_not_overlooked(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        signal(&event);
        // The first time that anybody asks for the descriptor.
        let mut turns = 0;
        while registration.take_read_ready().unwrap().is_none() {
            turns += 1;
            assert!(turns < 10);
            assert!(is_readable(&reactor, BOUND));
            reactor.turn(ZERO).unwrap();
        }
        // Asked for before the first turn.
        let mut fresh = common::reactor(backend);
        let descriptor = fresh.as_fd().try_clone_to_owned().unwrap();
        let registration = register_interest(&event, Interest::READABLE, &fresh);
        serve(&mut fresh);
        assert!(registration.take_read_ready().unwrap().is_some());
        assert!(!is_readable(&descriptor, Duration::ZERO));
        signal(&event);
        assert!(is_readable(&descriptor, BOUND));
    }

    fn many_events_keep_it_readable_until_all_are_served(backend: Backend) {
        let mut reactor = nested(backend);
        let events: Vec<_> = (0..300).map(|_| event_fd()).collect();
        let registrations: Vec<_> = events
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        serve(&mut reactor);
        for _ in 0..10 {
            events.iter().for_each(signal);
            let mut served = 0;
            while served < events.len() {
                assert!(is_readable(&reactor, BOUND), "{served} were served");
                served += reactor.turn(ZERO).unwrap().events();
            }
            assert!(
                registrations
                    .iter()
                    .all(|one| one.take_read_ready().unwrap().is_some())
            );
            serve(&mut reactor);
            assert!(!is_readable(&reactor, Duration::ZERO));
        }
    }

    fn an_ended_registration_does_not_leave_it_readable(backend: Backend) {
        let mut reactor = nested(backend);
        for _ in 0..20 {
            let (ours, theirs) = unix_pair();
            let registration = register(&ours, &reactor);
            serve(&mut reactor);
            put(&theirs, b"x");
            drop(registration);
            drop(theirs);
            serve(&mut reactor);
            assert!(!is_readable(&reactor, Duration::ZERO));
        }
    }

    fn turns_may_still_wait(backend: Backend) {
        let mut reactor = nested(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        serve(&mut reactor);
        for _ in 0..10 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(2));
                    signal(&event);
                });
                turn_until(&mut reactor, || {
                    registration.take_read_ready().unwrap().is_some()
                });
            });
            serve(&mut reactor);
            assert!(!is_readable(&reactor, Duration::ZERO));
            let start = std::time::Instant::now();
            reactor.turn(Some(Duration::from_millis(10))).unwrap();
            assert!(start.elapsed() >= Duration::from_millis(9));
        }
    }

    fn reactors_nest_in_reactors(backend: Backend) {
        for outer_backend in [Backend::Uring, Backend::Epoll] {
            let mut outer = reactor(outer_backend);
            let mut inner = reactor(backend);
            let event = event_fd();
            let watching = register_interest(&inner, Interest::READABLE, &outer);
            let registration = register_interest(&event, Interest::READABLE, &inner);
            settle(&mut inner);
            forget_edges(&mut outer, &watching);
            for _ in 0..50 {
                signal(&event);
                read_ready(&mut outer, &watching, Ready::READABLE);
                // An edge of the outer one stands for all that the inner one has to do.
                settle(&mut inner);
                assert!(registration.take_read_ready().unwrap().is_some());
                forget_edges(&mut outer, &watching);
            }
            inner.handle().wake();
            read_ready(&mut outer, &watching, Ready::READABLE);
            drop(watching);
        }
    }

    fn a_close_completes_though_the_reactor_has_moved(backend: Backend) {
        for registered_before in [true, false] {
            let mut reactor = nested(backend);
            let register = |reactor: &Reactor| {
                let (ours, theirs) = unix_pair();
                let ours = AsyncFd::with_handle(ours, &reactor.handle()).unwrap();
                (ours, theirs)
            };
            let early = registered_before.then(|| register(&reactor));
            serve(&mut reactor);
            thread::scope(|scope| {
                scope.spawn(|| {
                    serve(&mut reactor);
                    let (ours, theirs) = early.unwrap_or_else(|| register(&reactor));
                    let mut closing = Box::pin(ours.close());
                    // As a loop does that turns when it is told to.
                    while poll_once(closing.as_mut()).is_pending() {
                        assert!(is_readable(&reactor, BOUND));
                        reactor.turn(ZERO).unwrap();
                    }
                    assert!(at_end(&theirs));
                });
            });
        }
    }

    fn events_without_pause_do_not_keep_a_turn_from_ending(backend: Backend) {
        let mut reactor = nested(backend);
        let events: Vec<_> = (0..4).map(|_| event_fd()).collect();
        let registrations: Vec<_> = events
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        serve(&mut reactor);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..50_000 {
                    events.iter().for_each(signal);
                }
                over.store(true, Ordering::Relaxed);
            });
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(reactor.turn(ZERO).unwrap().events());
            }
            assert!(most <= 100, "{most} events in one turn");
        });
        drop(registrations);
    }

    fn it_is_readable_only_for_a_reason(backend: Backend) {
        let mut reactor = reactor(backend);
        settle(&mut reactor);
        assert!(!is_readable(&reactor, Duration::ZERO));
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        assert!(is_readable(&reactor, BOUND));
        reactor.turn(ZERO).unwrap();
        assert!(!is_readable(&reactor, Duration::ZERO));
        signal(&event);
        assert!(is_readable(&reactor, BOUND));
        assert_eq!(reactor.turn(ZERO).unwrap().events(), 1);
        assert!(!is_readable(&reactor, Duration::ZERO));
        drop(registration);
    }

    fn registrations_that_are_quiet_do_not_make_it_readable(backend: Backend) {
        let mut reactor = reactor(backend);
        let pairs: Vec<_> = (0..20).map(|_| unix_pair()).collect();
        let registrations: Vec<_> = pairs.iter().map(|(ours, _)| register(ours, &reactor)).collect();
        settle(&mut reactor);
        assert!(!is_readable(&reactor, Duration::ZERO));
        put(&pairs[7].1, b"x");
        assert!(is_readable(&reactor, BOUND));
        assert_eq!(reactor.turn(ZERO).unwrap().events(), 1);
        let ready = registrations[7].take_read_ready().unwrap();
        assert_eq!(ready, Some(Ready::READABLE));
        serve(&mut reactor);
        assert!(!is_readable(&reactor, Duration::ZERO));
        for (index, (_, theirs)) in pairs.iter().enumerate() {
            put(theirs, b"x");
            assert!(is_readable(&reactor, BOUND), "{index}");
            assert_eq!(reactor.turn(ZERO).unwrap().events(), 1, "{index}");
            serve(&mut reactor);
        }
    }

    fn one_that_ends_before_the_first_turn_does_not_make_it_readable_later(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        assert!(!is_readable(&reactor, Duration::ZERO));
        drop(registration);
        serve(&mut reactor);
        signal(&event);
        assert!(!is_readable(&reactor, Duration::ZERO));
        assert_eq!(reactor.metrics().spurious, 0);
    }

    fn an_event_on_the_way_counts_once(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        signal(&event);
        assert!(is_readable(&reactor, BOUND));
        let mut events = 0;
        for _ in 0..5 {
            events += reactor.turn(ZERO).unwrap().events();
        }
        assert_eq!(events, 1);
        drop(registration);
    }
}

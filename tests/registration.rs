//! Registering: who establishes the association, how long it lasts, and what failures leave behind.

mod common;

use common::descriptors::*;
use common::*;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::task::Poll;
use std::thread;
use std::time::Duration;
use uring_reactor::{Error, Handle, Interest, Reactor, Ready, Registration};

#[test]
fn the_types_are_as_shareable_as_promised() {
    const fn everywhere<T: Send + Sync + Unpin>() {}
    const fn movable<T: Send>() {}
    const fn undisturbed<T: std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}
    undisturbed::<Registration>();
    undisturbed::<Handle>();
    const {
        everywhere::<Registration>();
        everywhere::<Handle>();
        everywhere::<Ready>();
        everywhere::<Interest>();
        everywhere::<uring_reactor::Metrics>();
        movable::<Reactor>();
        movable::<uring_reactor::Background>();
    }
    static NEW: Registration = Registration::new();
    assert!(format!("{NEW:?}").contains("Registration"));
    assert!(format!("{:?}", Registration::default()).contains("Registration"));
}

/// The error of each of the four readiness calls.
fn refusals(registration: &Registration) -> [io::Error; 4] {
    let (_, waker) = counting_waker();
    let polled = |poll| match poll {
        Poll::Ready(Err(error)) => error,
        other => panic!("an error was due, not {other:?}"),
    };
    [
        polled(poll_read(registration, &waker)),
        polled(poll_write(registration, &waker)),
        registration.take_read_ready().unwrap_err(),
        registration.take_write_ready().unwrap_err(),
    ]
}

#[test]
fn readiness_calls_before_register_say_not_registered() {
    let registration = Registration::new();
    for error in refusals(&registration) {
        assert!(
            matches!(reason(&error), Some(Error::NotRegistered)),
            "{error:?}"
        );
        assert!(error.to_string().contains("register"), "{error}");
    }
}

both_backends! {
    fn only_the_first_register_makes_the_association(backend: Backend) {
        let reactor = reactor(backend);
        let elsewhere = common::reactor(backend);
        let (ours, _theirs) = unix_pair();
        let registration = Registration::new();
        assert!(
            registration
                .register_with(&ours, &reactor.handle())
                .unwrap()
        );
        assert!(
            !registration
                .register_with(&ours, &reactor.handle())
                .unwrap()
        );
        assert!(
            !registration
                .register_interest(&ours, Interest::READABLE, &reactor.handle())
                .unwrap()
        );
        assert!(
            !registration
                .register_with(&ours, &elsewhere.handle())
                .unwrap()
        );
        assert!(!registration.register(&ours).unwrap());
        assert_eq!(reactor.metrics().registered, 1);
        assert!(elsewhere.is_idle());
    }

    fn a_later_register_with_another_descriptor_changes_nothing(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let (other, others_peer) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        assert!(
            !registration
                .register_with(&other, &reactor.handle())
                .unwrap()
        );
        put(&others_peer, b"to the other");
        settle(&mut reactor);
        assert_eq!(registration.take_read_ready().unwrap(), None);
        put(&theirs, b"to us");
        assert!(read_ready(&mut reactor, &registration, Ready::READABLE).is_readable());
    }

    fn anything_that_has_a_descriptor_can_be_registered(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = Registration::new();
        let unsized_io: &dyn AsFd = &ours;
        assert!(
            registration
                .register_with(unsized_io, &reactor.handle())
                .unwrap()
        );
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
        // The same descriptor in another guise.
        registration.deregister(&ours.as_fd()).unwrap();
    }

    fn of_racing_registers_exactly_one_is_true(backend: Backend) {
        const THREADS: usize = 8;
        const ROUNDS: usize = 50;
        let mut reactor = reactor(backend);
        for _ in 0..ROUNDS {
            let (ours, theirs) = unix_pair();
            let registration = Registration::new();
            let established = AtomicUsize::new(0);
            let barrier = Barrier::new(THREADS);
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    let handle = reactor.handle();
                    let (registration, ours) = (&registration, &ours);
                    let (established, barrier) = (&established, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        if registration.register_with(ours, &handle).unwrap() {
                            established.fetch_add(1, Ordering::SeqCst);
                        }
                        // Whoever returns from `register` may poll.
                        assert!(registration.take_read_ready().is_ok());
                    });
                }
            });
            assert_eq!(established.into_inner(), 1);
            assert_eq!(reactor.metrics().registered, 1);
            put(&theirs, b"x");
            read_ready(&mut reactor, &registration, Ready::READABLE);
            drop(registration);
            reactor.turn(Some(Duration::ZERO)).unwrap();
            assert!(reactor.is_idle(), "the losers have left something behind");
        }
    }

    fn polls_that_race_a_registration_are_refused_or_served(backend: Backend) {
        const ROUNDS: usize = 50;
        let turning = Turning::start(reactor(backend));
        for _ in 0..ROUNDS {
            let (ours, theirs) = unix_pair();
            let registration = Registration::new();
            let (count, waker) = counting_waker();
            let registered = AtomicBool::new(false);
            let barrier = Barrier::new(2);
            put(&theirs, b"x");
            thread::scope(|scope| {
                scope.spawn(|| {
                    barrier.wait();
                    assert!(registration.register_with(&ours, turning.handle()).unwrap());
                    registered.store(true, Ordering::SeqCst);
                });
                barrier.wait();
                wait_until(|| {
                    let after = registered.load(Ordering::SeqCst);
                    match poll_read(&registration, &waker) {
                        Poll::Ready(Ok(ready)) => ready.is_readable(),
                        Poll::Ready(Err(error)) => {
                            assert!(!after, "{error}");
                            assert!(matches!(reason(&error), Some(Error::NotRegistered)));
                            false
                        }
                        // Told to wait: then the wake must come.
                        Poll::Pending => {
                            wait_until(|| count.get() > 0);
                            true
                        }
                    }
                });
            });
        }
    }

    fn polls_while_the_registration_is_in_flight_are_pending(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        put(&theirs, b"x");
        let registration = register(&ours, &reactor);
        let (reader, read_waker) = counting_waker();
        let (writer, write_waker) = counting_waker();
        for _ in 0..3 {
            assert!(poll_read(&registration, &read_waker).is_pending());
            assert!(poll_write(&registration, &write_waker).is_pending());
            assert_eq!(registration.take_read_ready().unwrap(), None);
            assert_eq!(registration.take_write_ready().unwrap(), None);
        }
        turn_until(&mut reactor, || reader.get() == 1 && writer.get() == 1);
        assert!(
            registration
                .take_read_ready()
                .unwrap()
                .unwrap()
                .is_readable()
        );
        assert!(
            registration
                .take_write_ready()
                .unwrap()
                .unwrap()
                .is_writable()
        );
    }

    fn what_was_ready_before_the_registration_is_reported(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        put(&theirs, b"early");
        let registration = register(&ours, &reactor);
        read_ready(&mut reactor, &registration, Ready::READABLE);
        write_ready(&mut reactor, &registration, Ready::WRITABLE);
    }

    fn registering_from_another_thread_reaches_a_sleeping_reactor(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        for _ in 0..20 {
            turning.wait_until_parked();
            let (ours, theirs) = unix_pair();
            let registration = Registration::new();
            let (count, waker) = counting_waker();
            assert!(registration.register_with(&ours, turning.handle()).unwrap());
            if poll_read(&registration, &waker).is_pending() {
                put(&theirs, b"x");
                wait_until(|| count.get() == 1);
            }
        }
    }

    fn register_after_deregister_is_a_no_op(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        registration.deregister(&ours).unwrap();
        assert!(
            !registration
                .register_with(&ours, &reactor.handle())
                .unwrap()
        );
        settle(&mut reactor);
        assert!(
            !registration
                .register_with(&ours, &reactor.handle())
                .unwrap()
        );
        assert!(reactor.is_idle());
        put(&theirs, b"x");
        settle(&mut reactor);
        for error in refusals(&registration) {
            assert!(
                matches!(reason(&error), Some(Error::Deregistered)),
                "{error:?}"
            );
        }
    }

    fn readiness_calls_before_register_leave_nothing_behind(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = Registration::new();
        assert_eq!(refusals(&registration).len(), 4);
        assert!(
            registration
                .register_with(&ours, &reactor.handle())
                .unwrap()
        );
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn a_gone_reactor_is_an_error_that_leaves_the_registration_usable(backend: Backend) {
        let gone = reactor(backend).handle();
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = Registration::new();
        for _ in 0..3 {
            let error = registration.register_with(&ours, &gone).unwrap_err();
            assert!(
                matches!(reason(&error), Some(Error::ReactorGone)),
                "{error:?}"
            );
            for error in refusals(&registration) {
                assert!(
                    matches!(reason(&error), Some(Error::NotRegistered)),
                    "{error:?}"
                );
            }
        }
        assert_eq!(gone.metrics().registered, 0);
        assert!(
            registration
                .register_with(&ours, &reactor.handle())
                .unwrap()
        );
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn of_registers_that_race_with_failing_ones_one_is_true(backend: Backend) {
        let gone = reactor(backend).handle();
        let mut reactor = reactor(backend);
        for _ in 0..50 {
            let (ours, _theirs) = unix_pair();
            let registration = Registration::new();
            let barrier = Barrier::new(3);
            let outcomes = thread::scope(|scope| {
                let handles = [gone.clone(), reactor.handle(), gone.clone()];
                let threads = handles.map(|handle| {
                    let (registration, ours, barrier) = (&registration, &ours, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        registration.register_with(ours, &handle)
                    })
                });
                threads.map(|thread| thread.join().unwrap())
            });
            assert!(matches!(outcomes[1], Ok(true)), "{outcomes:?}");
            for index in [0, 2] {
                match &outcomes[index] {
                    Ok(established) => assert!(!established),
                    Err(error) => assert!(matches!(reason(error), Some(Error::ReactorGone))),
                }
            }
            drop(registration);
            reactor.turn(Some(Duration::ZERO)).unwrap();
            assert!(reactor.is_idle());
        }
    }

    fn a_reactor_is_idle_exactly_while_nothing_is_registered(backend: Backend) {
        let mut reactor = reactor(backend);
        assert!(reactor.is_idle());
        let (first, _peer) = unix_pair();
        let (second, _other_peer) = unix_pair();
        let mut one = register(&first, &reactor);
        assert!(!reactor.is_idle());
        let other = register(&second, &reactor);
        settle(&mut reactor);
        assert!(!reactor.is_idle());
        one.deregister(&first).unwrap();
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert!(!reactor.is_idle());
        drop(other);
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert!(reactor.is_idle());
        // Between two turns.
        drop(register(&first, &reactor));
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert!(reactor.is_idle());
    }

    fn the_end_of_a_reactor_wakes_every_waiter_once(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        fill(&ours);
        let registration = register(&ours, &reactor);
        // One that no turn has seen.
        let (new, _newcomers_peer) = unix_pair();
        let (reader, read_waker) = counting_waker();
        let (writer, write_waker) = counting_waker();
        let (newcomer, new_waker) = counting_waker();
        settle(&mut reactor);
        assert!(poll_read(&registration, &read_waker).is_pending());
        assert!(poll_write(&registration, &write_waker).is_pending());
        let unseen = register(&new, &reactor);
        assert!(poll_read(&unseen, &new_waker).is_pending());

        drop(reactor);
        assert_eq!((reader.get(), writer.get(), newcomer.get()), (1, 1, 1));
        for registration in [&registration, &unseen] {
            for error in refusals(registration) {
                assert!(
                    matches!(reason(&error), Some(Error::ReactorGone)),
                    "{error:?}"
                );
            }
        }
        drop((registration, unseen));
        assert_eq!((reader.get(), writer.get(), newcomer.get()), (1, 1, 1));
        drop((read_waker, write_waker, new_waker));
        for count in [reader, writer, newcomer] {
            assert_eq!(
                Arc::strong_count(&count),
                1,
                "an ended registration keeps a waker"
            );
        }
    }

    fn a_registration_outlives_its_reactor_and_can_be_deregistered(backend: Backend) {
        let (ours, theirs) = unix_pair();
        let mut reactor = reactor(backend);
        let mut registration = register(&ours, &reactor);
        settle(&mut reactor);
        drop(reactor);
        registration.deregister(&ours).unwrap();
        for error in refusals(&registration) {
            assert!(
                matches!(reason(&error), Some(Error::Deregistered)),
                "{error:?}"
            );
        }
        drop((registration, ours));
        wait_until(|| at_end(&theirs));
    }

    fn racing_the_end_of_the_reactor_never_strands_a_waiter(backend: Backend) {
        for _ in 0..50 {
            let reactor = reactor(backend);
            let handle = reactor.handle();
            let (ours, _theirs) = unix_pair();
            let registration = Registration::new();
            let (count, waker) = counting_waker();
            let barrier = Barrier::new(2);
            thread::scope(|scope| {
                let user = scope.spawn(|| {
                    barrier.wait();
                    match registration.register_with(&ours, &handle) {
                        Ok(established) => {
                            assert!(established);
                            poll_read(&registration, &waker).is_pending()
                        }
                        Err(error) => {
                            assert!(matches!(reason(&error), Some(Error::ReactorGone)));
                            false
                        }
                    }
                });
                barrier.wait();
                drop(reactor);
                let waits = user.join().unwrap();
                if waits {
                    wait_until(|| count.get() == 1);
                }
            });
        }
    }

    fn a_dropped_registration_lets_go_of_its_wakers(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        fill(&ours);
        let registration = register(&ours, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        assert!(poll_write(&registration, &waker).is_pending());
        drop(waker);
        drop(registration);
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(Arc::strong_count(&count), 1);
    }

    fn a_registration_knows_nothing_of_those_that_ended_before(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let mut alive = Vec::new();
        // Their memory is used again, some of it at once and some of it later.
        for round in 0..200 {
            let refused = register_interest(&file, Interest::READABLE, &reactor);
            let (ours, theirs) = unix_pair();
            put(&theirs, b"x");
            drop(theirs);
            let hung_up = register(&ours, &reactor);
            settle(&mut reactor);
            let error = refused.take_read_ready().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(hung_up.take_write_ready().unwrap().unwrap().is_hup());
            drop((refused, hung_up, ours));
            settle(&mut reactor);

            let (quiet, peer) = unix_pair();
            fill(&quiet);
            let registration = register(&quiet, &reactor);
            let (count, waker) = counting_waker();
            for poll in [poll_read, poll_write] {
                assert!(poll(&registration, &waker).is_pending());
            }
            settle(&mut reactor);
            assert_eq!(count.get(), 0);
            put(&peer, b"x");
            turn_until(&mut reactor, || count.get() == 1);
            let ready = registration.take_read_ready().unwrap().unwrap();
            assert!(ready.is_readable() && !ready.is_read_closed());
            if round % 3 > 0 {
                alive.push((registration, quiet, peer));
            }
        }
    }

    fn a_handle_does_not_keep_its_reactor_alive(backend: Backend) {
        let (ours, theirs) = unix_pair();
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let registration = register(&ours, &reactor);
        settle(&mut reactor);
        drop(reactor);
        drop(registration);
        drop(ours);
        wait_until(|| at_end(&theirs));
        handle.wake();
        assert!(format!("{handle:?}").contains("Handle"));
    }

    fn two_registrations_on_one_descriptor_both_get_every_edge(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let first = register_interest(&ours, Interest::READABLE, &reactor);
        let second = register_interest(&ours, Interest::READABLE, &reactor);
        let third = register(&ours, &reactor);
        for round in 0..10 {
            let (one, one_waker) = counting_waker();
            let (other, other_waker) = counting_waker();
            forget_edges(&mut reactor, &first);
            forget_edges(&mut reactor, &second);
            assert!(poll_read(&first, &one_waker).is_pending(), "round {round}");
            assert!(
                poll_read(&second, &other_waker).is_pending(),
                "round {round}"
            );
            put(&theirs, b"x");
            turn_until(&mut reactor, || one.get() == 1 && other.get() == 1);
            read_ready(&mut reactor, &third, Ready::READABLE);
            get(&ours, b"x");
        }
    }

    fn of_two_registrations_on_one_descriptor_either_may_go_first(backend: Backend) {
        for first_goes in [true, false] {
            let mut reactor = reactor(backend);
            let (ours, theirs) = unix_pair();
            let first = register_interest(&ours, Interest::READABLE, &reactor);
            let second = register_interest(&ours, Interest::READABLE, &reactor);
            settle(&mut reactor);
            let (mut goes, stays) = if first_goes {
                (first, second)
            } else {
                (second, first)
            };
            goes.deregister(&ours).unwrap();
            settle(&mut reactor);
            put(&theirs, b"x");
            read_ready(&mut reactor, &stays, Ready::READABLE);
            drop(stays);
            drop(ours);
            reactor.turn(Some(Duration::ZERO)).unwrap();
            assert!(at_end(&theirs));
        }
    }

    fn two_reactors_may_serve_one_descriptor(backend: Backend) {
        let mut one = reactor(backend);
        let mut other = reactor(backend);
        let (ours, theirs) = unix_pair();
        let first = register(&ours, &one);
        let second = register(&ours, &other);
        settle(&mut one);
        settle(&mut other);
        put(&theirs, b"x");
        read_ready(&mut one, &first, Ready::READABLE);
        read_ready(&mut other, &second, Ready::READABLE);
    }

    fn a_direction_that_was_not_asked_for_is_added_though_the_poll_is_answered(backend: Backend) {
        for half in [true, false] {
            let mut reactor = reactor(backend);
            let (ours, theirs) = unix_pair();
            let registration = register_interest(&ours, Interest::WRITABLE, &reactor);
            settle(&mut reactor);
            put(&theirs, b"x");
            if half {
                theirs.shutdown(std::net::Shutdown::Write).unwrap();
            } else {
                drop(theirs);
            }
            settle(&mut reactor);
            // Nobody asked for what there is to read, which is so on both backends.
            let early = registration.take_read_ready().unwrap();
            assert_eq!(early.is_some(), !half, "{early:?}");
            let (_, waker) = counting_waker();
            let mut seen = Ready::EMPTY;
            turn_until(&mut reactor, || {
                if let Poll::Ready(ready) = poll_read(&registration, &waker) {
                    seen |= ready.unwrap();
                }
                seen.contains(Ready::READABLE | Ready::READ_CLOSED)
            });
        }
    }

    fn a_wider_interest_takes_one_turn(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        assert_eq!(reactor.turn(Some(BOUND)).unwrap().events(), 1);
        assert_eq!(count.get(), 1);
        let ready = registration.take_write_ready().unwrap();
        assert_eq!(ready, Some(Ready::WRITABLE));
    }
}

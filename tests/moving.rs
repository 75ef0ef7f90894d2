//! A reactor that moves between threads between its turns.

mod common;

use common::descriptors::*;
use common::*;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;
use uring_reactor::{Backend, Interest, Ready, Registration};

const ZERO: Option<Duration> = Some(Duration::ZERO);

/// Runs this on a thread of its own, which is gone when it returns.
fn elsewhere<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

both_backends! {
    fn a_reactor_may_be_built_on_one_thread_and_turned_on_another(backend: Backend) {
        let mut reactor = elsewhere(|| reactor(backend));
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        put(&theirs, b"x");
        elsewhere(|| {
            read_ready(&mut reactor, &registration, Ready::READABLE);
            reactor.handle().wake();
            reactor.turn(None).unwrap();
        });
        // No turn before the move, no reason for a new ring.
        assert_eq!(reactor.metrics().rebuilds, 0);
    }

    fn edges_that_came_before_a_move_are_reported_after_it(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        for round in 0..10 {
            signal(&event);
            // Every round on a new thread, while the last one is gone.
            elsewhere(|| {
                read_ready(&mut reactor, &registration, Ready::READABLE);
                assert_eq!(rustix::io::read(&event, &mut [0; 8]), Ok(8));
                settle(&mut reactor);
                registration.take_read_ready().unwrap();
                assert_eq!(
                    registration.take_read_ready().unwrap(),
                    None,
                    "round {round}"
                );
            });
        }
        if backend == Backend::Uring {
            assert!(reactor.metrics().rebuilds > 0);
        }
    }

    fn many_edges_survive_a_move(backend: Backend) {
        let mut reactor = reactor(backend);
        let events: Vec<_> = (0..200).map(|_| event_fd()).collect();
        let registrations: Vec<_> = events
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        settle(&mut reactor);
        for odd in [0, 1] {
            for event in events.iter().skip(odd).step_by(2) {
                signal(event);
            }
            elsewhere(|| {
                for registration in registrations.iter().skip(odd).step_by(2) {
                    read_ready(&mut reactor, registration, Ready::READABLE);
                }
            });
        }
    }

    fn registrations_made_before_a_move_are_armed_after_it(backend: Backend) {
        let mut reactor = reactor(backend);
        reactor.turn(ZERO).unwrap();
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        put(&theirs, b"x");
        elsewhere(|| {
            read_ready(&mut reactor, &registration, Ready::READABLE);
        });
    }

    fn what_ended_before_a_move_is_let_go_after_it(backend: Backend) {
        let mut reactor = reactor(backend);
        let (first, firsts_peer) = unix_pair();
        let (second, seconds_peer) = unix_pair();
        let mut one = register(&first, &reactor);
        let mut other = register(&second, &reactor);
        settle(&mut reactor);
        one.deregister(&first).unwrap();
        drop(first);
        other.deregister_and_close(second).unwrap();
        elsewhere(|| {
            reactor.turn(ZERO).unwrap();
        });
        wait_until(|| at_end(&firsts_peer) && at_end(&seconds_peer));
        assert!(reactor.is_idle());
    }

    fn tasks_that_wait_are_woken_after_a_move(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        elsewhere(|| settle(&mut reactor));
        assert_eq!(count.get(), 0);
        put(&theirs, b"x");
        elsewhere(|| turn_until(&mut reactor, || count.get() == 1));
    }

    fn a_widened_interest_survives_a_move(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        fill(&ours);
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        elsewhere(|| settle(&mut reactor));
        assert_eq!(count.get(), 0);
        drain(&theirs);
        elsewhere(|| turn_until(&mut reactor, || count.get() == 1));
    }

    fn what_has_ended_stays_so_after_a_move(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let hung_up = register(&ours, &reactor);
        let file = tempfile::tempfile().unwrap();
        let refused = register(&file, &reactor);
        drop(theirs);
        read_ready(&mut reactor, &hung_up, Ready::HUP);
        assert!(refused.take_read_ready().is_err());
        elsewhere(|| {
            settle(&mut reactor);
            assert!(hung_up.take_read_ready().unwrap().unwrap().is_hup());
            assert!(refused.take_read_ready().is_err());
        });
    }

    fn a_wake_before_a_move_ends_the_turn_after_it(backend: Backend) {
        let mut reactor = reactor(backend);
        settle(&mut reactor);
        reactor.handle().wake();
        elsewhere(|| {
            reactor.turn(None).unwrap();
        });
        let handle = reactor.handle();
        elsewhere(|| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(5));
                    handle.wake();
                });
                reactor.turn(None).unwrap();
            });
        });
    }

    fn back_and_forth_nothing_is_lost(backend: Backend) {
        let mut reactor = reactor(backend);
        let (mut ours, mut theirs) = tcp_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        for round in 0_u8..50 {
            put(&mut theirs, &[round]);
            let here = |reactor: &mut _| {
                read_ready(reactor, &registration, Ready::READABLE);
            };
            if round % 2 == 0 {
                here(&mut reactor);
            } else {
                elsewhere(|| here(&mut reactor));
            }
            get(&mut ours, &[round]);
        }
    }

    fn a_registration_may_come_from_a_thread_that_is_gone(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let (ours, theirs) = unix_pair();
        let registration = elsewhere(|| {
            let registration = Registration::new();
            registration.register_with(&ours, &handle).unwrap();
            registration
        });
        for _ in 0..3 {
            put(&theirs, b"x");
            read_ready(&mut reactor, &registration, Ready::READABLE);
            drain(&ours);
        }
    }

    fn the_descriptor_of_a_reactor_stays_its_own_when_it_moves(backend: Backend) {
        let mut reactor = reactor(backend);
        let number = reactor.as_fd().as_raw_fd();
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let watched = reactor.as_fd().try_clone_to_owned().unwrap();
        elsewhere(|| settle(&mut reactor));
        elsewhere(|| settle(&mut reactor));
        assert_eq!(reactor.as_fd().as_raw_fd(), number);
        signal(&event);
        for descriptor in [reactor.as_fd(), watched.as_fd()] {
            assert!(is_readable(&descriptor, BOUND));
        }
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn a_reactor_may_be_dropped_on_another_thread(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        forget_edges(&mut reactor, &registration);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        elsewhere(move || drop(reactor));
        assert_eq!(count.get(), 1);
        drop((ours, registration));
        wait_until(|| at_end(&theirs));
    }
}

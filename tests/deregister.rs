//! The end of a registration: who hears of it, who hears nothing more, and when the file is let go.

mod common;

use common::descriptors::*;
use common::*;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;
use uring_reactor::{Error, Interest, Reactor, Ready, Registration};

#[track_caller]
fn assert_deregistered(registration: &Registration) {
    let (count, waker) = counting_waker();
    for poll in [
        poll_read(registration, &waker),
        poll_write(registration, &waker),
    ] {
        let Poll::Ready(Err(error)) = poll else {
            panic!("an error was due, not {poll:?}")
        };
        assert!(
            matches!(reason(&error), Some(Error::Deregistered)),
            "{error:?}"
        );
    }
    for error in [
        registration.take_read_ready().unwrap_err(),
        registration.take_write_ready().unwrap_err(),
    ] {
        assert!(
            matches!(reason(&error), Some(Error::Deregistered)),
            "{error:?}"
        );
    }
    drop(waker);
    assert_eq!(Arc::strong_count(&count), 1, "the waker was kept");
}

fn zero_turn(reactor: &mut Reactor) {
    reactor.turn(Some(Duration::ZERO)).unwrap();
}

/// What is left of a file that was registered by another descriptor: deregistered and closed, in the
/// documented order. But the file lives on, and an entry of epoll's with it.
fn outlived(reactor: &mut Reactor) -> OwnedFd {
    let event = event_fd();
    let other = event.try_clone().unwrap();
    let registration = register_interest(&event, Interest::READABLE, reactor);
    settle(reactor);
    drop(registration);
    drop(event);
    settle(reactor);
    other
}

both_backends! {
    fn no_turn_after_it_notifies(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        forget_edges(&mut reactor, &registration);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        registration.deregister(&ours).unwrap();
        assert_eq!(count.get(), 1, "the waiter is woken by the call itself");
        put(&theirs, b"x");
        drop(theirs);
        let before = reactor.metrics().events;
        settle(&mut reactor);
        assert_eq!(count.get(), 1);
        assert_eq!(reactor.metrics().events, before);
        assert_deregistered(&registration);
    }

    fn an_event_that_no_turn_has_dispatched_is_not_dispatched_any_more(backend: Backend) {
        let mut reactor = reactor(backend);
        for _ in 0..200 {
            let (ours, theirs) = unix_pair();
            let mut registration = register(&ours, &reactor);
            forget_edges(&mut reactor, &registration);
            let (count, waker) = counting_waker();
            assert!(poll_read(&registration, &waker).is_pending());
            // The kernel has the event already, and its poll cannot simply be removed any more.
            put(&theirs, b"x");
            registration.deregister(&ours).unwrap();
            assert_eq!(count.get(), 1);
            let events = reactor.metrics().events;
            drop(ours);
            zero_turn(&mut reactor);
            assert!(at_end(&theirs));
            settle(&mut reactor);
            assert_eq!(count.get(), 1);
            assert_eq!(reactor.metrics().events, events);
        }
        drop_is_idle(reactor);
    }

    fn every_waiter_is_woken_exactly_once(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        fill(&ours);
        let mut registration = register(&ours, &reactor);
        forget_edges(&mut reactor, &registration);
        let (reader, read_waker) = counting_waker();
        let (writer, write_waker) = counting_waker();
        assert!(poll_read(&registration, &read_waker).is_pending());
        assert!(poll_write(&registration, &write_waker).is_pending());
        registration.deregister(&ours).unwrap();
        registration.deregister(&ours).unwrap();
        settle(&mut reactor);
        drop(theirs);
        settle(&mut reactor);
        drop(registration);
        settle(&mut reactor);
        drop(reactor);
        assert_eq!((reader.get(), writer.get()), (1, 1));
    }

    fn who_does_not_wait_is_not_woken(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        put(&theirs, b"x");
        turn_until(&mut reactor, || count.get() == 1);
        registration.deregister(&ours).unwrap();
        settle(&mut reactor);
        assert_eq!(count.get(), 1);
    }

    fn edges_that_were_not_taken_are_not_returned_any_more(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        put(&theirs, b"x");
        settle(&mut reactor);
        registration.deregister(&ours).unwrap();
        assert_deregistered(&registration);
    }

    fn a_registration_that_no_turn_has_seen_can_be_ended(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        registration.deregister(&ours).unwrap();
        put(&theirs, b"x");
        settle(&mut reactor);
        assert_deregistered(&registration);
        assert!(reactor.is_idle());
        drop(ours);
        assert!(at_end(&theirs));
    }

    fn another_descriptor_is_invalid_input_and_changes_nothing(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        for turned in [false, true] {
            let error = registration.deregister(&theirs).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
            assert!(reason(&error).is_some());
            if !turned {
                forget_edges(&mut reactor, &registration);
            }
        }
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
        registration.deregister(&ours).unwrap();
        assert_deregistered(&registration);
    }

    fn deregistering_what_was_never_registered_is_fine_and_changes_nothing(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = Registration::new();
        registration.deregister(&ours).unwrap();
        registration.deregister(&theirs).unwrap();
        let error = registration.take_read_ready().unwrap_err();
        assert!(matches!(reason(&error), Some(Error::NotRegistered)));
        assert!(
            registration
                .register_with(&ours, &reactor.handle())
                .unwrap()
        );
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn deregistering_twice_is_fine(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        for _ in 0..3 {
            registration.deregister(&ours).unwrap();
            zero_turn(&mut reactor);
        }
        assert!(reactor.is_idle());
        assert_eq!(reactor.metrics().registered, 0);
    }

    fn dropping_a_registration_deregisters_it(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        forget_edges(&mut reactor, &registration);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        drop(registration);
        put(&theirs, b"x");
        let events = reactor.metrics().events;
        settle(&mut reactor);
        assert_eq!(reactor.metrics().events, events);
        // Nobody is left to wait, but a task that still has the waker may be told.
        assert!(count.get() <= 1);
        drop(ours);
        drop_is_idle(reactor);
        wait_until(|| at_end(&theirs));
    }

    fn the_peer_sees_the_close_after_the_next_turn(backend: Backend) {
        let mut reactor = reactor(backend);
        for turns_between in 0..3 {
            let (ours, theirs) = unix_pair();
            let mut registration = register(&ours, &reactor);
            for _ in 0..turns_between {
                zero_turn(&mut reactor);
            }
            registration.deregister(&ours).unwrap();
            drop(ours);
            zero_turn(&mut reactor);
            assert!(at_end(&theirs));
        }
    }

    fn the_peer_of_a_tcp_connection_sees_the_close(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let mut registration = register(&ours, &reactor);
        settle(&mut reactor);
        registration.deregister(&ours).unwrap();
        drop(ours);
        zero_turn(&mut reactor);
        wait_until(|| at_end(&theirs));
    }

    fn one_turn_lets_go_of_any_number_of_files(backend: Backend) {
        let mut reactor = reactor(backend);
        let mut pairs: Vec<_> = (0..300).map(|_| unix_pair()).collect();
        let mut registrations: Vec<_> = pairs
            .iter()
            .map(|(ours, _)| register(ours, &reactor))
            .collect();
        settle(&mut reactor);
        let theirs: Vec<UnixStream> = pairs
            .drain(..)
            .zip(&mut registrations)
            .map(|((ours, theirs), registration)| {
                registration.deregister(&ours).unwrap();
                theirs
            })
            .collect();
        zero_turn(&mut reactor);
        let open = theirs.iter().filter(|theirs| !at_end(theirs)).count();
        assert_eq!(open, 0, "peers that still wait for the end");
        assert!(reactor.is_idle());
    }

    fn a_sleeping_reactor_is_woken_to_let_go(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        for by_drop in [false, true] {
            let (ours, theirs) = tcp_pair();
            let mut registration = Registration::new();
            registration.register_with(&ours, turning.handle()).unwrap();
            turning.wait_until_parked();
            if by_drop {
                drop(registration);
            } else {
                registration.deregister(&ours).unwrap();
            }
            drop(ours);
            wait_until(|| at_end(&theirs));
        }
    }

    fn a_listener_gives_its_port_back(backend: Backend) {
        let mut reactor = reactor(backend);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mut registration = register_interest(&listener, Interest::READABLE, &reactor);
        settle(&mut reactor);
        registration.deregister(&listener).unwrap();
        drop(listener);
        zero_turn(&mut reactor);
        let again = TcpListener::bind(address).unwrap();
        drop(again);
    }

    fn a_listener_of_a_dropped_reactor_gives_its_port_back(backend: Backend) {
        let mut reactor = reactor(backend);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let registration = register_interest(&listener, Interest::READABLE, &reactor);
        settle(&mut reactor);
        drop(reactor);
        drop(listener);
        wait_until(|| TcpListener::bind(address).is_ok());
        drop(registration);
    }

    fn the_reader_of_a_pipe_sees_the_end(backend: Backend) {
        let mut reactor = reactor(backend);
        let (theirs, ours) = pipe_pair();
        let mut registration = register_interest(&ours, Interest::WRITABLE, &reactor);
        settle(&mut reactor);
        assert!(!at_end(&theirs));
        registration.deregister(&ours).unwrap();
        drop(ours);
        zero_turn(&mut reactor);
        assert!(at_end(&theirs));
    }

    fn deregistering_from_another_thread_is_final_too(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        for _ in 0..100 {
            let (ours, theirs) = unix_pair();
            let mut registration = Registration::new();
            registration
                .register_interest(&ours, Interest::READABLE, turning.handle())
                .unwrap();
            let (count, waker) = counting_waker();
            let pending = poll_read(&registration, &waker).is_pending();
            // Events keep coming while it ends.
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        let _ = rustix::io::write(&theirs, b"x");
                        thread::yield_now();
                    }
                });
                registration.deregister(&ours).unwrap();
                assert_deregistered(&registration);
                if pending {
                    wait_until(|| count.get() == 1);
                }
                let woken = count.get();
                turning.pass();
                assert_eq!(count.get(), woken);
                stop.store(true, Ordering::SeqCst);
            });
            drop(ours);
            // Unread data: the end of a unix socket may come as a reset.
            wait_until(|| at_end(&theirs));
        }
    }

    fn a_registration_moved_to_another_thread_can_be_ended_there(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        settle(&mut reactor);
        thread::spawn(move || {
            registration.deregister(&ours).unwrap();
            assert_deregistered(&registration);
        })
        .join()
        .unwrap();
        zero_turn(&mut reactor);
        assert!(at_end(&theirs));
        assert!(reactor.is_idle());
    }

    fn io_dropped_before_its_registration_ends_with_it(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        settle(&mut reactor);
        drop(ours);
        settle(&mut reactor);
        drop(registration);
        zero_turn(&mut reactor);
        assert!(at_end(&theirs));
        assert!(reactor.is_idle());
    }

    fn deregister_and_close_shows_the_peer_the_end_in_the_next_turn(backend: Backend) {
        let mut reactor = reactor(backend);
        for turns_between in 0..3 {
            let (ours, theirs) = unix_pair();
            let mut registration = register(&ours, &reactor);
            for _ in 0..turns_between {
                zero_turn(&mut reactor);
            }
            registration.deregister_and_close(ours).unwrap();
            assert_deregistered(&registration);
            zero_turn(&mut reactor);
            assert!(at_end(&theirs), "{turns_between} turns between");
            assert!(reactor.is_idle());
        }
    }

    fn deregister_and_close_shows_it_in_the_next_turn_whatever_the_interest(backend: Backend) {
        for interest in [Interest::READABLE, Interest::WRITABLE, Interest::PRIORITY] {
            let mut reactor = reactor(backend);
            let (ours, theirs) = tcp_pair();
            let mut registration = register_interest(&ours, interest, &reactor);
            settle(&mut reactor);
            registration.deregister_and_close(ours).unwrap();
            reactor.turn(Some(Duration::ZERO)).unwrap();
            assert!(at_end(&theirs), "{interest:?}");
        }
    }

    fn deregister_and_close_wakes_waiters_once(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        put(&theirs, b"x");
        registration.deregister_and_close(ours).unwrap();
        assert_eq!(count.get(), 1);
        settle(&mut reactor);
        drop(registration);
        assert_eq!(count.get(), 1);
    }

    fn deregister_and_close_of_what_was_never_registered_closes(backend: Backend) {
        let (ours, theirs) = unix_pair();
        let mut registration = Registration::new();
        registration.deregister_and_close(ours).unwrap();
        assert!(at_end(&theirs));
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        assert!(
            registration
                .register_with(&ours, &reactor.handle())
                .unwrap()
        );
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn deregister_and_close_after_deregister_closes(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        settle(&mut reactor);
        registration.deregister(&ours).unwrap();
        registration.deregister_and_close(ours).unwrap();
        zero_turn(&mut reactor);
        assert!(at_end(&theirs));
    }

    fn deregister_and_close_with_another_descriptor_closes_that_one_only(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let (other, others_peer) = unix_pair();
        let mut registration = register(&ours, &reactor);
        let error = registration.deregister_and_close(other).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(at_end(&others_peer));
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn deregister_and_close_closes_though_the_reactor_is_gone(backend: Backend) {
        for gone_before in [true, false] {
            let mut reactor = reactor(backend);
            let (ours, theirs) = unix_pair();
            let mut registration = register(&ours, &reactor);
            settle(&mut reactor);
            if gone_before {
                drop(reactor);
                registration.deregister_and_close(ours).unwrap();
            } else {
                registration.deregister_and_close(ours).unwrap();
                drop(reactor);
            }
            wait_until(|| at_end(&theirs));
        }
    }

    fn deregister_and_close_reaches_a_sleeping_reactor(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        let (ours, theirs) = tcp_pair();
        let mut registration = Registration::new();
        registration.register_with(&ours, turning.handle()).unwrap();
        turning.wait_until_parked();
        registration.deregister_and_close(ours).unwrap();
        wait_until(|| at_end(&theirs));
    }

    fn both_registrations_of_a_descriptor_have_to_go(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let mut first = register(&ours, &reactor);
        let mut second = register(&ours, &reactor);
        settle(&mut reactor);
        first.deregister(&ours).unwrap();
        second.deregister(&ours).unwrap();
        drop(ours);
        zero_turn(&mut reactor);
        assert!(at_end(&theirs));
    }

    fn what_a_closed_descriptor_left_behind_keeps_no_other_from_its_file(backend: Backend) {
        let mut reactor = reactor(backend);
        let other = outlived(&mut reactor);
        // The second takes a duplicate there, which is given the number that was closed.
        let registrations: Vec<_> = (0..3)
            .map(|_| register_interest(&other, Interest::READABLE, &reactor))
            .collect();
        settle(&mut reactor);
        for _ in 0..3 {
            signal(&other);
            settle(&mut reactor);
            for registration in &registrations {
                let ready = registration.take_read_ready().unwrap();
                assert_eq!(ready, Some(Ready::READABLE));
            }
        }
    }

    fn what_a_closed_descriptor_left_behind_does_not_wake_the_reactor_for_ever(backend: Backend) {
        let mut reactor = reactor(backend);
        let other = outlived(&mut reactor);
        for _ in 0..1000 {
            signal(&other);
            reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        let spurious = reactor.metrics().spurious;
        assert!(spurious < 500, "{spurious} of 1000 were seen");
    }
}

fn drop_is_idle(mut reactor: Reactor) {
    zero_turn(&mut reactor);
    assert!(reactor.is_idle());
}

// A process of their own, for nobody else may take or count descriptors meanwhile.
both_backends_in_child! {
    fn a_reused_number_does_not_get_the_old_files_events(backend: Backend) {
        let mut reactor = reactor(backend);
        for orderly in [true, false] {
            let (old, olds_peer) = unix_pair();
            let number = old.as_raw_fd();
            let mut registration = register(&old, &reactor);
            settle(&mut reactor);
            if orderly {
                registration.deregister(&old).unwrap();
                drop(old);
            } else {
                // The descriptor goes first, and the old file lives on in the kernel's poll.
                drop(old);
            }
            let (new, news_peer) = unix_pair();
            assert_eq!(new.as_raw_fd(), number, "the lowest free number is taken");
            let new_registration = register_interest(&new, Interest::READABLE, &reactor);
            settle(&mut reactor);
            let _ = rustix::io::write(&olds_peer, b"for the old one");
            settle(&mut reactor);
            assert_eq!(new_registration.take_read_ready().unwrap(), None);
            drop(registration);
            settle(&mut reactor);
            // The end of the old registration has not cost the new one its own.
            put(&news_peer, b"for the new one");
            assert_eq!(
                read_ready(&mut reactor, &new_registration, Ready::READABLE),
                Ready::READABLE
            );
            drop(olds_peer);
            settle(&mut reactor);
            assert_eq!(new_registration.take_read_ready().unwrap(), None);
            assert_eq!(new_registration.take_write_ready().unwrap(), None);
        }
    }

    fn io_dropped_before_its_registration_disturbs_nobody(backend: Backend) {
        let mut reactor = reactor(backend);
        let bystander = event_fd();
        let watched = register_interest(&bystander, Interest::READABLE, &reactor);
        settle(&mut reactor);
        for _ in 0..50 {
            let (ours, theirs) = tcp_pair();
            let registration = register(&ours, &reactor);
            settle(&mut reactor);
            drop(ours);
            let replacement = event_fd();
            let replaced = register_interest(&replacement, Interest::READABLE, &reactor);
            signal(&replacement);
            signal(&bystander);
            read_ready(&mut reactor, &replaced, Ready::READABLE);
            read_ready(&mut reactor, &watched, Ready::READABLE);
            drop(registration);
            zero_turn(&mut reactor);
            wait_until(|| at_end(&theirs));
            signal(&replacement);
            read_ready(&mut reactor, &replaced, Ready::READABLE);
        }
    }

    fn a_file_that_outlives_its_registered_descriptor_troubles_nobody(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        // The file lives on under another number.
        let clone = ours.try_clone().unwrap();
        let number = ours.as_raw_fd();
        let first = register(&ours, &reactor);
        settle(&mut reactor);
        drop(ours);
        let (second, _seconds_peer) = unix_pair();
        assert_eq!(
            second.as_raw_fd(),
            number,
            "the lowest free number is taken"
        );
        let second_registration = register_interest(&second, Interest::READABLE, &reactor);
        settle(&mut reactor);
        drop(first);
        settle(&mut reactor);
        let (third, _thirds_peer) = unix_pair();
        let third_registration = register_interest(&third, Interest::READABLE, &reactor);
        settle(&mut reactor);

        put(&theirs, b"for nobody");
        drop(theirs);
        settle(&mut reactor);
        for registration in [&second_registration, &third_registration] {
            assert_eq!(registration.take_read_ready().unwrap(), None);
            assert_eq!(registration.take_write_ready().unwrap(), None);
        }
        drop(clone);
    }

    fn a_file_may_come_back_under_the_number_it_had(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let clone = ours.try_clone().unwrap();
        let number = ours.as_raw_fd();
        let first = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        drop(ours);
        let again = clone.try_clone().unwrap();
        assert_eq!(again.as_raw_fd(), number, "the lowest free number is taken");
        let second = register_interest(&again, Interest::READABLE, &reactor);
        settle(&mut reactor);
        drop(first);
        settle(&mut reactor);
        put(&theirs, b"x");
        read_ready(&mut reactor, &second, Ready::READABLE);
        drop((second, again, clone));
        zero_turn(&mut reactor);
        assert!(at_end(&theirs));
    }

    fn nothing_is_leaked_however_a_registration_ends(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        drop(register(&ours, &reactor));
        settle(&mut reactor);
        let before = open_descriptors();
        for round in 0..200 {
            let (ours, theirs) = unix_pair();
            let mut first = register(&ours, &reactor);
            let mut second = register(&ours, &reactor);
            if round % 2 == 0 {
                settle(&mut reactor);
            }
            if round % 3 == 0 {
                put(&theirs, b"x");
            }
            match round % 5 {
                0 => drop((first, second)),
                1 => {
                    first.deregister(&ours).unwrap();
                    second.deregister(&ours).unwrap();
                }
                2 => {
                    drop(second);
                    first.deregister_and_close(ours).unwrap();
                }
                3 => {
                    first.deregister(&ours).unwrap();
                    second.deregister_and_close(ours).unwrap();
                }
                _ => {
                    drop(ours);
                    drop((first, second));
                }
            }
            drop(theirs);
            settle(&mut reactor);
            assert!(reactor.is_idle());
        }
        assert_eq!(open_descriptors(), before);
        drop(reactor);
    }

    fn deregister_and_close_frees_the_number_in_the_next_turn(backend: Backend) {
        let mut reactor = reactor(backend);
        let mut pairs: Vec<(OwnedFd, UnixStream)> = (0..100)
            .map(|_| unix_pair())
            .map(|(ours, theirs)| (ours.into(), theirs))
            .collect();
        let mut registrations: Vec<_> = pairs
            .iter()
            .map(|(ours, _)| register(ours, &reactor))
            .collect();
        settle(&mut reactor);
        let before = open_descriptors();
        let mut peers = Vec::new();
        for ((ours, theirs), registration) in pairs.drain(..).zip(&mut registrations) {
            put(&theirs, b"x");
            registration.deregister_and_close(ours).unwrap();
            peers.push(theirs);
        }
        zero_turn(&mut reactor);
        assert_eq!(open_descriptors(), before - 100);
        assert!(peers.iter().all(at_end));
    }

    fn a_reactor_that_is_dropped_leaves_no_descriptor_behind(backend: Backend) {
        let (ours, theirs) = unix_pair();
        let before = open_descriptors();
        for _ in 0..10 {
            let mut reactor = reactor(backend);
            let first = register(&ours, &reactor);
            let second = register(&ours, &reactor);
            settle(&mut reactor);
            let _nested = reactor.as_fd();
            drop((first, reactor, second));
        }
        assert_eq!(open_descriptors(), before);
        drop(ours);
        wait_until(|| at_end(&theirs));
    }
}

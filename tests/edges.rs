//! What the two streams report, when, and how often.

mod common;

use common::descriptors::*;
use common::*;
use rustix::net::sockopt;
use std::future::poll_fn;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;
use uring_reactor::{Interest, Ready, Registration};

/// Closes a connection in such a way that the peer gets a reset.
fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

both_backends! {
    fn an_edge_is_returned_once(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        put(&theirs, b"x");
        settle(&mut reactor);
        assert!(
            registration
                .take_read_ready()
                .unwrap()
                .unwrap()
                .is_readable()
        );
        assert_eq!(registration.take_read_ready().unwrap(), None);
        assert!(
            registration
                .take_write_ready()
                .unwrap()
                .unwrap()
                .is_writable()
        );
        assert_eq!(registration.take_write_ready().unwrap(), None);
        // Not even by a turn, as long as nothing happens.
        settle(&mut reactor);
        assert_eq!(registration.take_read_ready().unwrap(), None);
        assert_eq!(registration.take_write_ready().unwrap(), None);
    }

    fn a_new_edge_is_reported_though_nothing_was_drained(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        for round in 0..20 {
            put(&theirs, b"more");
            let ready = read_ready(&mut reactor, &registration, Ready::READABLE);
            assert_eq!(ready, Ready::READABLE, "round {round}");
            settle(&mut reactor);
            registration.take_read_ready().unwrap();
        }
        assert_eq!(drain(&ours), (80, false));
    }

    fn edges_that_came_between_two_calls_are_one_answer(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        for _ in 0..10 {
            signal(&event);
            settle(&mut reactor);
        }
        assert_eq!(
            registration.take_read_ready().unwrap(),
            Some(Ready::READABLE)
        );
        assert_eq!(registration.take_read_ready().unwrap(), None);
    }

    fn the_streams_do_not_consume_each_other(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        settle(&mut reactor);
        // Writability is untaken while reads come and go.
        for _ in 0..5 {
            put(&theirs, b"x");
            read_ready(&mut reactor, &registration, Ready::READABLE);
            get(&ours, b"x");
        }
        assert_eq!(
            registration.take_write_ready().unwrap(),
            Some(Ready::WRITABLE)
        );
        // And the other way round.
        put(&theirs, b"x");
        settle(&mut reactor);
        registration.take_write_ready().unwrap();
        assert_eq!(registration.take_write_ready().unwrap(), None);
        assert_eq!(
            registration.take_read_ready().unwrap(),
            Some(Ready::READABLE)
        );
    }

    fn the_streams_wake_their_own_tasks(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = pipe_pair();
        fill(&theirs);
        let reading = register(&ours, &reactor);
        let writing = register(&theirs, &reactor);
        forget_edges(&mut reactor, &reading);
        forget_edges(&mut reactor, &writing);
        let (reader, read_waker) = counting_waker();
        let (writer, write_waker) = counting_waker();
        let (stranger, stranger_waker) = counting_waker();
        assert!(poll_read(&reading, &read_waker).is_pending());
        assert!(poll_write(&writing, &write_waker).is_pending());
        assert!(poll_read(&writing, &stranger_waker).is_pending());
        drain(&ours);
        turn_until(&mut reactor, || writer.get() == 1);
        assert_eq!(reader.get(), 0);
        put(&theirs, b"x");
        turn_until(&mut reactor, || reader.get() == 1);
        settle(&mut reactor);
        assert_eq!((reader.get(), writer.get(), stranger.get()), (1, 1, 0));
    }

    fn each_stream_has_its_own_bits(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        put(&theirs, b"x");
        drop(theirs);
        let read = read_ready(&mut reactor, &registration, Ready::READABLE | Ready::HUP);
        let write = write_ready(&mut reactor, &registration, Ready::WRITABLE | Ready::HUP);
        assert!(!read.is_writable(), "{read:?}");
        assert!(
            read.contains(Ready::READ_CLOSED | Ready::WRITE_CLOSED),
            "{read:?}"
        );
        assert_eq!(write, Ready::WRITABLE | Ready::WRITE_CLOSED | Ready::HUP);
    }

    fn results_are_masked_alike_whether_the_edge_or_the_poll_came_first(backend: Backend) {
        let mut outcomes = Vec::new();
        for poll_first in [false, true] {
            let mut reactor = reactor(backend);
            let (ours, theirs) = unix_pair();
            let registration = register(&ours, &reactor);
            forget_edges(&mut reactor, &registration);
            let (reader, read_waker) = counting_waker();
            let (writer, write_waker) = counting_waker();
            if poll_first {
                assert!(poll_read(&registration, &read_waker).is_pending());
                assert!(poll_write(&registration, &write_waker).is_pending());
            }
            put(&theirs, b"x");
            drop(theirs);
            settle(&mut reactor);
            assert_eq!(
                (reader.get(), writer.get()),
                if poll_first { (1, 1) } else { (0, 0) }
            );
            let answers = [
                poll_read(&registration, &read_waker),
                poll_write(&registration, &write_waker),
            ];
            outcomes.push(answers.map(|poll| match poll {
                Poll::Ready(ready) => ready.unwrap(),
                Poll::Pending => panic!("an edge was due"),
            }));
            assert!(!outcomes.last().unwrap()[0].is_writable());
            assert!(!outcomes.last().unwrap()[1].is_readable());
            assert!(!outcomes.last().unwrap()[1].is_read_closed());
        }
        assert_eq!(outcomes[0], outcomes[1]);
    }

    fn hup_once_returned_is_always_returned_in_both_streams(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        drop(theirs);
        read_ready(&mut reactor, &registration, Ready::HUP);
        write_ready(&mut reactor, &registration, Ready::HUP);
        let (count, waker) = counting_waker();
        for _ in 0..5 {
            let read = registration.take_read_ready().unwrap().unwrap();
            assert_eq!(read, Ready::HUP | Ready::READ_CLOSED | Ready::WRITE_CLOSED);
            let write = registration.take_write_ready().unwrap().unwrap();
            assert_eq!(write, Ready::HUP | Ready::WRITE_CLOSED);
            assert!(
                matches!(poll_read(&registration, &waker), Poll::Ready(Ok(ready)) if ready.is_hup())
            );
            assert!(
                matches!(poll_write(&registration, &waker), Poll::Ready(Ok(ready)) if ready.is_hup())
            );
        }
        assert_eq!(count.get(), 0);
        settle(&mut reactor);
    }

    fn a_half_close_stays_in_the_read_stream_and_does_not_make_the_writer_spin(backend: Backend) {
        for tcp in [true, false] {
            let mut reactor = reactor(backend);
            let (ours, theirs): (OwnedFd, OwnedFd) = if tcp {
                let (ours, theirs) = tcp_pair();
                (ours.into(), theirs.into())
            } else {
                let (ours, theirs) = unix_pair();
                (ours.into(), theirs.into())
            };
            rustix::net::shutdown(&theirs, rustix::net::Shutdown::Write).unwrap();
            let registration = register(&ours, &reactor);
            let read = read_ready(&mut reactor, &registration, Ready::READ_CLOSED);
            assert!(!read.is_hup() && !read.is_write_closed(), "{read:?}");
            settle(&mut reactor);
            assert_eq!(
                registration.take_write_ready().unwrap(),
                Some(Ready::WRITABLE)
            );
            let (writer, waker) = counting_waker();
            assert!(poll_write(&registration, &waker).is_pending());
            registration.take_read_ready().unwrap();
            for _ in 0..5 {
                let read = registration.take_read_ready().unwrap();
                assert_eq!(
                    read,
                    Some(Ready::READ_CLOSED),
                    "READABLE is an edge, READ_CLOSED stays"
                );
            }
            settle(&mut reactor);
            assert_eq!(writer.get(), 0);
            assert_eq!(registration.take_write_ready().unwrap(), None);
            drop(theirs);
        }
    }

    fn a_half_close_wakes_a_waiting_reader(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        forget_edges(&mut reactor, &registration);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        theirs.shutdown(Shutdown::Write).unwrap();
        turn_until(&mut reactor, || count.get() == 1);
        read_ready(&mut reactor, &registration, Ready::READ_CLOSED);
        assert!(at_end(&ours));
    }

    fn errors_reach_both_streams_and_are_consumed_by_each(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register(&ours, &reactor);
        forget_edges(&mut reactor, &registration);
        let (reader, read_waker) = counting_waker();
        let (writer, write_waker) = counting_waker();
        assert!(poll_read(&registration, &read_waker).is_pending());
        assert!(poll_write(&registration, &write_waker).is_pending());
        reset(theirs);
        turn_until(&mut reactor, || reader.get() == 1 && writer.get() == 1);
        settle(&mut reactor);
        let read = registration.take_read_ready().unwrap().unwrap();
        assert!(
            read.contains(Ready::ERROR | Ready::HUP | Ready::READ_CLOSED),
            "{read:?}"
        );
        let write = registration.take_write_ready().unwrap().unwrap();
        assert!(
            write.contains(Ready::ERROR | Ready::HUP | Ready::WRITE_CLOSED),
            "{write:?}"
        );
        let read = registration.take_read_ready().unwrap().unwrap();
        assert!(!read.is_error() && read.is_hup(), "ERROR stays: {read:?}");
        let write = registration.take_write_ready().unwrap().unwrap();
        assert!(
            !write.is_error() && write.is_hup(),
            "ERROR stays: {write:?}"
        );
        assert!(ours.take_error().unwrap().is_some());
    }

    fn a_full_pipe_whose_reader_goes_reports_error_to_the_writer(backend: Backend) {
        let mut reactor = reactor(backend);
        let (theirs, ours) = pipe_pair();
        fill(&ours);
        let registration = register_interest(&ours, Interest::WRITABLE, &reactor);
        forget_edges(&mut reactor, &registration);
        let (writer, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        drop(theirs);
        turn_until(&mut reactor, || writer.get() == 1);
        assert_eq!(registration.take_write_ready().unwrap(), Some(Ready::ERROR));
        assert_eq!(registration.take_read_ready().unwrap(), Some(Ready::ERROR));
        assert_eq!(registration.take_write_ready().unwrap(), None);
        assert_eq!(registration.take_read_ready().unwrap(), None);
    }

    fn hang_ups_and_errors_come_whatever_the_interest(backend: Backend) {
        for interest in [Interest::READABLE, Interest::WRITABLE, Interest::PRIORITY] {
            let mut reactor = reactor(backend);
            let (ours, theirs) = unix_pair();
            let registration = register_interest(&ours, interest, &reactor);
            forget_edges(&mut reactor, &registration);
            drop(theirs);
            settle(&mut reactor);
            let read = registration.take_read_ready().unwrap().unwrap();
            assert!(
                read.contains(Ready::HUP | Ready::READ_CLOSED),
                "{interest:?}: {read:?}"
            );
            let write = registration.take_write_ready().unwrap().unwrap();
            assert!(
                write.contains(Ready::HUP | Ready::WRITE_CLOSED),
                "{interest:?}: {write:?}"
            );
        }
    }

    fn polling_to_write_adds_writing_to_the_interest(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        assert_eq!(registration.take_write_ready().unwrap(), None);
        let (writer, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        turn_until(&mut reactor, || writer.get() == 1);
        assert_eq!(
            registration.take_write_ready().unwrap(),
            Some(Ready::WRITABLE)
        );
        // From now on it is followed, beside what was asked for in the first place.
        fill(&ours);
        forget_edges(&mut reactor, &registration);
        let (writer, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
        drain(&theirs);
        turn_until(&mut reactor, || writer.get() == 1);
    }

    fn polling_to_read_adds_reading_to_the_interest(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::WRITABLE, &reactor);
        put(&theirs, b"x");
        settle(&mut reactor);
        assert_eq!(registration.take_read_ready().unwrap(), None);
        let (reader, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        turn_until(&mut reactor, || reader.get() == 1);
        assert_eq!(
            registration.take_read_ready().unwrap(),
            Some(Ready::READABLE)
        );
        get(&ours, b"x");
        put(&theirs, b"y");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn widening_the_interest_takes_one_turn_though_an_event_is_on_its_way(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        // The kernel refuses to remove a poll that is about to report.
        put(&theirs, b"x");
        let (count, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(count.get(), 1);
        assert_eq!(
            registration.take_write_ready().unwrap(),
            Some(Ready::WRITABLE)
        );
    }

    fn widening_the_interest_reaches_a_sleeping_reactor(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        let (ours, _theirs) = unix_pair();
        let registration = Registration::new();
        assert!(
            registration
                .register_interest(&ours, Interest::READABLE, turning.handle())
                .unwrap()
        );
        turning.wait_until_parked();
        let (writer, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        wait_until(|| writer.get() == 1);
    }

    fn who_never_writes_gets_no_write_events(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let before = reactor.metrics();
        for _ in 0..20 {
            fill(&ours);
            settle(&mut reactor);
            drain(&theirs);
            settle(&mut reactor);
        }
        assert_eq!(registration.take_write_ready().unwrap(), None);
        assert_eq!(reactor.metrics().events, before.events);
        assert_eq!(reactor.metrics().entries, before.entries);
    }

    fn taking_never_arms_anything(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let reading = register_interest(&ours, Interest::READABLE, &reactor);
        let writing = register_interest(&theirs, Interest::WRITABLE, &reactor);
        put(&ours, b"x");
        settle(&mut reactor);
        let before = reactor.metrics().entries;
        for _ in 0..5 {
            assert_eq!(reading.take_write_ready().unwrap(), None);
            assert_eq!(writing.take_read_ready().unwrap(), None);
            settle(&mut reactor);
        }
        assert_eq!(reactor.metrics().entries, before);
    }

    fn taking_leaves_a_waiting_task_alone(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        assert_eq!(registration.take_read_ready().unwrap(), None);
        put(&theirs, b"x");
        turn_until(&mut reactor, || count.get() == 1);
    }

    fn the_last_task_to_poll_wins_and_the_earlier_one_is_woken(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (earlier, earlier_waker) = counting_waker();
        let (later, later_waker) = counting_waker();
        assert!(poll_read(&registration, &earlier_waker).is_pending());
        assert!(poll_read(&registration, &later_waker).is_pending());
        assert_eq!((earlier.get(), later.get()), (1, 0));
        put(&theirs, b"x");
        turn_until(&mut reactor, || later.get() == 1);
        settle(&mut reactor);
        assert_eq!((earlier.get(), later.get()), (1, 1));
        drop((earlier_waker, later_waker));
        assert_eq!(Arc::strong_count(&earlier), 1);
    }

    fn a_task_that_polls_again_does_not_wake_itself(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        for _ in 0..10 {
            assert!(poll_read(&registration, &waker).is_pending());
        }
        assert_eq!(count.get(), 0);
        put(&theirs, b"x");
        turn_until(&mut reactor, || count.get() == 1);
        settle(&mut reactor);
        assert_eq!(count.get(), 1);
    }

    fn a_task_is_woken_once_for_each_time_it_was_told_to_wait(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        for told in 1..=5 {
            assert!(poll_read(&registration, &waker).is_pending());
            for _ in 0..3 {
                signal(&event);
                settle(&mut reactor);
            }
            assert_eq!(count.get(), told);
            assert!(poll_read(&registration, &waker).is_ready());
            // Ready: no notification was asked for.
            signal(&event);
            settle(&mut reactor);
            assert_eq!(count.get(), told);
            registration.take_read_ready().unwrap();
        }
    }

    fn a_cause_that_was_consumed_may_be_reported_but_the_next_one_is(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        forget_edges(&mut reactor, &registration);
        for round in 0..200 {
            put(&theirs, b"x");
            // Consumed before any turn has seen it.
            wait_until(|| drain(&ours).0 == 1);
            put(&theirs, b"y");
            read_ready(&mut reactor, &registration, Ready::READABLE);
            wait_until(|| drain(&ours).0 == 1);
            settle(&mut reactor);
            registration.take_read_ready().unwrap();
            assert_eq!(drain(&ours), (0, false), "round {round}");
        }
    }

    fn no_edge_is_lost_between_threads(backend: Backend) {
        const SIGNALS: u64 = 20_000;
        let turning = Turning::start(reactor(backend));
        let event = event_fd();
        let registration = Registration::new();
        registration
            .register_interest(&event, Interest::READABLE, turning.handle())
            .unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..SIGNALS {
                    signal(&event);
                }
            });
            let mut total = 0;
            while total < SIGNALS {
                let ready =
                    futures_lite::future::block_on(poll_fn(|cx| registration.poll_read_ready(cx)));
                assert!(ready.unwrap().is_readable());
                let mut number = [0; 8];
                if rustix::io::read(&event, &mut number).is_ok() {
                    total += u64::from_ne_bytes(number);
                }
            }
            assert_eq!(total, SIGNALS);
        });
    }

    fn no_turnaround_is_lost_between_threads_that_answer_each_other(backend: Backend) {
        const ROUNDS: usize = 2_000;
        let turning = Turning::start(reactor(backend));
        let (client, server) = tcp_pair();
        let receive = |stream: &TcpStream, registration: &Registration| {
            let mut byte = [0];
            while rustix::io::read(stream, &mut byte) != Ok(1) {
                let ready =
                    futures_lite::future::block_on(poll_fn(|cx| registration.poll_read_ready(cx)));
                assert!(ready.unwrap().is_readable());
            }
        };
        let registered = |stream: &TcpStream| {
            let registration = Registration::new();
            registration
                .register_with(stream, turning.handle())
                .unwrap();
            registration
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let registration = registered(&server);
                for _ in 0..ROUNDS {
                    receive(&server, &registration);
                    put(&server, b"x");
                }
            });
            let registration = registered(&client);
            for _ in 0..ROUNDS {
                put(&client, b"x");
                receive(&client, &registration);
            }
        });
    }
}

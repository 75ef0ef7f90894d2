//! A reactor that stays on its thread.

mod common;

use common::descriptors::*;
use common::*;
use std::cell::RefCell;
use std::future::poll_fn;
use std::thread;
use std::time::Duration;
use uring_reactor::{Backend, Interest, LocalReactor, Registration};

/// Turns until a ring has long been where a local reactor keeps it.
const MANY: usize = 200;

fn local(backend: Backend) -> LocalReactor {
    reactor(backend).into_local()
}

/// Signals and turns that often, with a look at every event.
#[track_caller]
fn serve(reactor: &mut LocalReactor, rounds: usize) {
    let event = event_fd();
    let registration = register_interest(&event, Interest::READABLE, reactor);
    for _ in 0..rounds {
        signal(&event);
        let mut turns = 0;
        while registration.take_read_ready().unwrap().is_none() {
            turns += 1;
            assert!(turns < 10, "a turn that nothing came of");
            reactor.turn(Some(BOUND)).unwrap();
        }
    }
}

both_backends! {
    fn turns_bring_events(backend: Backend) {
        let mut reactor = local(backend);
        serve(&mut reactor, MANY);
        assert!(reactor.metrics().events >= MANY as u64);
    }

    fn a_future_is_run_to_its_end_between_turns(backend: Backend) {
        let mut reactor = local(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        for _ in 0..3 {
            for _ in 0..MANY {
                signal(&event);
                let ready = poll_fn(|cx| registration.poll_read_ready(cx));
                assert!(reactor.block_on(ready).unwrap().unwrap().is_readable());
            }
            serve(&mut reactor, MANY);
        }
    }

    fn another_thread_may_register_and_wake(backend: Backend) {
        let mut reactor = local(backend);
        serve(&mut reactor, MANY);
        let handle = reactor.handle();
        let (ours, theirs) = unix_pair();
        let registration = Registration::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                registration.register_with(&ours, &handle).unwrap();
                put(&theirs, b"x");
            });
            let mut seen = false;
            while !seen {
                reactor.turn(Some(BOUND)).unwrap();
                seen = registration
                    .take_read_ready()
                    .is_ok_and(|ready| ready.is_some_and(|ready| ready.is_readable()));
            }
            scope.spawn(|| handle.wake());
            reactor.turn(None).unwrap();
        });
    }

    fn one_that_ends_with_its_thread_lets_go_of_the_files(backend: Backend) {
        thread_local! {
            static REACTOR: RefCell<Option<LocalReactor>> = const { RefCell::new(None) };
        }
        let (ours, theirs) = unix_pair();
        let serving = thread::spawn(move || {
            let mut reactor = local(backend);
            let registration = register(&ours, &reactor);
            serve(&mut reactor, MANY);
            REACTOR.set(Some(reactor));
            registration
        });
        let registration = serving.join().unwrap();
        wait_until(|| at_end(&theirs));
        drop(registration);
    }

    fn a_thread_may_have_more_of_them_than_its_table_has_room_for(backend: Backend) {
        let mut reactors: Vec<_> = (0..20).map(|_| local(backend)).collect();
        for _ in 0..2 {
            for reactor in &mut reactors {
                serve(reactor, MANY);
            }
        }
    }

    fn one_that_has_served_elsewhere_before_loses_nothing(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        let mut reactor = thread::scope(|scope| {
            let served = scope.spawn(move || {
                settle(&mut reactor);
                reactor
            });
            served.join().unwrap()
        })
        .into_local();
        signal(&event);
        for _ in 0..10 {
            // Whoever is nested may have to move it first.
            reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        assert!(registration.take_read_ready().unwrap().is_some());
        serve(&mut reactor, MANY);
    }

    fn its_descriptor_shows_what_there_is(backend: Backend) {
        let mut reactor = local(backend);
        serve(&mut reactor, MANY);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        let shows = |reactor: &LocalReactor| is_readable(reactor, Duration::ZERO);
        // The first look asks for a turn.
        assert!(shows(&reactor));
        for _ in 0..3 {
            reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        assert!(!shows(&reactor));
        signal(&event);
        assert!(shows(&reactor));
        reactor.turn(Some(BOUND)).unwrap();
        assert!(registration.take_read_ready().unwrap().is_some());
    }
}

/// More than the end of a reactor cancels one by one, so that it is the end of the ring that counts.
#[test]
fn its_end_lets_go_of_the_files_while_the_thread_lives_on() {
    watched(|| {
        let mut reactor = local(Backend::Uring);
        let (ours, theirs) = unix_pair();
        let registrations: Vec<_> = (0..1500).map(|_| register(&ours, &reactor)).collect();
        serve(&mut reactor, MANY);
        drop(ours);
        drop(reactor);
        assert!(at_end(&theirs));
        drop(registrations);
    });
}

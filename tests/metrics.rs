//! The counters: each says what it says.

mod common;

use common::descriptors::*;
use common::*;
use std::time::Duration;
use uring_reactor::{Handle, Interest, Metrics, Ready};

const ZERO: Option<Duration> = Some(Duration::ZERO);

#[test]
fn metrics_are_copied_and_are_numbers() {
    let metrics = Metrics::default();
    let copy = metrics;
    let Metrics {
        turns,
        enters,
        entries,
        completions,
        events,
        spurious,
        rearms,
        overflows,
        wakes,
        rebuilds,
        registered,
        ..
    } = copy;
    let all: [u64; 11] = [
        turns,
        enters,
        entries,
        completions,
        events,
        spurious,
        rearms,
        overflows,
        wakes,
        rebuilds,
        registered,
    ];
    assert_eq!(all, [0; 11]);
    assert_eq!(metrics, copy);
}

#[test]
fn a_lazy_handle_can_be_asked_and_woken_where_there_is_no_default() {
    in_child(&[], || {
        assert_eq!(Handle::default().metrics(), Metrics::default());
        Handle::default().wake();
    });
}

both_backends! {
    fn the_handle_and_the_reactor_tell_the_same(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register(&event, &reactor);
        signal(&event);
        read_ready(&mut reactor, &registration, Ready::READABLE);
        assert_eq!(reactor.metrics(), reactor.handle().metrics());
        let handle = reactor.handle();
        let before = reactor.metrics();
        drop(reactor);
        assert!(
            handle.metrics().turns >= before.turns,
            "they can be read to the end"
        );
        assert_eq!(handle.metrics().registered, 0, "it has ended with its reactor");
        drop(registration);
        assert_eq!(handle.metrics().registered, 0);
    }

    fn turns_are_counted(backend: Backend) {
        let mut reactor = reactor(backend);
        assert_eq!(reactor.metrics().turns, 0);
        for turn in 1..=10 {
            reactor.turn(ZERO).unwrap();
            assert_eq!(reactor.metrics().turns, turn);
        }
    }

    fn waits_are_counted_as_enters(backend: Backend) {
        let mut reactor = reactor(backend);
        settle(&mut reactor);
        let before = reactor.metrics().enters;
        for _ in 0..5 {
            reactor.turn(Some(Duration::from_millis(1))).unwrap();
        }
        assert!(reactor.metrics().enters >= before + 5);
    }

    fn registrations_are_counted_as_of_now(backend: Backend) {
        let mut reactor = reactor(backend);
        let pairs: Vec<_> = (0..10).map(|_| unix_pair()).collect();
        let mut registrations: Vec<_> = pairs
            .iter()
            .map(|(ours, _)| register(ours, &reactor))
            .collect();
        assert_eq!(reactor.metrics().registered, 10);
        settle(&mut reactor);
        assert_eq!(reactor.metrics().registered, 10);
        registrations.truncate(4);
        reactor.turn(ZERO).unwrap();
        assert_eq!(reactor.metrics().registered, 4);
    }

    fn events_and_completions_are_counted(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let before = reactor.metrics();
        for _ in 0..7 {
            signal(&event);
            settle(&mut reactor);
        }
        let after = reactor.metrics();
        assert_eq!(after.events - before.events, 7);
        assert!(after.completions - before.completions >= 7);
        assert_eq!(after.entries, before.entries);
        drop(registration);
    }

    fn wakes_are_counted_and_are_no_events(backend: Backend) {
        let mut reactor = reactor(backend);
        for _ in 0..3 {
            reactor.handle().wake();
            assert_eq!(reactor.turn(None).unwrap().events(), 0);
        }
        let metrics = reactor.metrics();
        assert_eq!((metrics.wakes, metrics.events), (3, 0));
    }

    fn a_reactor_that_stays_where_it_is_rebuilds_nothing(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
        let metrics = reactor.metrics();
        assert_eq!(
            (metrics.rebuilds, metrics.overflows, metrics.rearms),
            (0, 0, 0)
        );
    }
}

//! What is paid for in system calls and entries, and what is not. The counters are the witnesses.

mod common;

use common::descriptors::*;
use common::*;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;
use uring_reactor::{Backend, Interest, Reactor, Ready, Registration};

const ZERO: Option<Duration> = Some(Duration::ZERO);

fn uring() -> Reactor {
    reactor(Backend::Uring)
}

#[test]
fn a_thousand_registrations_between_two_turns_are_one_system_call() {
    let mut reactor = uring();
    reactor.turn(ZERO).unwrap();
    let events: Vec<OwnedFd> = (0..1000).map(|_| event_fd()).collect();
    let before = reactor.metrics();
    let registrations: Vec<_> = events
        .iter()
        .map(|event| register_interest(event, Interest::READABLE, &reactor))
        .collect();
    assert_eq!(
        reactor.metrics().enters,
        before.enters,
        "registering makes no system call"
    );
    reactor.turn(ZERO).unwrap();
    let after = reactor.metrics();
    assert_eq!(after.entries - before.entries, 1000);
    assert_eq!(after.enters - before.enters, 1);

    let before = after;
    drop(registrations);
    reactor.turn(ZERO).unwrap();
    let after = reactor.metrics();
    assert!(reactor.is_idle());
    assert_eq!(after.entries - before.entries, 1000);
    assert_eq!(after.enters - before.enters, 1);
}

#[test]
fn what_does_not_fit_into_the_queue_takes_a_system_call_for_each_queueful() {
    let mut reactor = uring();
    reactor.turn(ZERO).unwrap();
    let event = event_fd();
    let before = reactor.metrics();
    let registrations: Vec<_> = (0..5000)
        .map(|_| register_interest(&event, Interest::READABLE, &reactor))
        .collect();
    reactor.turn(ZERO).unwrap();
    let after = reactor.metrics();
    assert_eq!(after.entries - before.entries, 5000);
    let calls = after.enters - before.enters;
    assert!((2..=20).contains(&calls), "{calls} calls");
    drop(registrations);
}

#[test]
fn a_turn_that_waits_submits_with_the_same_system_call() {
    let mut reactor = uring();
    reactor.turn(ZERO).unwrap();
    let event = event_fd();
    for _ in 0..10 {
        signal(&event);
        let before = reactor.metrics();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        let turn = reactor.turn(None).unwrap();
        assert_eq!(turn.events(), 1);
        assert_eq!(reactor.metrics().enters - before.enters, 1);
        drop(registration);
        settle(&mut reactor);
    }
}

#[test]
fn a_zero_turn_with_nothing_to_do_makes_no_system_call() {
    let mut reactor = uring();
    let (ours, _theirs) = unix_pair();
    let _registration = register(&ours, &reactor);
    settle(&mut reactor);
    let before = reactor.metrics();
    for _ in 0..100 {
        reactor.turn(ZERO).unwrap();
    }
    let after = reactor.metrics();
    assert_eq!(after.enters, before.enters);
    assert_eq!(after.turns, before.turns + 100);
}

#[test]
fn registrations_from_other_threads_are_batched_too() {
    let mut reactor = uring();
    reactor.turn(ZERO).unwrap();
    let events: Vec<OwnedFd> = (0..400).map(|_| event_fd()).collect();
    let before = reactor.metrics();
    let registrations: Vec<Registration> = thread::scope(|scope| {
        let threads: Vec<_> = events
            .chunks(100)
            .map(|events| {
                let handle = reactor.handle();
                scope.spawn(move || {
                    events
                        .iter()
                        .map(move |event| {
                            let registration = Registration::new();
                            registration.register_with(event, &handle).unwrap();
                            registration
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    reactor.turn(ZERO).unwrap();
    assert_eq!(reactor.metrics().enters - before.enters, 1);
    assert_eq!(reactor.metrics().entries - before.entries, 400);
    assert_eq!(reactor.metrics().registered, 400);
    drop(registrations);
}

#[test]
fn hundreds_of_events_cost_one_system_call() {
    let mut reactor = uring();
    let events: Vec<OwnedFd> = (0..500).map(|_| event_fd()).collect();
    let registrations: Vec<_> = events
        .iter()
        .map(|event| register_interest(event, Interest::READABLE, &reactor))
        .collect();
    settle(&mut reactor);
    let before = reactor.metrics();
    events.iter().for_each(signal);
    settle(&mut reactor);
    let after = reactor.metrics();
    assert_eq!(after.events - before.events, 500);
    let calls = after.enters - before.enters;
    assert_eq!(calls, 1);
    drop(registrations);
}

both_backends! {
    fn what_comes_and_goes_between_two_turns_costs_no_entry(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        settle(&mut reactor);
        let before = reactor.metrics();
        for _ in 0..100 {
            let mut registration = register(&ours, &reactor);
            registration.deregister(&ours).unwrap();
            drop(register(&ours, &reactor));
        }
        settle(&mut reactor);
        let after = reactor.metrics();
        assert_eq!(after.entries, before.entries);
        assert_eq!(after.registered, 0);
        assert!(reactor.is_idle());
        drop(ours);
        assert!(at_end(&theirs));
    }

    fn a_change_of_interest_between_two_turns_is_part_of_one_entry(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        settle(&mut reactor);
        let before = reactor.metrics().entries;
        let registration = register_interest(&ours, Interest::READABLE, &reactor);
        let (_, waker) = counting_waker();
        for _ in 0..10 {
            assert!(poll_write(&registration, &waker).is_pending());
            assert!(poll_read(&registration, &waker).is_pending());
        }
        settle(&mut reactor);
        assert_eq!(reactor.metrics().entries - before, 1);
        assert_eq!(
            registration.take_write_ready().unwrap(),
            Some(Ready::WRITABLE)
        );
    }

    fn polling_costs_nothing_where_the_interest_is_armed(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        forget_edges(&mut reactor, &registration);
        let before = reactor.metrics();
        let (_, waker) = counting_waker();
        for _ in 0..100 {
            put(&theirs, b"x");
            settle(&mut reactor);
            assert!(poll_read(&registration, &waker).is_ready());
            assert!(poll_read(&registration, &waker).is_pending());
            get(&ours, b"x");
        }
        let after = reactor.metrics();
        assert_eq!(after.entries, before.entries, "edges need no arming");
        assert_eq!(after.rearms, before.rearms);
    }

    fn an_idle_reactor_does_nothing(backend: Backend) {
        let turning = Turning::start(reactor(backend));
        let (ours, _theirs) = unix_pair();
        let registration = Registration::new();
        registration.register_with(&ours, turning.handle()).unwrap();
        turning.wait_until_parked();
        let before = turning.handle().metrics();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(turning.handle().metrics(), before);
    }
}

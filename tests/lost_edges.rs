//! No edge is lost: every one is counted, on threads that race the reactor.
//!
//! `URING_REACTOR_TEST_EDGES` says how many, for a run by hand.

mod common;

use common::descriptors::*;
use common::*;
use std::env;
use std::os::fd::OwnedFd;
use std::task::{Poll, Waker};
use std::thread;
use std::time::Instant;
use uring_reactor::{Handle, Interest, Registration};

const THREADS: usize = 8;
/// Descriptors of each thread.
const DESCRIPTORS: usize = 64;

fn edges_to_count() -> usize {
    env::var("URING_REACTOR_TEST_EDGES").map_or(100_000, |edges| edges.parse().unwrap())
}

fn registered(handle: &Handle) -> Vec<(OwnedFd, Registration)> {
    (0..DESCRIPTORS)
        .map(|_| {
            let event = event_fd();
            let registration = Registration::new();
            let first = registration.register_interest(&event, Interest::READABLE, handle);
            assert!(first.unwrap());
            (event, registration)
        })
        .collect()
}

/// Waits, asleep, for an edge that must come.
#[track_caller]
fn hear(registration: &Registration, waker: &Waker) {
    let start = Instant::now();
    loop {
        if let Poll::Ready(ready) = poll_read(registration, waker) {
            assert!(ready.unwrap().is_readable());
            return;
        }
        let left = BOUND.checked_sub(start.elapsed());
        thread::park_timeout(left.expect("an edge was lost"));
    }
}

/// Makes each descriptor ready, then waits for each: none is made ready again before it was heard.
/// Returns how many edges that were.
fn count(handle: &Handle, edges: usize) -> usize {
    let current = thread::current();
    let waker = waker_fn(move || current.unpark());
    let descriptors = registered(handle);
    let mut counted = 0;
    while counted < edges {
        for (event, _) in &descriptors {
            signal(event);
        }
        for (_, registration) in &descriptors {
            hear(registration, &waker);
            counted += 1;
        }
    }
    counted
}

fn count_on_all_threads(handle: &Handle) -> usize {
    let edges = edges_to_count() / THREADS;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| count(handle, edges)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    })
}

fn every_edge_is_counted(backend: uring_reactor::Backend) {
    let turning = Turning::start(reactor(backend));
    let start = Instant::now();
    let counted = count_on_all_threads(turning.handle());
    let took = start.elapsed();
    assert!(counted >= edges_to_count() / THREADS * THREADS);
    // The reactor counts a turn's events when it has dispatched them all.
    wait_until(|| turning.handle().metrics().events >= counted as u64);
    let metrics = turning.handle().metrics();
    println!("{counted} edges in {took:?}, {metrics:?}");
    let mut reactor = turning.stop();
    settle(&mut reactor);
    assert!(reactor.is_idle());
}

// Not under the watchdog of `both_backends!`: by hand these run for minutes.

#[test]
fn none_of_many_edges_is_lost_on_a_ring() {
    every_edge_is_counted(uring_reactor::Backend::Uring);
}

#[test]
fn none_of_many_edges_is_lost_under_epoll() {
    every_edge_is_counted(uring_reactor::Backend::Epoll);
}

/// As in `common`, but in no company: the numbers of descriptors matter here.
mod numbers {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};
    use uring_reactor::{Backend, Reactor, Ready};

    /// With every poll in an epoll instance, on either backend.
    fn nested(backend: Backend) -> Reactor {
        let mut reactor = reactor(backend);
        reactor.as_fd();
        settle(&mut reactor);
        reactor
    }

    both_backends_in_child! {
        fn a_descriptor_closed_too_early_takes_no_other_s_edges_along(backend: Backend) {
            let mut reactor = nested(backend);
            let astray = event_fd();
            let number = astray.as_raw_fd();
            let registration = register_interest(&astray, Interest::READABLE, &reactor);
            settle(&mut reactor);
            let event = event_fd();
            let first = register_interest(&event, Interest::READABLE, &reactor);
            settle(&mut reactor);
            drop(astray);
            // The second registration of a descriptor is entered through a duplicate, and that has
            // the lowest number there is.
            let second = register_interest(&event, Interest::READABLE, &reactor);
            settle(&mut reactor);
            assert!(event_fd().as_raw_fd() > number, "the number is not in use");
            drop(registration);
            settle(&mut reactor);
            signal(&event);
            read_ready(&mut reactor, &second, Ready::READABLE);
            read_ready(&mut reactor, &first, Ready::READABLE);
            drop((first, second));
            settle(&mut reactor);
            assert!(reactor.is_idle());
        }

        fn a_registration_whose_number_was_taken_over_ends(backend: Backend) {
            let mut reactor = nested(backend);
            let open = open_descriptors();
            let astray = event_fd();
            let number = astray.as_raw_fd();
            let mut registration = register_interest(&astray, Interest::READABLE, &reactor);
            settle(&mut reactor);
            drop(astray);
            let event = event_fd();
            assert_eq!(event.as_raw_fd(), number);
            let other = register_interest(&event, Interest::READABLE, &reactor);
            settle(&mut reactor);
            registration.deregister(&event).unwrap();
            settle(&mut reactor);
            signal(&event);
            read_ready(&mut reactor, &other, Ready::READABLE);
            drop(other);
            settle(&mut reactor);
            // A slot that waits for its end would keep what it hands over from being closed.
            drop((registration, event));
            settle(&mut reactor);
            assert!(reactor.is_idle());
            assert_eq!(open_descriptors(), open);
        }

        fn what_is_handed_over_under_a_number_that_was_taken_over_is_closed(backend: Backend) {
            let mut reactor = nested(backend);
            let astray = event_fd();
            let mut registration = register_interest(&astray, Interest::READABLE, &reactor);
            settle(&mut reactor);
            drop(astray);
            let (reader, writer) = pipe_pair();
            let other = register_interest(&reader, Interest::READABLE, &reactor);
            settle(&mut reactor);
            drop(other);
            settle(&mut reactor);
            // The number is right, so this is taken for its descriptor.
            registration.deregister_and_close(reader).unwrap();
            settle(&mut reactor);
            assert_eq!(rustix::io::write(&writer, b"x"), Err(rustix::io::Errno::PIPE));
        }
    }
}

//! What a registration costs in memory, and that events cost none.
//!
//! Every test runs in a process of its own, in which nothing else goes on, so that the allocator
//! counts nothing else.

mod common;

use common::descriptors::*;
use common::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use uring_reactor::{Interest, Ready, Registration};

/// The system's allocator, with counters. They are of one thread: libtest's allocates too.
struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is the system allocator's. The counters change nothing about it, and do not
// allocate: they are constants at first and have no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.set(BYTES.get().wrapping_add(layout.size()));
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get().wrapping_sub(layout.size()));
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` was the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn bytes() -> usize {
    BYTES.get()
}

fn calls() -> usize {
    CALLS.get()
}

both_backends_in_child! {
    fn ten_thousand_registrations_cost_at_most_320_bytes_each(backend: Backend) {
        let n = descriptors_to_spare(10_000);
        let mut reactor = reactor(backend);
        settle(&mut reactor);
        let events: Vec<OwnedFd> = (0..n).map(|_| event_fd()).collect();
        let mut registrations = Vec::with_capacity(n);
        let handle = reactor.handle();
        let before = bytes();
        for event in &events {
            let registration = Registration::new();
            registration.register_with(event, &handle).unwrap();
            registrations.push(registration);
        }
        settle(&mut reactor);
        let each = (bytes() - before) / n + size_of::<Registration>();
        assert!(each <= 320, "{each} bytes each");
        println!("{each} bytes a registration");

        // They are given back, but for what is kept for those to come.
        drop(registrations);
        settle(&mut reactor);
        let kept = bytes().saturating_sub(before) / n;
        assert!(kept <= 160, "{kept} bytes each are kept");
    }

    fn coming_and_going_does_not_add_up(backend: Backend) {
        let mut reactor = reactor(backend);
        let pairs: Vec<_> = (0..100).map(|_| unix_pair()).collect();
        let mut after_first_rounds = 0;
        for round in 0..60 {
            let mut registrations: Vec<_> = pairs
                .iter()
                .map(|(ours, _)| register(ours, &reactor))
                .collect();
            settle(&mut reactor);
            let (_, waker) = counting_waker();
            for registration in &registrations {
                let _ = poll_read(registration, &waker);
            }
            for (registration, (ours, theirs)) in registrations.iter_mut().zip(&pairs) {
                put(theirs, b"x");
                registration.deregister(ours).unwrap();
                drain(ours);
            }
            drop(registrations);
            settle(&mut reactor);
            if round == 10 {
                after_first_rounds = bytes();
            }
        }
        let grown = bytes().saturating_sub(after_first_rounds);
        assert!(grown < 4096, "grown by {grown} bytes in 50 rounds");
    }

    fn the_way_of_an_event_allocates_nothing(backend: Backend) {
        let mut reactor = reactor(backend);
        let events: Vec<OwnedFd> = (0..64).map(|_| event_fd()).collect();
        let registrations: Vec<_> = events
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        let (count, waker) = counting_waker();
        let round = |reactor: &mut uring_reactor::Reactor| {
            for registration in &registrations {
                assert!(poll_read(registration, &waker).is_pending());
            }
            events.iter().for_each(signal);
            let target = count.get() + registrations.len();
            while count.get() < target {
                reactor.turn(Some(BOUND)).unwrap();
            }
            for registration in &registrations {
                let ready = registration.take_read_ready().unwrap();
                assert_eq!(ready, Some(Ready::READABLE));
            }
        };
        for _ in 0..50 {
            round(&mut reactor);
        }
        let before = calls();
        for _ in 0..200 {
            round(&mut reactor);
        }
        assert_eq!(
            calls() - before,
            0,
            "allocations in 200 rounds of 64 events"
        );
    }

    fn a_turn_that_finds_nothing_allocates_nothing(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        settle(&mut reactor);
        let handle = reactor.handle();
        let before = calls();
        for _ in 0..100 {
            reactor.turn(Some(std::time::Duration::ZERO)).unwrap();
            reactor
                .turn(Some(std::time::Duration::from_micros(10)))
                .unwrap();
            handle.wake();
            reactor.turn(None).unwrap();
        }
        assert_eq!(calls(), before);
        drop(registration);
    }
}

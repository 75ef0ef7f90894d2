//! `Builder::spin`: a reactor that looks for a while before it sleeps.

mod common;

use common::descriptors::*;
use common::*;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};
use uring_reactor::{AsyncFd, Backend, Interest, Reactor, Ready, Registration};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(1000);

fn spinning(backend: Backend, spin: Duration) -> Reactor {
    let builder = Reactor::builder().backend(backend).spin(spin);
    builder.build().unwrap()
}

both_backends! {
    fn an_event_is_seen_without_sleep(backend: Backend) {
        let mut reactor = spinning(backend, LONG);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let rounds = 20;
        let mut slept = 0;
        thread::scope(|scope| {
            for _ in 0..rounds {
                let signaller = scope.spawn(|| signal(&event));
                let before = sleeps();
                while reactor.turn(None).unwrap().events() == 0 {}
                slept += sleeps() - before;
                signaller.join().unwrap();
                let ready = registration.take_read_ready().unwrap();
                assert_eq!(ready, Some(Ready::READABLE));
            }
        });
        // Other threads of this process may make it wait for a lock of the kernel's.
        assert!(slept < rounds / 2, "{slept} sleeps");
    }

    fn what_another_thread_registers_is_armed_and_seen(backend: Backend) {
        let mut reactor = spinning(backend, LONG);
        let handle = reactor.handle();
        let event = event_fd();
        let later = event_fd();
        signal(&event);
        thread::scope(|scope| {
            let user = scope.spawn(|| {
                let silent = Registration::new();
                silent.register_interest(&later, Interest::READABLE, &handle).unwrap();
                let ready = Registration::new();
                ready.register_interest(&event, Interest::READABLE, &handle).unwrap();
                (silent, ready)
            });
            while reactor.turn(None).unwrap().events() == 0 {}
            let (silent, ready) = user.join().unwrap();
            assert_eq!(ready.take_read_ready().unwrap(), Some(Ready::READABLE));
            signal(&later);
            while reactor.turn(None).unwrap().events() == 0 {}
            assert_eq!(silent.take_read_ready().unwrap(), Some(Ready::READABLE));
        });
    }

    fn a_wake_ends_the_turn(backend: Backend) {
        let mut reactor = spinning(backend, LONG);
        let handle = reactor.handle();
        reactor.turn(Some(Duration::ZERO)).unwrap();
        thread::scope(|scope| {
            let waker = scope.spawn(|| handle.wake());
            assert_eq!(reactor.turn(None).unwrap().events(), 0);
            waker.join().unwrap();
        });
    }

    fn a_deregistration_lets_go_of_the_file(backend: Backend) {
        let mut reactor = spinning(backend, LONG);
        let (ours, theirs) = unix_pair();
        let ours = AsyncFd::with_handle(ours, &reactor.handle()).unwrap();
        settle(&mut reactor);
        thread::scope(|scope| {
            // Closes the descriptor itself, after the deregistration.
            let user = scope.spawn(|| drop(ours));
            while !reactor.is_idle() {
                reactor.turn(None).unwrap();
            }
            user.join().unwrap();
        });
        assert!(at_end(&theirs));
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn the_time_that_is_spun_counts_for_the_timeout(backend: Backend) {
        for spin in [Duration::from_millis(5), LONG] {
            let mut reactor = spinning(backend, spin);
            let event = event_fd();
            let _registration = register_interest(&event.as_fd(), Interest::READABLE, &reactor);
            settle(&mut reactor);
            let timeout = Duration::from_millis(30);
            let begun = Instant::now();
            let before = sleeps();
            assert_eq!(reactor.turn(Some(timeout)).unwrap().events(), 0);
            assert!(begun.elapsed() >= timeout);
            assert!(begun.elapsed() < BOUND);
            if spin < timeout {
                assert!(sleeps() > before, "it sleeps for the rest");
            }
        }
    }

    fn futures_are_run_while_it_spins(backend: Backend) {
        let mut reactor = spinning(backend, LONG);
        let (ours, theirs) = unix_pair();
        let ours = AsyncFd::with_handle(ours, &reactor.handle()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| put(&theirs, b"x"));
            let ready = reactor.block_on(async { ours.readable().await.map(drop) });
            ready.unwrap().unwrap();
        });
    }
}

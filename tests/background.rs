//! A reactor on a thread of its own, and its end.

mod common;

use common::descriptors::*;
use common::*;
use std::cell::RefCell;
use std::fs;
use std::future::poll_fn;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;
use uring_reactor::{Backend, Background, Error, Handle, Interest, Ready, Registration, Shutdown};

fn background(backend: Backend) -> Background {
    reactor(backend).background().unwrap()
}

fn registered(io: &impl AsFd, handle: &Handle) -> Registration {
    let registration = Registration::new();
    assert!(
        registration
            .register_interest(io, Interest::READABLE, handle)
            .unwrap()
    );
    registration
}

#[track_caller]
fn assert_serves(handle: &Handle) {
    let (ours, theirs) = unix_pair();
    let registration = registered(&ours, handle);
    put(&theirs, b"x");
    wait_until(|| registration.take_read_ready().unwrap().is_some());
}

fn is_gone(registration: &Registration) -> bool {
    match registration.take_read_ready() {
        Ok(_) => false,
        Err(error) => {
            assert!(
                matches!(reason(&error), Some(Error::ReactorGone)),
                "{error:?}"
            );
            true
        }
    }
}

#[test]
fn its_types_may_go_anywhere() {
    const fn everywhere<T: Send>() {}
    const { everywhere::<Background>() };
    const { everywhere::<Shutdown>() };
}

both_backends! {
    fn it_serves_though_nobody_takes_turns(backend: Backend) {
        let background = background(backend);
        let handle = background.handle();
        for _ in 0..10 {
            assert_serves(&handle);
        }
        let (ours, theirs) = tcp_pair();
        let registration = registered(&ours, &handle);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(2));
                put(&theirs, b"x");
            });
            let ready =
                futures_lite::future::block_on(poll_fn(|cx| registration.poll_read_ready(cx)));
            assert!(ready.unwrap().is_readable());
        });
    }

    fn what_was_registered_before_goes_along(backend: Backend) {
        let mut reactor = reactor(backend);
        let (turned, turneds_peer) = unix_pair();
        let (fresh, freshs_peer) = unix_pair();
        let first = register_interest(&turned, Interest::READABLE, &reactor);
        forget_edges(&mut reactor, &first);
        let (count, waker) = counting_waker();
        assert!(poll_read(&first, &waker).is_pending());
        put(&turneds_peer, b"x");
        let second = register_interest(&fresh, Interest::READABLE, &reactor);
        put(&freshs_peer, b"x");
        let background = reactor.background().unwrap();
        wait_until(|| count.get() == 1);
        wait_until(|| second.take_read_ready().unwrap().is_some());
        drop(background);
    }

    fn shutdown_now_ends_it_and_tells_every_waiter_once(backend: Backend) {
        let background = background(backend);
        let (ours, theirs) = unix_pair();
        let registration = registered(&ours, &background.handle());
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        let handle = background.handle();
        background.shutdown_now().wait();
        assert_eq!(count.get(), 1);
        assert!(is_gone(&registration));
        let error = Registration::new()
            .register_with(&ours, &handle)
            .unwrap_err();
        assert!(matches!(reason(&error), Some(Error::ReactorGone)));
        drop((registration, ours));
        wait_until(|| at_end(&theirs));
        assert_eq!(count.get(), 1);
    }

    fn a_shutdown_can_be_awaited_by_any_executor(backend: Backend) {
        futures_lite::future::block_on(background(backend).shutdown_now());
        let mut reactor = reactor(backend);
        for now in [true, false] {
            let background = background(backend);
            let (ours, _theirs) = unix_pair();
            let registration = registered(&ours, &background.handle());
            if now {
                reactor.block_on(background.shutdown_now()).unwrap();
                assert!(is_gone(&registration));
            } else {
                let shutdown = background.shutdown_on_idle();
                let dropper = thread::spawn(move || {
                    thread::sleep(Duration::from_millis(5));
                    drop(registration);
                });
                reactor.block_on(shutdown).unwrap();
                dropper.join().unwrap();
            }
        }
    }

    fn a_shutdown_that_nobody_awaits_happens(backend: Backend) {
        for now in [true, false] {
            let background = background(backend);
            let handle = background.handle();
            if now {
                let (ours, _theirs) = unix_pair();
                let registration = registered(&ours, &handle);
                let _unawaited = background.shutdown_now();
                wait_until(|| is_gone(&registration));
            } else {
                let _unawaited = background.shutdown_on_idle();
            }
            let event = event_fd();
            wait_until(|| Registration::new().register_with(&event, &handle).is_err());
        }
    }

    fn shutdown_on_idle_waits_for_the_last_registration(backend: Backend) {
        let background = background(backend);
        let (ours, theirs) = unix_pair();
        let (other, others_peer) = unix_pair();
        let mut first = registered(&ours, &background.handle());
        let second = registered(&other, &background.handle());
        let mut shutdown = Box::pin(background.shutdown_on_idle());
        assert!(poll_once(&mut shutdown).is_pending());
        // It goes on serving.
        put(&theirs, b"x");
        wait_until(|| first.take_read_ready().unwrap().is_some());
        first.deregister(&ours).unwrap();
        put(&others_peer, b"x");
        wait_until(|| second.take_read_ready().unwrap().is_some());
        assert!(poll_once(&mut shutdown).is_pending());
        drop(second);
        futures_lite::future::block_on(shutdown);
        drop((ours, other));
        wait_until(|| at_end(&theirs) && at_end(&others_peer));
    }

    fn shutdown_on_idle_of_an_idle_reactor_is_at_once(backend: Backend) {
        background(backend).shutdown_on_idle().wait();
        let background = background(backend);
        assert_serves(&background.handle());
        background.shutdown_on_idle().wait();
    }

    fn shutdown_on_idle_ends_when_a_refused_file_goes(backend: Backend) {
        let background = background(backend);
        let file = tempfile::tempfile().unwrap();
        let registration = registered(&file, &background.handle());
        wait_until(|| registration.take_read_ready().is_err());
        let shutdown = background.shutdown_on_idle();
        drop(registration);
        shutdown.wait();
    }

    fn shutdown_on_idle_ends_though_registers_race(backend: Backend) {
        for _ in 0..20 {
            let background = background(backend);
            let handle = background.handle();
            let (ours, _theirs) = unix_pair();
            let registration = Registration::new();
            let barrier = Barrier::new(4);
            let shutdown = thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        barrier.wait();
                        // Made in time, or told that it is too late.
                        if let Err(error) = registration.register_with(&ours, &handle) {
                            assert!(matches!(reason(&error), Some(Error::ReactorGone)));
                        }
                    });
                }
                barrier.wait();
                background.shutdown_on_idle()
            });
            drop(registration);
            shutdown.wait();
        }
    }

    fn dropping_it_ends_it_before_the_drop_returns(backend: Backend) {
        for _ in 0..10 {
            let background = background(backend);
            let (ours, _theirs) = unix_pair();
            let registration = registered(&ours, &background.handle());
            let (count, waker) = counting_waker();
            assert!(poll_read(&registration, &waker).is_pending());
            drop(background);
            assert_eq!(count.get(), 1);
            assert!(is_gone(&registration));
        }
    }

    fn nothing_of_its_thread_runs_when_the_drop_returns(backend: Backend) {
        /// What a thread does last of all.
        struct Last(Arc<AtomicBool>);

        impl Drop for Last {
            fn drop(&mut self) {
                // Long enough to be overtaken by who does not wait for it.
                thread::sleep(Duration::from_millis(20));
                self.0.store(true, Ordering::SeqCst);
            }
        }

        thread_local! {
            static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
        }

        for dropped in [true, false] {
            let background = background(backend);
            let (ours, theirs) = unix_pair();
            let registration = registered(&ours, &background.handle());
            let over = Arc::new(AtomicBool::new(false));
            let (count, counting) = counting_waker();
            let waker = {
                let over = Arc::clone(&over);
                waker_fn(move || {
                    LAST.set(Some(Last(Arc::clone(&over))));
                    counting.wake_by_ref();
                })
            };
            assert!(poll_read(&registration, &waker).is_pending());
            put(&theirs, b"x");
            wait_until(|| count.get() == 1);
            if dropped {
                drop(background);
            } else {
                background.shutdown_now().wait();
            }
            assert!(over.load(Ordering::SeqCst));
        }
    }

    fn forgotten_it_goes_on(backend: Backend) {
        let background = background(backend);
        let handle = background.handle();
        background.forget();
        for _ in 0..3 {
            assert_serves(&handle);
        }
    }

    fn a_waker_that_panics_does_not_end_it(backend: Backend) {
        let background = background(backend);
        let handle = background.handle();
        for _ in 0..5 {
            let (ours, theirs) = unix_pair();
            let registration = registered(&ours, &handle);
            let (count, counting) = counting_waker();
            let waker = waker_fn(move || {
                counting.wake_by_ref();
                panic!("on purpose");
            });
            assert!(poll_read(&registration, &waker).is_pending());
            put(&theirs, b"x");
            wait_until(|| count.get() == 1);
            assert_serves(&handle);
            assert!(
                registration
                    .take_read_ready()
                    .unwrap()
                    .unwrap()
                    .is_readable()
            );
        }
        background.shutdown_on_idle().wait();
    }

    fn a_waker_may_drop_it(backend: Backend) {
        let background = background(backend);
        let (ours, theirs) = unix_pair();
        let registration = registered(&ours, &background.handle());
        let cell = Arc::new(Mutex::new(Some(background)));
        let waker = waker_fn(move || drop(cell.lock().unwrap().take()));
        assert!(poll_read(&registration, &waker).is_pending());
        put(&theirs, b"x");
        wait_until(|| is_gone(&registration));
    }

    fn a_waker_may_shut_it_down_and_cannot_wait_for_it(backend: Backend) {
        let background = background(backend);
        let (ours, theirs) = unix_pair();
        let registration = registered(&ours, &background.handle());
        let (count, counting) = counting_waker();
        let cell = Arc::new(Mutex::new(Some(background)));
        let waker = waker_fn(move || {
            if let Some(background) = cell.lock().unwrap().take() {
                background.shutdown_now().wait();
                counting.wake_by_ref();
            }
        });
        assert!(poll_read(&registration, &waker).is_pending());
        put(&theirs, b"x");
        wait_until(|| count.get() == 1);
        wait_until(|| is_gone(&registration));
    }

    fn many_threads_may_use_it(backend: Backend) {
        let background = background(backend);
        let handle = background.handle();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let (ours, theirs) = unix_pair();
                        let mut registration = registered(&ours, &handle);
                        put(&theirs, b"x");
                        let ready = futures_lite::future::block_on(poll_fn(|cx| {
                            registration.poll_read_ready(cx)
                        }));
                        assert!(ready.unwrap().contains(Ready::READABLE));
                        registration.deregister(&ours).unwrap();
                        drop(ours);
                        wait_until(|| at_end(&theirs));
                    }
                });
            }
        });
        background.shutdown_on_idle().wait();
    }
}

both_backends_in_child! {
    fn its_thread_and_its_descriptors_end_with_it(backend: Backend) {
        let threads = || fs::read_dir("/proc/self/task").unwrap().count();
        let alone = threads();
        drop(background(backend));
        let open = open_descriptors();
        for round in 0..20 {
            let background = background(backend);
            assert_serves(&background.handle());
            match round % 3 {
                0 => drop(background),
                1 => background.shutdown_now().wait(),
                _ => background.shutdown_on_idle().wait(),
            }
            assert_eq!(open_descriptors(), open);
            // It has nothing left to do but to end.
            wait_until(|| threads() == alone);
        }
    }
}

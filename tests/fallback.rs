//! The process's fallback: each case in a process of its own, for there is only one fallback.

mod common;

use common::descriptors::*;
use common::*;
use std::fs;
use std::future::poll_fn;
use std::sync::Barrier;
use std::thread;
use uring_reactor::{Error, Handle, Reactor, Ready, Registration, with_default};

/// True if the registrations of this handle are served though this thread takes no turns.
fn is_served(handle: &Handle) -> bool {
    let (ours, theirs) = unix_pair();
    let registration = Registration::new();
    assert!(registration.register_with(&ours, handle).unwrap());
    put(&theirs, b"x");
    let ready = futures_lite::future::block_on(poll_fn(|cx| registration.poll_read_ready(cx)));
    ready.unwrap().is_readable()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// What this process has open: sockets, rings, and so on.
fn open_files() -> Vec<String> {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn the_first_registration_without_a_default_starts_it() {
    in_child(&[], || {
        let before = threads();
        let handle = Handle::default();
        assert_eq!(threads(), before, "a handle alone starts nothing");
        assert!(is_served(&handle));
        assert_eq!(threads(), before + 1);
        assert!(is_served(&Handle::default()));
        assert_eq!(threads(), before + 1, "it is started once");
    });
}

#[test]
fn it_serves_every_thread_that_has_no_default() {
    in_child(&[], || {
        thread::spawn(|| assert!(is_served(&Handle::default())))
            .join()
            .unwrap();
        assert!(is_served(&Handle::default()));
    });
}

#[test]
fn threads_that_need_it_at_once_share_one() {
    in_child(&[], || {
        let before = threads();
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    assert!(is_served(&Handle::default()));
                });
            }
        });
        wait_until(|| threads() == before + 1);
        // Those that lost the race have taken their descriptors with them.
        let files = open_files();
        let kernels = files
            .iter()
            .filter(|file| file.contains("[io_uring]") || file.contains("[eventpoll]"))
            .count();
        assert!((2..=3).contains(&kernels), "{files:?}");
        assert!(is_served(&Handle::default()));
    });
}

#[test]
fn the_default_of_the_thread_goes_before_it() {
    in_child(&[], || {
        let mut reactor = Reactor::new().unwrap();
        let before = threads();
        let (ours, theirs) = unix_pair();
        let registration = Registration::new();
        with_default(&reactor.handle(), || registration.register(&ours).unwrap());
        assert_eq!(threads(), before);
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    });
}

#[test]
fn a_default_that_is_gone_is_no_reason_to_start_it() {
    in_child(&[], || {
        let before = threads();
        let handle = Reactor::new().unwrap().handle();
        let (ours, _theirs) = unix_pair();
        let error = with_default(&handle, || Registration::new().register(&ours).unwrap_err());
        assert!(matches!(reason(&error), Some(Error::ReactorGone)));
        assert_eq!(threads(), before);
    });
}

both_backends_in_child! {
    fn it_can_be_named(backend: Backend) {
        let mut reactor = reactor(backend);
        reactor.set_fallback().unwrap();
        let before = threads();
        let (ours, theirs) = unix_pair();
        let registration = Registration::new();
        assert!(registration.register(&ours).unwrap());
        assert_eq!(threads(), before);
        assert_eq!(Handle::default().metrics(), reactor.metrics());
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
        let background = reactor.background().unwrap();
        assert!(is_served(&Handle::default()));
        drop(background);
    }

    fn it_can_be_named_once(backend: Backend) {
        let first = reactor(backend);
        let second = reactor(backend);
        first.set_fallback().unwrap();
        let error = second.set_fallback().unwrap_err();
        assert!(!error.to_string().is_empty());
        assert!(std::error::Error::source(&error).is_none());
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::AlreadyExists);
        assert!(first.set_fallback().is_err());
        let (ours, _theirs) = unix_pair();
        Registration::new().register(&ours).unwrap();
        assert_eq!(first.metrics().registered, 1);
        assert!(second.is_idle());
    }

    fn it_cannot_be_named_after_it_was_needed(backend: Backend) {
        assert!(is_served(&Handle::default()));
        assert!(reactor(backend).set_fallback().is_err());
        assert!(is_served(&Handle::default()));
    }

    fn once_gone_it_is_gone(backend: Backend) {
        let reactor = reactor(backend);
        reactor.set_fallback().unwrap();
        drop(reactor);
        let (ours, _theirs) = unix_pair();
        let error = Registration::new().register(&ours).unwrap_err();
        assert!(
            matches!(reason(&error), Some(Error::ReactorGone)),
            "{error:?}"
        );
        let error = common::reactor(backend).set_fallback();
        assert!(error.is_err(), "it was set once");
    }

    fn of_threads_that_name_it_at_once_one_succeeds(backend: Backend) {
        let barrier = Barrier::new(4);
        let reactors: Vec<_> = (0..4).map(|_| reactor(backend)).collect();
        let named = thread::scope(|scope| {
            let threads: Vec<_> = reactors
                .into_iter()
                .map(|reactor| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        (reactor.set_fallback().is_ok(), reactor)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect::<Vec<_>>()
        });
        assert_eq!(named.iter().filter(|(named, _)| *named).count(), 1);
        let (ours, _theirs) = unix_pair();
        Registration::new().register(&ours).unwrap();
        for (named, reactor) in &named {
            assert_eq!(reactor.is_idle(), !named);
        }
    }
}

#[test]
fn it_obeys_the_environment() {
    in_child(&[("URING_REACTOR_BACKEND", "epoll")], || {
        assert!(is_served(&Handle::default()));
        assert!(!open_files().iter().any(|file| file.contains("[io_uring]")));
    });
}

#[test]
fn a_bad_environment_is_an_error_of_register() {
    in_child(&[("URING_REACTOR_BACKEND", "kqueue")], || {
        let (ours, _theirs) = unix_pair();
        let registration = Registration::new();
        for _ in 0..2 {
            let error = registration.register(&ours).unwrap_err();
            assert!(
                matches!(reason(&error), Some(Error::UnknownBackend(_))),
                "{error:?}"
            );
            assert!(error.to_string().contains("kqueue"));
            let error = registration.take_read_ready().unwrap_err();
            assert!(matches!(reason(&error), Some(Error::NotRegistered)));
        }
    });
}

#[test]
fn what_could_not_start_is_tried_again() {
    in_child(&[], || {
        let (ours, theirs) = unix_pair();
        let registration = Registration::new();
        let taken = exhaust_descriptors();
        for _ in 0..3 {
            let error = registration.register(&ours).unwrap_err();
            assert_eq!(errno(&error), Some(libc::EMFILE), "{error:?}");
            let error = registration.take_read_ready().unwrap_err();
            assert!(matches!(reason(&error), Some(Error::NotRegistered)));
        }
        drop(taken);
        assert!(registration.register(&ours).unwrap());
        put(&theirs, b"x");
        let ready = futures_lite::future::block_on(poll_fn(|cx| registration.poll_read_ready(cx)));
        assert!(ready.unwrap().is_readable());
    });
}

//! What the kernel will not poll, and how its verdict reaches whoever waits.

mod common;

use common::descriptors::*;
use common::*;
use rustix::fs::{MemfdFlags, OFlags};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;
use std::time::{Duration, Instant};
use uring_reactor::{Backend, Error, Interest, Reactor, Ready, Registration};

/// The answers of the four readiness calls, which must be errors.
#[track_caller]
fn verdicts(registration: &Registration) -> [io::Error; 4] {
    let (count, waker) = counting_waker();
    let polled = |poll| match poll {
        Poll::Ready(Err(error)) => error,
        other => panic!("an error was due, not {other:?}"),
    };
    let verdicts = [
        polled(poll_read(registration, &waker)),
        polled(poll_write(registration, &waker)),
        registration.take_read_ready().unwrap_err(),
        registration.take_write_ready().unwrap_err(),
    ];
    assert_eq!(count.get(), 0);
    verdicts
}

/// Registers `io` while two tasks wait, and sees to it that the refusal reaches them and stays.
#[track_caller]
fn assert_refused(backend: Backend, io: &impl AsFd, expected: impl Fn(&io::Error) -> bool) {
    let mut reactor = reactor(backend);
    let mut registration = register(io, &reactor);
    let (reader, read_waker) = counting_waker();
    let (writer, write_waker) = counting_waker();
    assert!(poll_read(&registration, &read_waker).is_pending());
    assert!(poll_write(&registration, &write_waker).is_pending());
    turn_until(&mut reactor, || reader.get() == 1 && writer.get() == 1);
    for _ in 0..3 {
        for error in verdicts(&registration) {
            assert!(expected(&error), "{error:?}");
        }
        settle(&mut reactor);
    }
    assert_eq!((reader.get(), writer.get()), (1, 1), "woken once");
    rests(&mut reactor);
    serves(&mut reactor);

    registration.deregister(io).unwrap();
    for error in verdicts(&registration) {
        assert!(
            matches!(reason(&error), Some(Error::Deregistered)),
            "{error:?}"
        );
    }
    reactor.turn(Some(Duration::ZERO)).unwrap();
    assert!(reactor.is_idle());
    assert_eq!((reader.get(), writer.get()), (1, 1));
}

/// The reactor sleeps if it is told to: a refused file does not keep it busy.
#[track_caller]
fn rests(reactor: &mut Reactor) {
    let start = Instant::now();
    let turns = 5;
    for _ in 0..turns {
        let turn = reactor.turn(Some(Duration::from_millis(10))).unwrap();
        assert_eq!(turn.events(), 0);
    }
    assert!(start.elapsed() >= Duration::from_millis(10) * (turns - 2));
}

/// The reactor goes on serving others.
#[track_caller]
fn serves(reactor: &mut Reactor) {
    let event = event_fd();
    let registration = register_interest(&event, Interest::READABLE, reactor);
    signal(&event);
    read_ready(reactor, &registration, Ready::READABLE);
}

fn is_permission_denied(error: &io::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied && errno(error) == Some(libc::EPERM)
}

fn is_bad_descriptor(error: &io::Error) -> bool {
    errno(error) == Some(libc::EBADF)
}

both_backends! {
    fn a_regular_file_is_permission_denied(backend: Backend) {
        assert_refused(
            backend,
            &tempfile::tempfile().unwrap(),
            is_permission_denied,
        );
    }

    fn a_regular_file_with_contents_is_permission_denied(backend: Backend) {
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_refused(backend, &file, is_permission_denied);
    }

    fn a_directory_is_permission_denied(backend: Backend) {
        let directory = tempfile::tempdir().unwrap();
        assert_refused(
            backend,
            &File::open(directory.path()).unwrap(),
            is_permission_denied,
        );
    }

    fn a_memory_file_is_permission_denied(backend: Backend) {
        let memory = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        assert_refused(backend, &memory, is_permission_denied);
    }

    fn the_null_device_is_permission_denied(backend: Backend) {
        let null = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        assert_refused(backend, &null, is_permission_denied);
    }

    fn a_descriptor_of_a_mere_path_is_a_bad_one(backend: Backend) {
        let path = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, 0.into()).unwrap();
        assert_refused(backend, &path, is_bad_descriptor);
    }

    fn a_refusal_is_the_same_for_every_interest(backend: Backend) {
        for interest in [Interest::READABLE, Interest::WRITABLE, Interest::PRIORITY] {
            let mut reactor = reactor(backend);
            let file = tempfile::tempfile().unwrap();
            let registration = register_interest(&file, interest, &reactor);
            settle(&mut reactor);
            for error in verdicts(&registration) {
                assert!(is_permission_denied(&error), "{interest:?}: {error:?}");
            }
            rests(&mut reactor);
        }
    }

    fn a_refusal_comes_though_nobody_waits(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = tempfile::tempfile().unwrap();
        let registration = register(&file, &reactor);
        settle(&mut reactor);
        assert!(is_permission_denied(
            &registration.take_read_ready().unwrap_err()
        ));
        assert!(is_permission_denied(
            &registration.take_write_ready().unwrap_err()
        ));
    }

    fn a_refusal_costs_nothing_for_ever(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = tempfile::tempfile().unwrap();
        let _registration = register(&file, &reactor);
        settle(&mut reactor);
        let before = reactor.metrics();
        for _ in 0..20 {
            reactor.turn(Some(Duration::from_millis(1))).unwrap();
        }
        let after = reactor.metrics();
        assert_eq!(after.entries, before.entries);
        assert_eq!(after.completions, before.completions);
        assert_eq!(after.rearms, before.rearms);
    }

    fn a_refusal_stays_when_the_reactor_goes(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = tempfile::tempfile().unwrap();
        let registration = register(&file, &reactor);
        settle(&mut reactor);
        assert!(is_permission_denied(
            &registration.take_read_ready().unwrap_err()
        ));
        drop(reactor);
        for error in verdicts(&registration) {
            assert!(is_permission_denied(&error), "{error:?}");
        }
    }

    fn a_refused_registration_cannot_be_used_again(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = tempfile::tempfile().unwrap();
        let registration = register(&file, &reactor);
        settle(&mut reactor);
        let (ours, _theirs) = unix_pair();
        assert!(
            !registration
                .register_with(&ours, &reactor.handle())
                .unwrap()
        );
        settle(&mut reactor);
        assert!(is_permission_denied(
            &registration.take_read_ready().unwrap_err()
        ));
    }

    fn a_dropped_refused_registration_leaves_nothing_behind(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = tempfile::tempfile().unwrap();
        for turned in [false, true] {
            let registration = register(&file, &reactor);
            if turned {
                settle(&mut reactor);
            }
            drop(registration);
            settle(&mut reactor);
            assert!(reactor.is_idle());
            assert_eq!(reactor.metrics().registered, 0);
        }
    }

    fn a_refused_file_can_be_handed_over_for_closing(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = tempfile::tempfile().unwrap();
        let mut registration = register(&file, &reactor);
        settle(&mut reactor);
        registration.deregister_and_close(file).unwrap();
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert!(reactor.is_idle());
    }

    fn refusals_among_many_do_not_hide_events(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = tempfile::tempfile().unwrap();
        let events: Vec<OwnedFd> = (0..50).map(|_| event_fd()).collect();
        let mut refused = Vec::new();
        let mut served = Vec::new();
        for event in &events {
            signal(event);
            refused.push(register(&file, &reactor));
            served.push(register_interest(event, Interest::READABLE, &reactor));
        }
        for registration in &served {
            read_ready(&mut reactor, registration, Ready::READABLE);
        }
        settle(&mut reactor);
        for registration in &refused {
            assert!(is_permission_denied(
                &registration.take_read_ready().unwrap_err()
            ));
        }
    }

    fn the_reasons_can_be_told_apart_without_reading_strings(backend: Backend) {
        let reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let mut errors = Vec::new();
        let mut registration = Registration::new();
        errors.push(registration.take_read_ready().unwrap_err());
        registration
            .register_with(&ours, &reactor.handle())
            .unwrap();
        let other = register(&ours, &reactor);
        registration.deregister(&ours).unwrap();
        errors.push(registration.take_read_ready().unwrap_err());
        drop(reactor);
        errors.push(other.take_read_ready().unwrap_err());
        let named = errors.iter().map(|error| match reason(error) {
            Some(Error::NotRegistered) => 0,
            Some(Error::Deregistered) => 1,
            Some(Error::ReactorGone) => 2,
            other => panic!("{other:?}"),
        });
        assert!(named.eq(0..3));
        for error in &errors {
            assert!(
                error.kind() != ErrorKind::Other,
                "{error:?} has no fitting kind"
            );
            assert!(!error.to_string().is_empty());
        }
    }
}

both_backends_in_child! {
    /// In a process of its own, where nobody else takes the number meanwhile.
    fn a_closed_descriptor_is_a_bad_one(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register(&event, &reactor);
        let (reader, read_waker) = counting_waker();
        let (writer, write_waker) = counting_waker();
        assert!(poll_read(&registration, &read_waker).is_pending());
        assert!(poll_write(&registration, &write_waker).is_pending());
        drop(event);
        turn_until(&mut reactor, || reader.get() == 1 && writer.get() == 1);
        for _ in 0..3 {
            for error in verdicts(&registration) {
                assert!(is_bad_descriptor(&error), "{error:?}");
            }
            settle(&mut reactor);
        }
        rests(&mut reactor);
        serves(&mut reactor);
        drop(registration);
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert!(reactor.is_idle());
        assert_eq!((reader.get(), writer.get()), (1, 1));
    }

    fn what_was_refused_keeps_no_reactor_from_being_idle(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let mut registration = register(&file, &reactor);
        assert!(!reactor.is_idle());
        turn_until(&mut reactor, || registration.take_read_ready().is_err());
        settle(&mut reactor);
        assert!(reactor.is_idle());
        assert_eq!(reactor.metrics().registered, 0);
        let error = registration.take_write_ready().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        registration.deregister(&file).unwrap();
        settle(&mut reactor);
        assert_eq!(reactor.metrics().registered, 0);
        let background = reactor.background().unwrap();
        let refused = Registration::new();
        refused.register_with(&file, &background.handle()).unwrap();
        // It does not wait for this one to be dropped.
        background.shutdown_on_idle().wait();
    }
}

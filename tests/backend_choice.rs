//! Which backend a reactor gets, who decides, and what is said when it cannot be had.

mod common;

use common::descriptors::*;
use common::*;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tracing::span;
use uring_reactor::{Backend, Error, Interest, Reactor, Ready, Registration};

const VARIABLE: &str = "URING_REACTOR_BACKEND";

/// True if this process has a ring.
fn has_ring() -> bool {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .any(|target| target.to_string_lossy().contains("[io_uring]"))
}

#[track_caller]
fn assert_serves(reactor: &mut Reactor) {
    let event = event_fd();
    let registration = register_interest(&event, Interest::READABLE, reactor);
    for _ in 0..3 {
        signal(&event);
        read_ready(reactor, &registration, Ready::READABLE);
    }
    reactor.handle().wake();
    reactor.turn(None).unwrap();
    drop(registration);
    reactor.turn(Some(Duration::ZERO)).unwrap();
    assert!(reactor.is_idle());
}

/// A reactor of `Backend::Auto` that serves, and on which backend it does.
#[track_caller]
fn auto_uses_a_ring() -> bool {
    let mut reactor = Reactor::new().unwrap();
    assert_serves(&mut reactor);
    let ring = has_ring();
    drop(reactor);
    let mut reactor = Reactor::builder().backend(Backend::Auto).build().unwrap();
    assert_serves(&mut reactor);
    assert_eq!(has_ring(), ring);
    ring
}

/// The refusal of a ring: of a fitting kind, with all that one needs to know in its text.
#[track_caller]
fn refusal(names: &[&str]) -> io::Error {
    let error = Reactor::builder()
        .backend(Backend::Uring)
        .build()
        .unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Unsupported | ErrorKind::PermissionDenied
        ),
        "{error:?}"
    );
    assert!(reason(&error).is_some(), "{error:?}");
    let text = error.to_string();
    for name in ["io_uring", "epoll"].iter().chain(names) {
        assert!(text.contains(name), "{name} is not in: {text}");
    }
    error
}

/// Lets the kernel refuse these system calls to this thread from now on.
fn deny(calls: &[libc::c_long], errno: libc::c_int) {
    let rules: BTreeMap<i64, _> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Everything that a caller can see of a kernel without io_uring.
#[track_caller]
fn assert_falls_back(names: &[&str]) {
    let error = refusal(names);
    assert!(errno(&error).is_some() || std::error::Error::source(&error).is_some());
    assert!(!auto_uses_a_ring());
    let mut reactor = reactor(Backend::Epoll);
    assert_serves(&mut reactor);
}

#[test]
fn auto_is_the_ring_where_there_is_one() {
    in_child(&[AUTO], || assert!(auto_uses_a_ring()));
}

#[test]
fn the_environment_decides_where_the_program_does_not() {
    in_child(&[(VARIABLE, "epoll")], || assert!(!auto_uses_a_ring()));
}

#[test]
fn the_environment_may_say_uring() {
    in_child(&[(VARIABLE, "uring")], || assert!(auto_uses_a_ring()));
}

#[test]
fn the_environment_may_say_auto() {
    in_child(&[(VARIABLE, "auto")], || assert!(auto_uses_a_ring()));
}

#[test]
fn uring_by_environment_does_not_fall_back() {
    in_child(&[(VARIABLE, "uring")], || {
        deny(&[libc::SYS_io_uring_setup], libc::EPERM);
        let error = Reactor::new().unwrap_err();
        assert!(
            matches!(reason(&error), Some(Error::Filtered(_))),
            "{error:?}"
        );
        assert_serves(&mut reactor(Backend::Epoll));
    });
}

#[test]
fn a_choice_in_code_goes_before_the_environment() {
    in_child(&[(VARIABLE, "uring")], || {
        assert_serves(&mut reactor(Backend::Epoll));
        let _reactor = reactor(Backend::Epoll);
        assert!(!has_ring());
    });
}

#[test]
fn a_choice_of_the_ring_in_code_goes_before_the_environment() {
    in_child(&[(VARIABLE, "epoll")], || {
        let mut reactor = reactor(Backend::Uring);
        assert_serves(&mut reactor);
        assert!(has_ring());
    });
}

#[track_caller]
fn assert_names(value: &str) {
    for result in [
        Reactor::new(),
        Reactor::builder().backend(Backend::Auto).build(),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            matches!(reason(&error), Some(Error::UnknownBackend(_))),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(text.contains(value) && text.contains(VARIABLE), "{text}");
    }
    // Where the program has chosen it is not even looked at.
    assert_serves(&mut reactor(Backend::Epoll));
    assert_serves(&mut reactor(Backend::Uring));
}

#[test]
fn any_other_value_is_an_error_that_names_it() {
    in_child(&[(VARIABLE, "kqueue")], || assert_names("kqueue"));
}

#[test]
fn capitals_are_another_value() {
    in_child(&[(VARIABLE, "EPOLL")], || assert_names("EPOLL"));
}

#[test]
fn a_filter_that_forbids_rings_is_named() {
    in_child(&[AUTO], || {
        deny(
            &[
                libc::SYS_io_uring_setup,
                libc::SYS_io_uring_enter,
                libc::SYS_io_uring_register,
            ],
            libc::EPERM,
        );
        assert_falls_back(&["seccomp"]);
        assert_eq!(refusal(&[]).kind(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn a_filter_that_denies_the_existence_of_rings_is_named() {
    in_child(&[AUTO], || {
        deny(&[libc::SYS_io_uring_setup], libc::ENOSYS);
        assert_falls_back(&["seccomp"]);
    });
}

#[test]
fn a_filter_that_forbids_setup_alone_is_named() {
    in_child(&[AUTO], || {
        deny(&[libc::SYS_io_uring_setup], libc::EPERM);
        assert_falls_back(&["seccomp"]);
    });
}

#[test]
fn a_filter_that_forbids_enter_alone_is_found_at_once() {
    in_child(&[AUTO], || {
        deny(&[libc::SYS_io_uring_enter], libc::EPERM);
        assert_falls_back(&["seccomp"]);
    });
}

#[test]
fn a_filter_that_denies_the_existence_of_enter_alone_is_found_at_once() {
    in_child(&[AUTO], || {
        deny(&[libc::SYS_io_uring_enter], libc::ENOSYS);
        assert_falls_back(&["seccomp"]);
    });
}

#[test]
fn a_filter_that_forbids_register_alone_is_found_at_once() {
    in_child(&[AUTO], || {
        deny(&[libc::SYS_io_uring_register], libc::EPERM);
        assert_falls_back(&["seccomp"]);
    });
}

#[test]
fn a_filter_that_answers_with_a_number_of_its_own_is_named() {
    in_child(&[AUTO], || {
        deny(&[libc::SYS_io_uring_setup], libc::ENOMSG);
        assert_falls_back(&["seccomp"]);
    });
}

#[test]
fn a_lack_of_locked_memory_is_named() {
    in_child(&[AUTO], || {
        limit_locked_memory(0);
        assert_falls_back(&["locked memory", "ulimit -l"]);
    });
}

#[test]
fn little_locked_memory_is_enough_for_a_small_ring() {
    in_child(&[AUTO], || {
        limit_locked_memory(64 * 1024);
        // It is counted by user, and rings that have ended keep theirs for a moment.
        let start = Instant::now();
        let mut reactor = Reactor::new().unwrap();
        while !has_ring() {
            assert!(start.elapsed() < BOUND);
            thread::sleep(Duration::from_millis(50));
            reactor = Reactor::new().unwrap();
        }
        assert_serves(&mut reactor);
        assert!(has_ring());
    });
}

#[test]
fn a_refused_ring_leaves_no_descriptor_behind() {
    in_child(&[AUTO], || {
        deny(&[libc::SYS_io_uring_enter], libc::EPERM);
        drop(refusal(&[]));
        let before = open_descriptors();
        for _ in 0..10 {
            drop(refusal(&[]));
            drop(Reactor::new().unwrap());
        }
        assert_eq!(open_descriptors(), before);
    });
}

/// Counts what is said at WARN.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() == tracing::Level::WARN {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[test]
fn falling_back_is_said_once() {
    in_child(&[AUTO], || {
        let warnings = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::set_global_default(Warnings(Arc::clone(&warnings))).unwrap();
        drop(Reactor::new().unwrap());
        assert_eq!(
            warnings.load(Ordering::SeqCst),
            0,
            "there is nothing to say yet"
        );
        deny(&[libc::SYS_io_uring_setup], libc::EPERM);
        for _ in 0..3 {
            drop(Reactor::new().unwrap());
        }
        assert_eq!(warnings.load(Ordering::SeqCst), 1);
    });
}

both_backends_in_child! {
    fn at_the_limit_of_descriptors_registering_goes_on(backend: Backend) {
        let mut reactor = reactor(backend);
        let pairs: Vec<_> = (0..20).map(|_| unix_pair()).collect();
        assert_serves(&mut reactor);
        let _taken = exhaust_descriptors();
        for _ in 0..3 {
            let registrations: Vec<Registration> = pairs
                .iter()
                .map(|(ours, _)| register(ours, &reactor))
                .collect();
            for ((ours, theirs), registration) in pairs.iter().zip(&registrations) {
                put(theirs, b"x");
                read_ready(&mut reactor, registration, Ready::READABLE);
                get(ours, b"x");
            }
            drop(registrations);
            reactor.turn(Some(Duration::ZERO)).unwrap();
            assert!(reactor.is_idle());
        }
    }

    fn at_the_limit_of_descriptors_a_first_turn_is_possible(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let _taken = exhaust_descriptors();
        let registration = register(&ours, &reactor);
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn at_the_limit_of_descriptors_a_second_registration_may_be_refused(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let first = register(&event, &reactor);
        forget_edges(&mut reactor, &first);
        let taken = exhaust_descriptors();
        // Under epoll it takes a duplicate, on a ring nothing.
        let second = register(&event, &reactor);
        settle(&mut reactor);
        let refused = second.take_read_ready().err();
        let expected = (backend == Backend::Epoll).then_some(libc::EMFILE);
        assert_eq!(refused.as_ref().and_then(errno), expected);
        signal(&event);
        read_ready(&mut reactor, &first, Ready::READABLE);
        drop(taken);
        drop(second);
        // Another one may be had when there are descriptors again.
        let third = register(&event, &reactor);
        read_ready(&mut reactor, &third, Ready::READABLE);
        drop((first, third));
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn at_the_limit_of_descriptors_a_move_is_possible(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let _taken = exhaust_descriptors();
        for _ in 0..3 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    signal(&event);
                    read_ready(&mut reactor, &registration, Ready::READABLE);
                });
            });
            signal(&event);
            read_ready(&mut reactor, &registration, Ready::READABLE);
        }
        drop(registration);
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn at_the_limit_of_descriptors_what_a_closed_one_left_behind_does_no_harm(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let other = event.try_clone().unwrap();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        // In the documented order. But the file lives on, and an entry of epoll's with it.
        drop(registration);
        drop(event);
        settle(&mut reactor);
        let pair = unix_pair();
        let kept = register(&pair.0, &reactor);
        settle(&mut reactor);
        let taken = exhaust_descriptors();
        for _ in 0..1000 {
            signal(&other);
            reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        put(&pair.1, b"x");
        read_ready(&mut reactor, &kept, Ready::READABLE);
        // With descriptors to be had, it comes to an end.
        drop(taken);
        let before = reactor.metrics().spurious;
        for _ in 0..1000 {
            signal(&other);
            reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        let spurious = reactor.metrics().spurious - before;
        assert!(spurious < 500, "{spurious} of 1000 were seen");
        put(&pair.1, b"x");
        read_ready(&mut reactor, &kept, Ready::READABLE);
    }

    fn a_move_that_fails_leaves_what_can_be_asked_and_tried_again(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Not even for a ring in the place of the old one.
                let before = limit_descriptors(Some(3));
                let turn = reactor.turn(Some(Duration::ZERO));
                assert_eq!(turn.is_err(), backend == Backend::Uring, "{turn:?}");
                assert!(is_readable(&reactor, Duration::ZERO) || turn.is_ok());
                limit_descriptors(before);
                signal(&event);
                assert!(is_readable(&reactor, BOUND));
                read_ready(&mut reactor, &registration, Ready::READABLE);
            });
        });
    }

    fn at_the_limit_of_descriptors_there_is_no_new_reactor(backend: Backend) {
        drop(reactor(backend));
        let taken = exhaust_descriptors();
        for backend in [backend, Backend::Auto] {
            let error = Reactor::builder().backend(backend).build().unwrap_err();
            assert_eq!(
                errno(&error),
                Some(libc::EMFILE),
                "not a refusal of rings: {error:?}"
            );
        }
        drop(taken);
        assert_serves(&mut reactor(backend));
    }

    fn a_filter_that_comes_later_does_not_take_the_events(backend: Backend) {
        // A server that locks itself in after it has started must allow what it uses; what it does
        // not use may go.
        let mut reactor = reactor(backend);
        assert_serves(&mut reactor);
        match backend {
            Backend::Epoll => deny(
                &[
                    libc::SYS_io_uring_setup,
                    libc::SYS_io_uring_enter,
                    libc::SYS_io_uring_register,
                    libc::SYS_epoll_create1,
                    libc::SYS_dup3,
                ],
                libc::EPERM,
            ),
            _ => deny(&[libc::SYS_io_uring_setup], libc::EPERM),
        }
        assert_serves(&mut reactor);
    }
}

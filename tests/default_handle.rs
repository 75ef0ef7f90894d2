//! The thread's default reactor, and handles that bind late.

mod common;

use common::descriptors::*;
use common::*;
use std::future::poll_fn;
use std::panic::{self, AssertUnwindSafe};
use std::task::Poll;
use std::thread;
use uring_reactor::{Error, Handle, Reactor, Ready, Registration, set_default, with_default};

/// True if this panics.
fn panics<T>(run: impl FnOnce() -> T) -> bool {
    panic::catch_unwind(AssertUnwindSafe(|| drop(run()))).is_err()
}

/// True if an unnamed registration goes to this reactor.
fn is_default(reactor: &Reactor) -> bool {
    let (ours, _theirs) = unix_pair();
    let before = reactor.metrics().registered;
    let registration = Registration::new();
    // Where there is no default it goes to the fallback, which starts with the first of them.
    assert!(registration.register(&ours).unwrap());
    reactor.metrics().registered > before
}

both_backends! {
    fn the_default_of_a_thread_gets_its_registrations(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = Registration::new();
        {
            let _default = set_default(&reactor.handle());
            assert!(registration.register(&ours).unwrap());
            assert!(is_default(&reactor));
        }
        assert!(!is_default(&reactor));
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn with_default_lasts_as_long_as_its_function(backend: Backend) {
        let reactor = reactor(backend);
        assert!(with_default(&reactor.handle(), || is_default(&reactor)));
        assert!(!is_default(&reactor));
    }

    fn a_lazy_handle_binds_when_it_is_used(backend: Backend) {
        let one = reactor(backend);
        let other = reactor(backend);
        let lazy = Handle::default();
        for reactor in [&one, &other] {
            with_default(&reactor.handle(), || {
                let (ours, _theirs) = unix_pair();
                let registration = Registration::new();
                assert!(registration.register_with(&ours, &lazy.clone()).unwrap());
                assert_eq!(reactor.metrics().registered, 1);
                let wakes = reactor.metrics().wakes;
                lazy.wake();
                assert_eq!(reactor.metrics().wakes, wakes + 1);
                assert_eq!(lazy.metrics(), reactor.metrics());
            });
        }
    }

    fn a_registration_stays_where_it_was_made(backend: Backend) {
        let mut one = reactor(backend);
        let other = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = Registration::new();
        with_default(&one.handle(), || registration.register(&ours).unwrap());
        with_default(&other.handle(), || {
            assert!(!registration.register(&ours).unwrap());
            put(&theirs, b"x");
            read_ready(&mut one, &registration, Ready::READABLE);
        });
        assert!(other.is_idle());
    }

    fn a_second_default_panics_and_the_first_one_stays(backend: Backend) {
        let one = reactor(backend);
        let other = reactor(backend);
        let guard = set_default(&one.handle());
        assert!(panics(|| set_default(&other.handle())));
        assert!(panics(|| set_default(&one.handle())));
        assert!(panics(|| with_default(&other.handle(), || unreachable!())));
        assert!(is_default(&one));
        drop(guard);
        let _guard = set_default(&other.handle());
        assert!(is_default(&other));
    }

    fn a_lazy_handle_cannot_be_the_default(backend: Backend) {
        let reactor = reactor(backend);
        assert!(panics(|| set_default(&Handle::default())));
        assert!(panics(|| with_default(
            &Handle::default(),
            || unreachable!()
        )));
        // That has left nothing behind.
        with_default(&reactor.handle(), || assert!(is_default(&reactor)));
    }

    fn the_default_is_unset_when_a_panic_unwinds(backend: Backend) {
        let reactor = reactor(backend);
        assert!(panics(|| with_default(&reactor.handle(), || panic!(
            "on purpose"
        ))));
        assert!(!is_default(&reactor));
        assert!(panics(|| {
            let _default = set_default(&reactor.handle());
            panic!("on purpose");
        }));
        assert!(!is_default(&reactor));
        with_default(&reactor.handle(), || assert!(is_default(&reactor)));
    }

    fn the_default_is_of_one_thread(backend: Backend) {
        let one = reactor(backend);
        let other = reactor(backend);
        let _default = set_default(&one.handle());
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(!is_default(&one));
                let _default = set_default(&other.handle());
                assert!(is_default(&other));
            });
        });
        assert!(is_default(&one));
    }

    fn a_default_that_is_gone_is_an_error(backend: Backend) {
        let reactor = reactor(backend);
        let default = set_default(&reactor.handle());
        drop(reactor);
        let (ours, _theirs) = unix_pair();
        let registration = Registration::new();
        for _ in 0..2 {
            let error = registration.register(&ours).unwrap_err();
            assert!(
                matches!(reason(&error), Some(Error::ReactorGone)),
                "{error:?}"
            );
        }
        let error = registration.take_read_ready().unwrap_err();
        assert!(matches!(reason(&error), Some(Error::NotRegistered)));
        drop(default);
    }

    fn block_on_makes_its_reactor_the_default_meanwhile(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let handle = reactor.handle();
        put(&theirs, b"x");
        let ready = reactor
            .block_on(async {
                let registration = Registration::new();
                assert!(registration.register(&ours).unwrap());
                assert_eq!(handle.metrics().registered, 1);
                poll_fn(|cx| registration.poll_read_ready(cx)).await
            })
            .unwrap();
        assert!(ready.unwrap().is_readable());
        assert!(!is_default(&reactor));
    }

    fn block_on_gives_back_the_default_that_was_before(backend: Backend) {
        let mut reactor = reactor(backend);
        let before = common::reactor(backend);
        let _default = set_default(&before.handle());
        let handle = reactor.handle();
        reactor
            .block_on(async {
                let (ours, _theirs) = unix_pair();
                let registration = Registration::new();
                assert!(registration.register(&ours).unwrap());
                assert_eq!(handle.metrics().registered, 1);
                assert!(before.is_idle());
            })
            .unwrap();
        assert!(is_default(&before));
        // A panic comes out, and the default back.
        assert!(panics(|| reactor.block_on(async { panic!("on purpose") })));
        assert!(is_default(&before));
        assert_eq!(reactor.block_on(async { 1 }).unwrap(), 1);
    }

    fn block_on_may_be_nested(backend: Backend) {
        let mut outer = reactor(backend);
        let mut inner = reactor(backend);
        let outer_handle = outer.handle();
        outer
            .block_on(async {
                assert_eq!(inner.block_on(async { 7 }).unwrap(), 7);
                let (ours, _theirs) = unix_pair();
                let registration = Registration::new();
                assert!(registration.register(&ours).unwrap());
                assert_eq!(outer_handle.metrics().registered, 1);
            })
            .unwrap();
        assert!(inner.is_idle());
    }

    fn block_on_returns_what_the_future_returns(backend: Backend) {
        let mut reactor = reactor(backend);
        assert_eq!(reactor.block_on(async { "at once" }).unwrap(), "at once");
        let borrowed = String::from("borrowed");
        assert_eq!(
            reactor.block_on(async { borrowed.as_str() }).unwrap(),
            "borrowed"
        );
    }

    fn block_on_wakes_up_for_other_threads(backend: Backend) {
        let mut reactor = reactor(backend);
        for _ in 0..20 {
            let mut started = None;
            let output = reactor.block_on(poll_fn(|cx| match &started {
                None => {
                    let waker = cx.waker().clone();
                    started = Some(thread::spawn(move || {
                        thread::sleep(std::time::Duration::from_millis(1));
                        waker.wake();
                    }));
                    Poll::Pending
                }
                // Spurious polls are allowed.
                Some(thread) if thread.is_finished() => Poll::Ready(42),
                Some(_) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }));
            assert_eq!(output.unwrap(), 42);
        }
    }

    fn a_future_that_wakes_itself_does_not_starve_the_reactor(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register(&event, &reactor);
        signal(&event);
        let mut polls = 0;
        reactor
            .block_on(poll_fn(|cx| {
                polls += 1;
                assert!(polls < 100_000, "the reactor took no turn");
                if registration.take_read_ready().unwrap().is_some() {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            }))
            .unwrap();
    }

    fn block_on_can_be_called_again(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register(&ours, &reactor);
        for _ in 0..20 {
            put(&theirs, b"x");
            let ready = reactor.block_on(poll_fn(|cx| registration.poll_read_ready(cx)));
            assert!(ready.unwrap().unwrap().is_readable());
            wait_until(|| drain(&ours).0 == 1);
        }
    }

    fn a_waker_of_block_on_may_outlive_it(backend: Backend) {
        let mut reactor = reactor(backend);
        let mut kept = None;
        reactor
            .block_on(poll_fn(|cx| {
                kept = Some(cx.waker().clone());
                Poll::Ready(())
            }))
            .unwrap();
        let kept = kept.unwrap();
        kept.wake_by_ref();
        assert_eq!(reactor.block_on(async { 1 }).unwrap(), 1);
        drop(reactor);
        kept.wake();
    }

    fn a_guard_that_ends_in_block_on_unsets_what_it_set(backend: Backend) {
        let [outer, mut inner] = [reactor(backend), reactor(backend)];
        let guard = set_default(&outer.handle());
        let registered = inner.block_on(async move {
            drop(guard);
            let event = event_fd();
            let registration = Registration::new();
            registration.register(&event).unwrap();
            outer.metrics().registered
        });
        assert_eq!(registered.unwrap(), 0);
        // There is none any more, so there may be one.
        drop(set_default(&inner.handle()));
    }
}

//! Whole paths: several of the races at once, as programs have them.
//!
//! Bounded, by less where three threads have much to do.

use super::support::*;
use crate::source::word::Direction::Read;
use crate::{Handle, Registration};
use std::task::Waker;

/// Two registrations on a reactor that sleeps; one gets an edge, the other is dropped. The edge
/// arrives, the other is gone, and the reactor wakes for both.
#[test]
fn a_sleeping_reactor_an_edge_and_a_drop() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        let kept = registered(&handle, 10);
        let dropped = registered(&handle, 11);
        turn(&mut reactor);
        let (count, waker) = Count::new();
        assert!(poll(&kept, Read, &waker).is_pending());
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.trigger(10, IN))
        };
        let user = thread::spawn(move || drop(dropped));
        // Nothing else ends these.
        while count.get() == 0 || world.held() > 1 {
            reactor.turn(None).unwrap();
        }
        kernel.join().unwrap();
        user.join().unwrap();
        assert_eq!(count.get(), 1);
        assert!(kept.take_read_ready().unwrap().is_some());
        assert_eq!(handle.metrics().registered, 1);
        assert_eq!(world.held(), 1);
    });
}

/// A turn that was told of news, and so did not park, finds none, while somebody registers what is
/// ready: it goes to sleep after all, and wakes for that.
#[test]
fn a_register_against_news_that_come_to_nothing() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        world.trigger(10, IN);
        world.spread_rumour();
        let user = thread::spawn(move || registered(&handle, 10));
        turn_until_events(&mut reactor, 1);
        drop(user.join().unwrap());
    });
}

/// As above, while somebody asks for a turn to end: it ends.
#[test]
fn a_wake_against_news_that_come_to_nothing() {
    explore(Exhaustive, || {
        let (mut reactor, handle, world) = reactor();
        world.spread_rumour();
        let user = thread::spawn(move || handle.wake());
        reactor.turn(None).unwrap();
        user.join().unwrap();
    });
}

/// As above, while an edge comes, of which the rumour may or may not have been.
#[test]
fn an_edge_against_news_that_may_come_to_nothing() {
    explore(Preemptions(3), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        world.spread_rumour();
        let kernel = thread::spawn(move || world.trigger(10, IN));
        assert_eq!(reactor.turn(None).unwrap().events(), 1);
        kernel.join().unwrap();
        assert!(registration.take_read_ready().unwrap().is_some());
    });
}

/// `register` on one registration from two threads while the reactor goes to sleep: it wakes, and
/// arms once.
#[test]
fn two_registers_and_a_sleeping_reactor() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        world.trigger(10, IN);
        let registration = Arc::new(Registration::new());
        let racing = [(); 2].map(|()| {
            let (registration, handle) = (Arc::clone(&registration), handle.clone());
            thread::spawn(move || registration.register_with(&fd(10), &handle).unwrap())
        });
        // It is ready, so that the turn that arms it ends.
        turn_until_events(&mut reactor, 1);
        let made = racing.map(|racer| usize::from(racer.join().unwrap()));
        assert_eq!(made.iter().sum::<usize>(), 1);
        settle(&mut reactor);
        assert_eq!(world.armed(10).len(), 1);
        assert_eq!(world.held(), 1);
    });
}

/// A background reactor, told to end when it is idle, against the drop of the last registration,
/// which was armed.
#[test]
fn shutdown_on_idle_against_the_last_drop() {
    shutdown_on_idle(true);
}

/// As above; the registration came and goes so fast that the kernel need not hear of it.
#[test]
fn shutdown_on_idle_against_a_drop_before_the_first_turn() {
    shutdown_on_idle(false);
}

fn shutdown_on_idle(armed: bool) {
    explore(Preemptions(2), move || {
        let (mut reactor, handle, world) = reactor();
        let registration = registered(&handle, 10);
        if armed {
            turn(&mut reactor);
        }
        let background = reactor.background().unwrap();
        let user = thread::spawn(move || {
            assert!(registration.take_read_ready().is_ok(), "not idle yet");
            drop(registration);
        });
        background.shutdown_on_idle().wait();
        user.join().unwrap();
        assert_eq!(handle.metrics().registered, 0);
        assert_eq!(world.held(), 0);
        assert!(Registration::new().register_with(&fd(10), &handle).is_err());
    });
}

/// As above; the kernel has refused the file, so that no completion tells of the end.
#[test]
fn shutdown_on_idle_against_the_drop_of_a_refused_registration() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world, registration) = armed(10);
        world.end(10, -libc::EBADF);
        turn(&mut reactor);
        assert!(registration.take_read_ready().is_err());
        let background = reactor.background().unwrap();
        let user = thread::spawn(move || drop(registration));
        background.shutdown_on_idle().wait();
        user.join().unwrap();
        assert_eq!(handle.metrics().registered, 0);
    });
}

/// A registration made before the order counts: the reactor stays until it is gone.
#[test]
fn shutdown_on_idle_waits_for_what_was_registered_before() {
    shutdown_on_idle_waits_for(|handle| registered(&handle, 10));
}

/// As above, and made on another thread, of which whoever gives the order has heard.
#[test]
fn shutdown_on_idle_waits_for_what_another_thread_registered_before() {
    shutdown_on_idle_waits_for(|handle| {
        thread::spawn(move || registered(&handle, 10))
            .join()
            .unwrap()
    });
}

fn shutdown_on_idle_waits_for(register: impl Fn(Handle) -> Registration + Sync + Send + 'static) {
    explore(Preemptions(2), move || {
        let (reactor, handle, world) = reactor();
        let background = reactor.background().unwrap();
        let registration = register(handle);
        let shutdown = background.shutdown_on_idle();
        assert!(registration.take_read_ready().is_ok(), "not idle yet");
        drop(registration);
        shutdown.wait();
        assert_eq!(world.held(), 0);
    });
}

/// A race for one registration between two reactors, one of which is to end when it is idle: the one
/// that lost had counted it for a moment, and ends all the same.
#[test]
fn shutdown_on_idle_against_a_race_that_another_reactor_wins() {
    explore(Preemptions(2), || {
        let (winning, handle, _world) = reactor();
        let (losing, others, _) = reactor();
        let registration = Arc::new(Registration::new());
        let user = {
            let registration = Arc::clone(&registration);
            // Whoever comes first; or it finds the reactor gone.
            thread::spawn(move || registration.register_with(&fd(10), &others).is_ok())
        };
        let background = losing.background().unwrap();
        registration.register_with(&fd(10), &handle).unwrap();
        drop(registration);
        background.shutdown_on_idle().wait();
        user.join().unwrap();
        drop(winning);
    });
}

/// A background reactor that is dropped, against a task that polls: it is told, or woken.
#[test]
fn the_drop_of_a_background_against_a_poll() {
    explore(Preemptions(2), || {
        let (reactor, _handle, world, registration) = armed(10);
        let background = reactor.background().unwrap();
        let task = thread::spawn(move || {
            let (count, waker) = Count::new();
            let ready = poll(&registration, Read, &waker).is_ready();
            (registration, ready, count)
        });
        drop(background);
        let (registration, ready, count) = task.join().unwrap();
        assert_eq!(count.get(), usize::from(!ready));
        assert!(is_gone(registration.take_read_ready()));
        assert_eq!(world.held(), 0);
    });
}

/// A user's whole life with a registration, next to a reactor that turns: register, be woken,
/// deregister, register another on the same descriptor.
#[test]
fn a_life_next_to_a_turning_reactor() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        world.trigger(10, IN);
        let user = thread::spawn(move || {
            let first = registered(&handle, 10);
            let _ = poll(&first, Read, Waker::noop());
            drop(first);
            registered(&handle, 10)
        });
        for _ in 0..3 {
            turn(&mut reactor);
        }
        let second = user.join().unwrap();
        settle(&mut reactor);
        assert!(second.take_read_ready().unwrap().is_some());
        assert_eq!(world.armed(10).len(), 1);
        assert_eq!(world.held(), 1);
        drop(second);
        settle(&mut reactor);
        assert!(reactor.driver_mut().is_settled());
    });
}

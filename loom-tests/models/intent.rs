//! Intent and intake: what users want, against the driver that looks.
//!
//! Exhaustive for two threads, bounded for three.

use super::support::*;
use crate::backend::events;
use crate::source::intent::Intent;
use crate::source::word::Direction::{Read, Write};
use crate::source::{Published, Source};
use crate::{Interest, Registration};
use std::task::Waker;

/// Somebody changes an interest while the driver takes the intent: the last one ends up armed.
#[test]
fn an_interest_change_against_drain() {
    explore(Exhaustive, || {
        let (mut reactor, handle, world) = reactor();
        let registration = Arc::new(registered(&handle, 10));
        let writer = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                assert!(poll(&registration, Write, Waker::noop()).is_pending());
            })
        };
        turn(&mut reactor);
        writer.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.armed(10), [IN | OUT | events::RDHUP]);
    });
}

/// As above, while the poll is armed already, by two at once.
#[test]
fn two_interest_changes_against_drain() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        let registration = Registration::new();
        let new = registration.register_interest(&fd(10), Interest::PRIORITY, &handle);
        assert!(new.unwrap());
        turn(&mut reactor);
        let registration = Arc::new(registration);
        let threads = [Interest::READABLE, Interest::WRITABLE].map(|interest| {
            let registration = Arc::clone(&registration);
            thread::spawn(move || registration.source().unwrap().add_interest(interest))
        });
        turn(&mut reactor);
        for thread in threads {
            thread.join().unwrap();
        }
        settle(&mut reactor);
        let mut armed = world.armed(10);
        armed.sort_unstable();
        // The main poll and the one for urgent data, each once.
        let mut wanted = [events::PRI | IN, IN | OUT | events::RDHUP];
        wanted.sort_unstable();
        assert_eq!(armed, wanted);
    });
}

/// Somebody asks for a direction whose source is queued already, and so pushes nothing: the driver
/// that arms it knows what was done before.
#[test]
fn what_led_to_a_wish_is_seen_by_the_driver() {
    explore(Exhaustive, || {
        let (mut reactor, handle, world) = reactor();
        let registration = Arc::new(registered(&handle, 10));
        world.memory().armings();
        let writer = {
            let (registration, world) = (Arc::clone(&registration), Arc::clone(&world));
            thread::spawn(move || {
                world.memory().write();
                registration
                    .source()
                    .unwrap()
                    .add_interest(Interest::WRITABLE);
            })
        };
        turn(&mut reactor);
        writer.join().unwrap();
        settle(&mut reactor);
        let mut wished = world.memory().armings();
        wished.retain(|arming| arming.events & OUT != 0);
        assert_eq!(wished.len(), 1);
        assert!(wished[0].saw_written);
    });
}

/// A registration that is dropped while the driver looks for the first time: armed and cancelled,
/// or neither; it counts down once.
#[test]
fn a_drop_against_the_first_drain() {
    explore(Exhaustive, || {
        let (mut reactor, handle, world) = reactor();
        let registration = registered(&handle, 10);
        let dropper = thread::spawn(move || drop(registration));
        turn(&mut reactor);
        dropper.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.held(), 0);
        assert!(reactor.driver_mut().is_settled());
        assert!(reactor.is_idle());
    });
}

/// Two sources pushed from two threads while the driver drains: each comes out once, and what was
/// written before the push is seen.
#[test]
fn two_pushes_against_drain() {
    explore(Exhaustive, || {
        let (reactor, handle, world) = reactor();
        let shared = Arc::clone(reactor.shared());
        let pushers = [10, 11].map(|number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let source = Source::new(number, Interest::READABLE, Arc::clone(&shared));
                // Known to the two that count it, and to the list.
                let pushed = shared.intake.push(Arc::new(source));
                assert!(pushed.is_ok());
            })
        });
        let mut drained: Vec<_> = shared.intake.drain().collect();
        for pusher in pushers {
            pusher.join().unwrap();
        }
        assert!(shared.intake.is_empty() != (drained.len() < 2));
        drained.extend(shared.intake.drain());
        let mut numbers: Vec<_> = drained.iter().map(|source| source.fd()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [10, 11]);
        drop((reactor, handle, world));
    });
}

/// A source that is queued again as soon as the driver has looked, while the driver still walks
/// through what it drained.
#[test]
fn a_second_push_against_the_drain_of_the_first() {
    explore(Exhaustive, || {
        let (mut reactor, handle, world) = reactor();
        // Three in a row, so that the links matter.
        let first = registered(&handle, 10);
        let second = Arc::new(registered(&handle, 11));
        let third = registered(&handle, 12);
        let writer = {
            let second = Arc::clone(&second);
            thread::spawn(move || second.source().unwrap().add_interest(Interest::WRITABLE))
        };
        turn(&mut reactor);
        writer.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.armed(10), [IN | events::RDHUP]);
        assert_eq!(world.armed(11), [IN | OUT | events::RDHUP]);
        assert_eq!(world.armed(12), [IN | events::RDHUP]);
        drop((first, third));
    });
}

/// A push against the end of the intake: drained with it, or given back.
#[test]
fn a_push_against_close() {
    explore(Exhaustive, || {
        let (reactor, handle, world) = reactor();
        let shared = Arc::clone(reactor.shared());
        let pusher = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let source = Source::new(10, Interest::READABLE, Arc::clone(&shared));
                shared.intake.push(Arc::new(source)).is_ok()
            })
        };
        let drained = shared.intake.close().count();
        assert_eq!(pusher.join().unwrap(), drained == 1);
        assert!(shared.intake.is_closed() && shared.intake.is_empty());
        drop((reactor, handle, world));
    });
}

/// A descriptor handed over while the driver looks: closed once, and after everything that its
/// owner did before.
#[test]
fn a_descriptor_handed_over_against_drain() {
    hand_over(|_| {});
}

/// As above, with the poll ending by itself: then the driver looks although nobody pushed.
#[test]
fn a_descriptor_handed_over_against_an_end() {
    hand_over(|reactor| {
        turn(reactor);
    });
}

fn hand_over(before: impl Fn(&mut crate::Reactor) + Sync + Send + 'static) {
    explore(Preemptions(3), move || {
        let (mut reactor, handle, world) = reactor();
        let io = file();
        let number = std::os::fd::AsRawFd::as_raw_fd(&io);
        let mut registration = Registration::new();
        registration.register_with(&io, &handle).unwrap();
        before(&mut reactor);
        world.end(number, -libc::ECANCELED);
        let closer = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.memory().write();
                registration.deregister_and_close(io).unwrap();
            })
        };
        turn(&mut reactor);
        turn(&mut reactor);
        closer.join().unwrap();
        settle(&mut reactor);
        let adopted = world.memory().adopted();
        assert_eq!(adopted.len(), 1);
        assert_eq!(adopted[0].fd, number);
        assert!(adopted[0].saw_written);
        assert!(reactor.driver_mut().is_settled());
        assert_eq!(world.held(), 0);
    });
}

/// What a poll finds out about a source that is not announced: it announces it.
#[test]
fn a_poll_announces_what_nobody_has() {
    explore(Exhaustive, || {
        let (mut reactor, handle, world) = reactor();
        let source = Arc::new(Source::new(
            10,
            Interest::READABLE,
            Arc::clone(reactor.shared()),
        ));
        reactor.shared().count_up();
        let poller = {
            let source = Arc::clone(&source);
            thread::spawn(move || {
                // SAFETY: `source` outlives it.
                let published = unsafe { Published::from_raw(&raw const *source) };
                assert!(published.poll(Read, Waker::noop()).is_pending());
                assert!(source.intent().contains(Intent::ANNOUNCED));
            })
        };
        // SAFETY: as above.
        let published = unsafe { Published::from_raw(&raw const *source) };
        published.announce();
        poller.join().unwrap();
        turn(&mut reactor);
        assert_eq!(world.armed(10).len(), 1);
        published.deregister(None);
        settle(&mut reactor);
        assert_eq!(world.held(), 0);
        drop(handle);
    });
}

//! Sources that are used again.
//!
//! Exhaustive where two threads meet, bounded where three do.

use super::support::*;
use crate::backend::fake::World;
use crate::source::Source;
use crate::source::word::Direction::Read;
use crate::{Handle, Reactor, Registration};
use std::collections::BTreeSet;
use std::sync::Mutex;

/// Which source it is, to be compared and nothing else.
fn identity(registration: &Registration) -> usize {
    let source: *const Source = Arc::as_ptr(&registration.source().unwrap());
    source.addr()
}

/// A registration came and went. Its source is spare.
fn with_a_spare() -> (Reactor, Handle, Arc<World>, usize) {
    let (mut reactor, handle, world, registration) = armed(9);
    let source = identity(&registration);
    drop(registration);
    settle(&mut reactor);
    assert_eq!(world.held(), 0);
    (reactor, handle, world, source)
}

/// A task polls what it registers while the reactor is done with what was registered before: it gets
/// a source that nobody has any more, or another.
#[test]
fn a_register_against_an_end() {
    let seen = std::sync::Arc::new(Mutex::new(BTreeSet::new()));
    let outcomes = std::sync::Arc::clone(&seen);
    explore(Exhaustive, move || {
        let (mut reactor, handle, world, before) = armed(10);
        let (_, waker) = Count::new();
        assert!(poll(&before, Read, &waker).is_pending());
        let source = identity(&before);
        drop(before);
        let user = thread::spawn(move || {
            let after = registered(&handle, 11);
            let (count, waker) = Count::new();
            assert!(poll(&after, Read, &waker).is_pending());
            (after, count)
        });
        turn(&mut reactor);
        let (after, count) = user.join().unwrap();
        outcomes.lock().unwrap().insert(identity(&after) == source);
        settle(&mut reactor);
        assert_eq!(world.held(), 1);
        world.trigger(11, IN);
        assert_eq!(turn(&mut reactor), 1);
        assert_eq!(count.get(), 1);
        assert!(is_forgotten(&count));
        assert!(after.take_read_ready().unwrap().is_some());
    });
    assert_eq!(*seen.lock().unwrap(), BTreeSet::from([false, true]));
}

/// There is one spare, and two threads register: one of them gets it.
#[test]
fn two_registers_after_an_end() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world, source) = with_a_spare();
        let users = [10, 11].map(|number| {
            let handle = handle.clone();
            thread::spawn(move || registered(&handle, number))
        });
        let registrations = users.map(|user| user.join().unwrap());
        let spares = registrations.iter().map(identity);
        assert_eq!(spares.filter(|&used| used == source).count(), 1);
        for number in [10, 11] {
            world.trigger(number, IN);
        }
        turn_until_events(&mut reactor, 2);
        for registration in registrations {
            assert!(registration.take_read_ready().unwrap().is_some());
        }
    });
}

/// The reactor ends, and its spares with it, while somebody registers.
#[test]
fn the_end_against_a_register() {
    explore(Preemptions(3), || {
        let (reactor, handle, world, _source) = with_a_spare();
        let user = thread::spawn(move || {
            let registration = Registration::new();
            if registration.register_with(&fd(10), &handle).is_ok() {
                let (_, waker) = Count::new();
                let _ = poll(&registration, Read, &waker);
            }
            registration
        });
        drop(reactor);
        let registration = user.join().unwrap();
        assert!(registration.source().is_none() || is_gone(registration.take_read_ready()));
        assert_eq!(world.held(), 0);
    });
}

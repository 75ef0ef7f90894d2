//! Publication: any number of `register` calls at once.
//!
//! Bounded.

use super::support::*;
use crate::source::intent::Intent;
use crate::source::word::Direction::Read;
use crate::{Handle, Registration};
use std::task::Poll;

/// What holds for whoever has seen that the registration is made, whoever made it.
fn assert_made(registration: &Registration) {
    let source = registration.source().unwrap();
    // Nobody has to be scheduled again for it to be announced, and it counts.
    assert!(source.intent().contains(Intent::ANNOUNCED));
    assert_ne!(source.shared().registered(), 0);
}

fn register(
    registration: &Arc<Registration>,
    handle: &Handle,
    and_then: impl FnOnce(&Registration) + 'static,
) -> thread::JoinHandle<bool> {
    let registration = Arc::clone(registration);
    let handle = handle.clone();
    thread::spawn(move || {
        let first = registration.register_with(&fd(10), &handle).unwrap();
        and_then(&registration);
        first
    })
}

/// One of them makes it, one source is armed, and nothing of the others is left.
fn race(threads: usize, and_then: fn(&Registration)) {
    explore(Preemptions(3), move || {
        let (mut reactor, handle, world) = reactor();
        let registration = Arc::new(Registration::new());
        let racing: Vec<_> = (1..threads)
            .map(|_| register(&registration, &handle, and_then))
            .collect();
        let here = registration.register_with(&fd(10), &handle).unwrap();
        and_then(&registration);
        let mut made = usize::from(here);
        for racer in racing {
            made += usize::from(racer.join().unwrap());
        }
        assert_eq!(made, 1);
        assert_eq!(handle.metrics().registered, 1);
        turn(&mut reactor);
        assert_eq!(world.armed(10).len(), 1);
        assert!(!registration.register_with(&fd(10), &handle).unwrap());
        drop(registration);
        settle(&mut reactor);
        assert!(reactor.driver_mut().is_settled());
        assert_eq!(world.held(), 0);
    });
}

#[test]
fn two_registers() {
    race(2, assert_made);
}

#[test]
fn three_registers() {
    race(3, |_| {});
}

/// A poll that saw "registered" is woken, and one that did not says so.
#[test]
fn two_registers_and_a_poll() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        let registration = Arc::new(Registration::new());
        let racing = [(); 2].map(|()| register(&registration, &handle, assert_made));
        let (count, waker) = Count::new();
        let poll = poll(&registration, Read, &waker);
        match &poll {
            Poll::Pending => assert_made(&registration),
            Poll::Ready(result) => assert!(result.is_err(), "not registered yet"),
        }
        let made = racing.map(|racer| usize::from(racer.join().unwrap()));
        assert_eq!(made.iter().sum::<usize>(), 1);
        turn(&mut reactor);
        assert_eq!(world.armed(10).len(), 1);
        world.trigger(10, IN);
        assert_eq!(turn(&mut reactor), 1);
        assert_eq!(count.get(), usize::from(poll.is_pending()));
        drop(registration);
        drop(waker);
        assert!(is_forgotten(&count));
    });
}

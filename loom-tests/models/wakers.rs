//! Edge word and waker cells: dispatch against polls.

use super::support::*;
use crate::backend::events;
use loom::thread;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

const NOW: Option<Duration> = Some(Duration::ZERO);

/// An edge is returned or its waker is called, never neither.
#[test]
fn dispatch_against_two_pollers() {
    explore("dispatch_against_two_pollers", 3, || {
        let (mut reactor, handle, world) = reactor();
        let registration = Arc::new(registered(&handle, 10));
        reactor.turn(NOW).unwrap();
        world.trigger(10, events::IN | events::OUT);
        let reader = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let (count, waker) = Count::new();
                let poll = registration.poll_read_ready(&mut Context::from_waker(&waker));
                (count, poll.is_ready())
            })
        };
        let writer = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let (count, waker) = Count::new();
                let poll = registration.poll_write_ready(&mut Context::from_waker(&waker));
                (count, poll.is_ready())
            })
        };
        assert_eq!(reactor.turn(NOW).unwrap().events(), 1);
        let (count, ready) = reader.join().unwrap();
        assert!(
            ready != (count.get() == 1),
            "returned or woken, and not both"
        );
        let left = registration.take_read_ready().unwrap();
        assert_eq!(left.is_some(), !ready);
        let (count, ready) = writer.join().unwrap();
        assert!(ready != (count.get() == 1));
        let left = registration.take_write_ready().unwrap();
        assert_eq!(left.is_some(), !ready);
    });
}

/// The newest waker or its predecessor is called.
#[test]
fn replaced_waker_against_dispatch() {
    explore("replaced_waker_against_dispatch", 3, || {
        let (mut reactor, handle, world) = reactor();
        let registration = Arc::new(registered(&handle, 10));
        reactor.turn(NOW).unwrap();
        let (first, waker) = Count::new();
        let poll = registration.poll_read_ready(&mut Context::from_waker(&waker));
        assert!(poll.is_pending());
        world.trigger(10, events::IN);
        let other = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let (count, waker) = Count::new();
                match registration.poll_read_ready(&mut Context::from_waker(&waker)) {
                    Poll::Ready(_) => true,
                    Poll::Pending => {
                        count.get() > 0 || {
                            // Its waker is in the cell: dispatch has yet to come.
                            false
                        }
                    }
                }
            })
        };
        reactor.turn(NOW).unwrap();
        other.join().unwrap();
        assert_eq!(first.get(), 1, "woken by the edge, or by its successor");
    });
}

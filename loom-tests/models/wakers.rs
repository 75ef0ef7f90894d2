//! Edge word and waker cells: dispatch against the two tasks of a registration.
//!
//! Exhaustive where two threads meet, bounded where three do.

use super::support::*;
use crate::Registration;
use crate::source::Source;
use crate::source::word::Direction::{self, Read, Write};
use crate::sync::{AtomicBool, Ordering};
use crate::{Interest, Ready};
use std::task::{Poll, Waker};

/// A task that polls once. Returns whether it got an edge, and how to tell whether it was woken.
fn poller(
    registration: &Arc<Registration>,
    direction: Direction,
) -> thread::JoinHandle<(bool, std::sync::Arc<Count>)> {
    let registration = Arc::clone(registration);
    thread::spawn(move || {
        let (count, waker) = Count::new();
        let ready = poll(&registration, direction, &waker).is_ready();
        (ready, count)
    })
}

/// An edge is returned or its waker is called, never neither, and not both.
#[test]
fn dispatch_against_two_directions() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        let registration = Registration::new();
        registration.register_with(&fd(10), &handle).unwrap();
        turn(&mut reactor);
        world.trigger(10, IN | OUT);
        let registration = Arc::new(registration);
        let tasks = [Read, Write].map(|direction| (direction, poller(&registration, direction)));
        assert_eq!(turn(&mut reactor), 1);
        for (direction, task) in tasks {
            let (ready, count) = task.join().unwrap();
            assert_eq!(count.get(), usize::from(!ready));
            let left = match direction {
                Read => registration.take_read_ready(),
                Write => registration.take_write_ready(),
            };
            assert_eq!(left.unwrap().is_some(), !ready);
            assert!(!ready || is_forgotten(&count));
        }
    });
}

/// A task leaves another waker for the same direction while the edge comes: the first is woken, by
/// the edge or by its successor, and so is the second if it was not answered.
#[test]
fn a_replaced_waker_against_dispatch() {
    explore(Exhaustive, || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let (first, waker) = Count::new();
        assert!(poll(&registration, Read, &waker).is_pending());
        drop(waker);
        world.trigger(10, IN);
        let registration = Arc::new(registration);
        let second = poller(&registration, Read);
        assert_eq!(turn(&mut reactor), 1);
        let (ready, second) = second.join().unwrap();
        assert_eq!(first.get(), 1);
        assert!(is_forgotten(&first));
        assert_eq!(second.get(), usize::from(!ready));
        drop(registration);
        assert!(is_forgotten(&second));
    });
}

/// The same task polls again while the edge comes: it is woken at most once, and never left out.
#[test]
fn a_second_poll_of_one_task_against_dispatch() {
    explore(Exhaustive, || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let (count, waker) = Count::new();
        assert!(poll(&registration, Read, &waker).is_pending());
        world.trigger(10, IN);
        let registration = Arc::new(registration);
        let task = {
            let (registration, waker) = (Arc::clone(&registration), waker.clone());
            thread::spawn(move || poll(&registration, Read, &waker).is_ready())
        };
        assert_eq!(turn(&mut reactor), 1);
        let ready = task.join().unwrap();
        assert!(count.get() <= 1);
        assert!(ready || count.get() == 1);
        drop((registration, waker));
        assert!(is_forgotten(&count));
    });
}

/// A task takes the edge and waits again while it is still being called for it: what it leaves then
/// stays for the next edge, unless it is called at once.
#[test]
fn a_task_that_waits_again_against_its_dispatch() {
    explore(Exhaustive, || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let (first, waker) = Count::new();
        assert!(poll(&registration, Read, &waker).is_pending());
        drop(waker);
        world.trigger(10, IN);
        world.calm(10);
        let registration = Arc::new(registration);
        let task = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let (count, waker) = Count::new();
                let answered = poll(&registration, Read, &waker).is_ready();
                assert!(!answered || poll(&registration, Read, &waker).is_pending());
                (answered, count)
            })
        };
        assert_eq!(turn(&mut reactor), 1);
        let (answered, second) = task.join().unwrap();
        if answered {
            world.trigger(10, IN);
            assert_eq!(turn(&mut reactor), 1);
        }
        assert_eq!((first.get(), second.get()), (1, 1));
        drop(registration);
        assert!(is_forgotten(&first) && is_forgotten(&second));
    });
}

/// Two tasks poll one direction while the edge comes. Whoever is not answered is woken, unless the
/// other took the edge; then the next edge wakes it.
#[test]
fn two_polls_of_one_direction_against_dispatch() {
    explore(Preemptions(2), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        world.trigger(10, IN);
        world.calm(10);
        let registration = Arc::new(registration);
        let tasks = [(); 2].map(|()| poller(&registration, Read));
        assert_eq!(turn(&mut reactor), 1);
        let tasks = tasks.map(|task| task.join().unwrap());
        let answered = tasks.iter().filter(|(ready, _)| *ready).count();
        assert!(answered <= 1, "one edge, taken once");
        if answered == 0 {
            assert!(registration.take_read_ready().unwrap().is_some());
        } else {
            world.trigger(10, IN);
            assert_eq!(turn(&mut reactor), 1);
        }
        for (ready, count) in &tasks {
            assert!(*ready || count.get() > 0);
        }
        drop(registration);
        assert!(tasks.iter().all(|(_, count)| is_forgotten(count)));
    });
}

/// Two edges against a poll: both are seen, by it or by the next, and the waker is called once.
#[test]
fn two_edges_against_a_poll() {
    explore(Exhaustive, || {
        let (reactor, _handle, _world) = reactor();
        let source = Arc::new(Source::new(
            10,
            Interest::READABLE | Interest::PRIORITY,
            Arc::clone(reactor.shared()),
        ));
        let (count, waker) = Count::new();
        let task = {
            let source = Arc::clone(&source);
            thread::spawn(move || {
                // SAFETY: `source` outlives it. Announced, so that no driver is asked.
                let source = unsafe { crate::source::Published::from_raw(&raw const *source) };
                match source.poll(Read, &waker) {
                    Poll::Ready(ready) => ready.unwrap(),
                    Poll::Pending => Ready::EMPTY,
                }
            })
        };
        source.dispatch(Ready::READABLE);
        source.dispatch(Ready::PRIORITY);
        let seen = task.join().unwrap();
        let rest = source.take(Read).map_or(Ready::EMPTY, Result::unwrap);
        assert_eq!(seen | rest, Ready::READABLE | Ready::PRIORITY);
        assert_eq!(seen & rest, Ready::EMPTY);
        assert_eq!(count.get(), usize::from(seen.is_empty()));
        assert!(is_forgotten(&count));
        drop(reactor);
    });
}

/// What a poll is answered with happened before: whoever is told of an edge sees what led to it.
fn what_led_to_an_edge_is_seen(
    ask: impl Fn(&Registration) -> bool + Clone + Sync + Send + 'static,
) {
    explore(Preemptions(3), move || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let registration = Arc::new(registration);
        let written = Arc::new(AtomicBool::new(false));
        let kernel = {
            let (world, written) = (Arc::clone(&world), Arc::clone(&written));
            thread::spawn(move || {
                written.store(true, Ordering::Relaxed);
                world.trigger(10, IN);
            })
        };
        let task = {
            let (registration, ask) = (Arc::clone(&registration), ask.clone());
            thread::spawn(move || {
                if ask(&registration) {
                    assert!(written.load(Ordering::Relaxed));
                }
            })
        };
        turn(&mut reactor);
        kernel.join().unwrap();
        task.join().unwrap();
    });
}

#[test]
fn what_led_to_an_edge_is_seen_by_a_poll() {
    what_led_to_an_edge_is_seen(|registration| poll(registration, Read, Waker::noop()).is_ready());
}

#[test]
fn what_led_to_an_edge_is_seen_by_a_look() {
    what_led_to_an_edge_is_seen(|registration| {
        let source = registration.source().unwrap();
        source.peek(Interest::READABLE).is_some()
    });
}

#[test]
fn what_led_to_an_edge_is_seen_by_a_guard() {
    what_led_to_an_edge_is_seen(|registration| {
        let source = registration.source().unwrap();
        source
            .poll_event(Read, Interest::READABLE, Waker::noop())
            .is_ready()
    });
}

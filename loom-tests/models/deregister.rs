//! The end of a registration from the user's side, against the driver that dispatches, cancels and
//! frees.
//!
//! Exhaustive where two threads meet, bounded where three do and where one of two has much to do.

use super::support::*;
use crate::source::word::Direction::{Read, Write};
use std::task::Poll;

/// An edge comes while the registration ends: its waiter is called once, by one of the two, and no
/// turn that starts afterwards notifies anybody.
#[test]
fn deregister_against_dispatch() {
    explore(Exhaustive, || {
        let (mut reactor, _handle, world, mut registration) = armed(10);
        let counts = [Read, Write].map(|direction| {
            let (count, waker) = Count::new();
            assert!(poll(&registration, direction, &waker).is_pending());
            count
        });
        settle(&mut reactor);
        world.trigger(10, IN | OUT);
        let user = thread::spawn(move || {
            registration.deregister(&fd(10)).unwrap();
            registration
        });
        turn(&mut reactor);
        let registration = user.join().unwrap();
        for count in &counts {
            assert_eq!(count.get(), 1);
            assert!(is_forgotten(count));
        }
        assert!(registration.take_read_ready().is_err());
        world.trigger(10, IN | OUT);
        for _ in 0..4 {
            assert_eq!(turn(&mut reactor), 0);
        }
        assert!(counts.iter().all(|count| count.get() == 1));
        assert!(reactor.driver_mut().is_settled());
        assert_eq!(world.held(), 0);
    });
}

/// As above, and the kernel says everything twice.
#[test]
fn deregister_against_completions_that_come_twice() {
    explore(Preemptions(3), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let (count, waker) = Count::new();
        assert!(poll(&registration, Read, &waker).is_pending());
        world.trigger(10, IN);
        let user = thread::spawn(move || drop(registration));
        turn(&mut reactor);
        world.repeat_all();
        turn(&mut reactor);
        user.join().unwrap();
        for _ in 0..3 {
            world.repeat_all();
            turn(&mut reactor);
        }
        assert_eq!(count.get(), 1);
        assert!(reactor.is_idle());
        assert!(reactor.driver_mut().is_settled());
        assert_eq!(world.held(), 0);
    });
}

/// A registration whose last completion is still on its way, while its slot is wanted by another:
/// the slot is not given away before.
#[test]
fn a_slot_is_wanted_while_its_last_completion_is_in_flight() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world, mut first) = armed(10);
        world.keep_ends();
        first.deregister(&fd(10)).unwrap();
        turn(&mut reactor);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.let_end(10))
        };
        let user = thread::spawn(move || registered(&handle, 11));
        turn(&mut reactor);
        turn(&mut reactor);
        kernel.join().unwrap();
        let second = user.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.armed(11).len(), 1);
        assert_eq!(world.held(), 1);
        world.trigger(11, IN);
        assert_eq!(turn(&mut reactor), 1);
        assert!(second.take_read_ready().unwrap().is_some());
        drop(second);
        turn(&mut reactor);
        world.let_end(11);
        settle(&mut reactor);
        assert!(reactor.driver_mut().is_settled());
    });
}

/// As above, and whatever was said of the first is said again when the second has the slot: a
/// completion of the past is no stranger's.
#[test]
fn a_slot_has_a_new_owner_when_completions_come_twice() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world, first) = armed(10);
        world.trigger(10, IN);
        turn(&mut reactor);
        let user = {
            let handle = handle.clone();
            thread::spawn(move || {
                drop(first);
                registered(&handle, 11)
            })
        };
        turn(&mut reactor);
        turn(&mut reactor);
        let second = user.join().unwrap();
        settle(&mut reactor);
        world.repeat_all();
        settle(&mut reactor);
        assert_eq!(second.take_read_ready().unwrap(), None);
        assert_eq!(world.armed(11).len(), 1);
        assert_eq!(world.held(), 1);
        assert_eq!(handle.metrics().rearms, 0);
    });
}

/// A cancel that comes too late for a wake-up under way, which the driver repeats.
#[test]
fn a_cancel_that_comes_too_late_against_an_edge() {
    explore(Preemptions(3), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        world.come_too_late(1);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.trigger(10, IN))
        };
        let user = thread::spawn(move || drop(registration));
        turn(&mut reactor);
        kernel.join().unwrap();
        user.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.held(), 0);
        assert!(reactor.driver_mut().is_settled());
    });
}

/// A task waits for the kernel to let go of the file (`AsyncFd::close`), while it does: it is
/// answered or woken, and knows then that the descriptor was closed.
#[test]
fn a_wait_for_the_release_against_it() {
    wait_for_the_release(true);
}

/// As above; the registration came and went so fast that the kernel need not hear of it.
#[test]
fn a_wait_for_the_release_of_what_was_never_armed() {
    wait_for_the_release(false);
}

/// As above; the poll has ended, and the kernel takes its time with the closing.
#[test]
fn a_wait_for_the_release_against_a_slow_close() {
    explore(Preemptions(3), || {
        let (mut reactor, world, source, number) = handed_over(true);
        world.keep_closes();
        turn(&mut reactor);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.let_close())
        };
        let (count, waker) = Count::new();
        let task = {
            let (source, waker, world) = (Arc::clone(&source), waker.clone(), Arc::clone(&world));
            thread::spawn(move || {
                let ready = source.poll_released(&waker).is_ready();
                assert!(!ready || world.closed() == [number]);
                ready
            })
        };
        turn(&mut reactor);
        kernel.join().unwrap();
        settle(&mut reactor);
        let ready = task.join().unwrap();
        assert!(ready || count.get() == 1);
        assert_eq!(source.poll_released(&waker), Poll::Ready(()));
        assert_eq!(world.closed(), [number]);
        assert!(reactor.driver_mut().is_settled());
    });
}

fn wait_for_the_release(armed: bool) {
    explore(Preemptions(3), move || {
        let (mut reactor, world, source, number) = handed_over(armed);
        let (count, waker) = Count::new();
        let task = {
            let (source, waker, world) = (Arc::clone(&source), waker.clone(), Arc::clone(&world));
            thread::spawn(move || {
                let ready = source.poll_released(&waker).is_ready();
                assert!(!ready || world.memory().has_adopted());
                ready
            })
        };
        settle(&mut reactor);
        let ready = task.join().unwrap();
        assert!(ready || count.get() == 1);
        assert_eq!(source.poll_released(&waker), Poll::Ready(()));
        assert_eq!(world.memory().adopted()[0].fd, number);
        assert_eq!(world.closed().len(), usize::from(armed));
        drop((source, waker));
        assert!(is_forgotten(&count));
    });
}

//! The doorbell: a reactor that goes to sleep, against whoever has news for it. A reactor that slept
//! through the news would sleep for ever, and loom calls that a deadlock.
//!
//! Exhaustive where two threads meet, bounded where three do.

use super::support::*;
use crate::backend::fake::World;
use crate::doorbell::Parked;
use crate::source::word::Direction::Read;
use crate::sync::{AtomicBool, Ordering};
use crate::{Handle, Reactor, Registration};
use std::future::poll_fn;
use std::os::fd::AsFd;
use std::task::Poll;

/// Turns that may sleep, until so many events have come. What is registered is ready, so the turn
/// that arms it ends, and so does one that slept when it came.
fn turn_until(reactor: &mut Reactor, events: usize) {
    let mut seen = 0;
    while seen < events {
        seen += reactor.turn(None).unwrap().events();
    }
}

/// A registration against a reactor that parks.
#[test]
fn push_against_park() {
    explore(Exhaustive, || {
        let (mut reactor, handle, world) = reactor();
        world.trigger(10, IN);
        let pusher = thread::spawn(move || registered_for_both(&handle, 10));
        turn_until(&mut reactor, 1);
        assert!(world.rings() <= 1);
        let registration = pusher.join().unwrap();
        assert!(registration.take_read_ready().unwrap().is_some());
    });
}

/// Two at once.
#[test]
fn two_pushes_against_park() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        let pushers = [10, 11].map(|number| {
            world.trigger(number, IN);
            let handle = handle.clone();
            thread::spawn(move || registered_for_both(&handle, number))
        });
        turn_until(&mut reactor, 2);
        for pusher in pushers {
            let registration = pusher.join().unwrap();
            assert!(registration.take_read_ready().unwrap().is_some());
        }
    });
}

/// A reactor that sleeps is rung once for any number of pushes.
#[test]
fn two_pushes_while_parked() {
    explore(Preemptions(3), || {
        let (reactor, _handle, world) = reactor();
        let shared = Arc::clone(reactor.shared());
        assert_eq!(shared.doorbell.park(0, || true), Parked::Asleep);
        let pushers = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.nudge())
        });
        for pusher in pushers {
            pusher.join().unwrap();
        }
        assert_eq!(world.rings(), 1);
        assert!(shared.doorbell.unpark());
    });
}

/// A wake against a reactor that parks: the turn ends, and has seen what the caller did before.
#[test]
fn wake_against_park() {
    explore(Exhaustive, || {
        let (mut reactor, handle, _world) = reactor();
        let written = Arc::new(AtomicBool::new(false));
        let waker = {
            let written = Arc::clone(&written);
            thread::spawn(move || {
                written.store(true, Ordering::Relaxed);
                handle.wake();
            })
        };
        assert_eq!(reactor.turn(None).unwrap().events(), 0);
        assert!(written.load(Ordering::Relaxed));
        waker.join().unwrap();
        assert!(!reactor.shared().doorbell.is_rung(), "one turn has ended");
    });
}

/// A wake against turns that do not sleep: it ends one of them or the one that comes after.
#[test]
fn wake_against_turns_that_do_not_sleep() {
    explore(Exhaustive, || {
        let (mut reactor, handle, _world) = reactor();
        let written = Arc::new(AtomicBool::new(false));
        let waker = {
            let written = Arc::clone(&written);
            thread::spawn(move || {
                written.store(true, Ordering::Relaxed);
                handle.wake();
            })
        };
        turn(&mut reactor);
        turn(&mut reactor);
        if !written.load(Ordering::Relaxed) {
            // None of them ended for it.
            reactor.turn(None).unwrap();
            assert!(written.load(Ordering::Relaxed));
        }
        waker.join().unwrap();
    });
}

/// Two wakes at once: whatever the turn that ends has not seen, the next one ends for.
#[test]
fn two_wakes_against_park() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, _world) = reactor();
        let written = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let wakers = [0, 1].map(|index| {
            let (written, handle) = (Arc::clone(&written), handle.clone());
            thread::spawn(move || {
                written[index].store(true, Ordering::Relaxed);
                handle.wake();
            })
        });
        while !written
            .iter()
            .all(|written| written.load(Ordering::Relaxed))
        {
            reactor.turn(None).unwrap();
        }
        for waker in wakers {
            waker.join().unwrap();
        }
    });
}

/// A push and a wake: whichever rings first rings for both, and what came before the wake is seen by
/// a turn that ends for it.
#[test]
fn a_push_and_a_wake_against_park() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        world.trigger(10, IN);
        let written = Arc::new(AtomicBool::new(false));
        let pusher = {
            let handle = handle.clone();
            thread::spawn(move || registered_for_both(&handle, 10))
        };
        let waker = {
            let written = Arc::clone(&written);
            thread::spawn(move || {
                written.store(true, Ordering::Relaxed);
                handle.wake();
            })
        };
        turn_until(&mut reactor, 1);
        // The push may have rung twice, for one turn too many; but the wake ends one as well.
        while !written.load(Ordering::Relaxed) {
            reactor.turn(None).unwrap();
        }
        waker.join().unwrap();
        drop(pusher.join().unwrap());
    });
}

/// A future whose conditions are met by two threads, each of which calls the waker: the last poll
/// sees both.
#[test]
fn block_on_against_two_wakers() {
    explore(Preemptions(3), || {
        let (mut reactor, _handle, _world) = reactor();
        let met = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let mut threads = Vec::new();
        let future = poll_fn(|cx| {
            if threads.is_empty() {
                threads.extend([0, 1].map(|index| {
                    let (met, waker) = (Arc::clone(&met), cx.waker().clone());
                    thread::spawn(move || {
                        met[index].store(true, Ordering::Relaxed);
                        waker.wake();
                    })
                }));
            }
            if met.iter().all(|met| met.load(Ordering::Relaxed)) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        reactor.block_on(future).unwrap();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// A reactor that is nested in another loop has taken its turn and lies still; the news must make
/// its descriptor readable, for which the other loop waits, and the turn for it finds them. Or the
/// descriptor is asked for while the news come.
fn nested(
    late: bool,
    news: impl Fn(&Handle, &World) -> Option<Registration> + Clone + Sync + Send + 'static,
    seen: impl Fn(&World) -> bool + Sync + Send + 'static,
) {
    explore(Preemptions(3), move || {
        let (mut reactor, handle, world) = reactor();
        if late {
            turn(&mut reactor);
        } else {
            let _ = reactor.as_fd();
        }
        let teller = {
            let (world, news) = (Arc::clone(&world), news.clone());
            thread::spawn(move || news(&handle, &world))
        };
        if late {
            let _ = reactor.as_fd();
        } else {
            turn(&mut reactor);
        }
        while !seen(&world) {
            world.wait_until_raised();
            turn(&mut reactor);
        }
        teller.join().unwrap();
    });
}

fn nested_hears_of_a_registration(late: bool) {
    nested(
        late,
        |handle, _| Some(registered(handle, 10)),
        |world| !world.armed(10).is_empty(),
    );
}

fn nested_hears_of_a_wake(late: bool) {
    nested(
        late,
        |handle, world| {
            world.memory().write();
            handle.wake();
            None
        },
        |world| world.memory().is_written(),
    );
}

#[test]
fn a_nested_reactor_hears_of_a_registration() {
    nested_hears_of_a_registration(false);
}

#[test]
fn a_nested_reactor_hears_of_a_wake() {
    nested_hears_of_a_wake(false);
}

#[test]
fn a_reactor_that_becomes_nested_hears_of_a_registration() {
    nested_hears_of_a_registration(true);
}

#[test]
fn a_reactor_that_becomes_nested_hears_of_a_wake() {
    nested_hears_of_a_wake(true);
}

/// As above, with a completion as the news, for which a task waits: it is answered or woken.
#[test]
fn a_nested_reactor_hears_of_an_event() {
    explore(Preemptions(3), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let registration = Arc::new(registration);
        let _ = reactor.as_fd();
        turn(&mut reactor);
        let task = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let (count, waker) = Count::new();
                (poll(&registration, Read, &waker).is_ready(), count)
            })
        };
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.trigger(10, IN))
        };
        world.wait_until_raised();
        if turn(&mut reactor) == 0 {
            world.wait_until_raised();
            assert_eq!(turn(&mut reactor), 1);
        }
        kernel.join().unwrap();
        let (ready, count) = task.join().unwrap();
        assert!(ready || count.get() == 1);
    });
}

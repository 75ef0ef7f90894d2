//! The end of the reactor, against everything.
//!
//! Exhaustive where two threads meet, bounded where three do.

use super::support::*;
use crate::Registration;
use crate::backend::fake::World;
use crate::source::Source;
use crate::source::word::Direction::{Read, Write};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::task::Waker;

/// Every poll is answered with "gone" or its waker is called, once; nobody's waker is kept.
#[test]
fn the_end_against_two_directions() {
    explore(Preemptions(2), || {
        let (reactor, _handle, world, registration) = armed(10);
        let registration = Arc::new(registration);
        let tasks = [Read, Write].map(|direction| {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let (count, waker) = Count::new();
                let ready = poll(&registration, direction, &waker).is_ready();
                (ready, count)
            })
        });
        drop(reactor);
        // Both first: one may have been about to wake the other.
        for (ready, count) in tasks.map(|task| task.join().unwrap()) {
            assert_eq!(count.get(), usize::from(!ready));
            assert!(is_forgotten(&count));
        }
        assert!(is_gone(registration.take_read_ready()));
        assert!(is_gone(registration.take_write_ready()));
        assert_eq!(world.held(), 0);
    });
}

/// A registration against the end: refused, and then it is as it was before; or made, and then it
/// hears that the reactor is gone. Whoever hears it knows that the files are let go.
#[test]
fn the_end_against_register() {
    explore(Exhaustive, || {
        let (reactor, handle, world) = reactor();
        let registration = Arc::new(Registration::new());
        let user = {
            let (registration, world) = (Arc::clone(&registration), Arc::clone(&world));
            thread::spawn(move || match registration.register_with(&fd(10), &handle) {
                Ok(new) => {
                    assert!(new);
                    if let Err(error) = registration.take_read_ready() {
                        assert!(is_gone::<()>(Err(error)));
                        assert!(world.memory().has_let_go());
                    }
                    true
                }
                Err(error) => {
                    assert!(is_gone::<()>(Err(error)));
                    assert!(world.memory().has_let_go());
                    false
                }
            })
        };
        drop(reactor);
        if user.join().unwrap() {
            assert!(is_gone(registration.take_read_ready()));
            let source = registration.source().unwrap();
            assert!(source.poll_released(Waker::noop()).is_ready());
        } else {
            assert!(registration.source().is_none());
        }
        assert_eq!(world.held(), 0);
    });
}

/// A registration ends while the reactor does.
#[test]
fn the_end_against_deregister() {
    explore(Preemptions(3), || {
        let (reactor, _handle, world, mut registration) = armed(10);
        let (count, waker) = Count::new();
        assert!(poll(&registration, Read, &waker).is_pending());
        drop(waker);
        let user = thread::spawn(move || {
            registration.deregister(&fd(10)).unwrap();
            registration
        });
        drop(reactor);
        let registration = user.join().unwrap();
        assert_eq!(count.get(), 1);
        assert!(is_forgotten(&count));
        assert!(!is_gone(registration.take_read_ready()), "deregistered");
        assert_eq!(world.held(), 0);
    });
}

/// How far a registration has come whose descriptor is handed over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Queued,
    Armed,
    Ended,
}

/// A descriptor is handed over while the reactor ends: closed once, after what its owner did before,
/// and, if the kernel knew of it, by the kernel or after the kernel has let go.
fn hand_over(stage: Stage) {
    explore(Preemptions(3), move || {
        let (mut reactor, handle, world) = reactor();
        let io = file();
        let number = io.as_raw_fd();
        let mut registration = Registration::new();
        registration.register_with(&io, &handle).unwrap();
        if stage != Stage::Queued {
            turn(&mut reactor);
        }
        let user = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.memory().write();
                registration.deregister_and_close(io).unwrap();
                registration
            })
        };
        if stage == Stage::Ended {
            world.end(number, -libc::ECANCELED);
            turn(&mut reactor);
            turn(&mut reactor);
        }
        drop(reactor);
        drop(user.join().unwrap());
        let adopted = world.memory().adopted();
        assert_eq!(adopted.len(), 1, "closed, and once");
        assert_eq!(adopted[0].fd, number);
        assert!(adopted[0].saw_written);
        if stage != Stage::Queued {
            assert!(adopted[0].saw_let_go || world.closed() == [number]);
        }
        assert_eq!(world.held(), 0);
    });
}

#[test]
fn the_end_against_a_descriptor_of_a_queued_registration() {
    hand_over(Stage::Queued);
}

#[test]
fn the_end_against_a_descriptor_of_an_armed_registration() {
    hand_over(Stage::Armed);
}

#[test]
fn the_end_against_a_descriptor_whose_poll_has_ended() {
    hand_over(Stage::Ended);
}

/// A task waits for its file to be let go while the reactor ends: it is answered or woken, and then
/// it is so, and the descriptor is taken care of.
#[test]
fn the_end_against_a_wait_for_the_release() {
    wait_for_the_release(true);
}

/// As above; the reactor ends before it has seen the registration.
#[test]
fn the_end_against_a_wait_for_the_release_of_what_was_never_armed() {
    wait_for_the_release(false);
}

fn wait_for_the_release(armed: bool) {
    explore(Preemptions(3), move || {
        let (reactor, world, source, _) = handed_over(armed);
        let (count, waker) = Count::new();
        let task = {
            let (source, waker, world) = (Arc::clone(&source), waker.clone(), Arc::clone(&world));
            thread::spawn(move || {
                let ready = source.poll_released(&waker).is_ready();
                if ready {
                    assert!(world.memory().has_adopted());
                    assert_eq!(world.held(), 0);
                }
                ready
            })
        };
        drop(reactor);
        let ready = task.join().unwrap();
        assert!(ready || count.get() > 0);
        assert!(source.poll_released(&waker).is_ready());
        drop((source, waker));
        assert!(is_forgotten(&count));
    });
}

/// A task that hands a descriptor over and waits for its file to be let go: when it hears that, it knows
/// that the descriptor is taken care of.
fn hander_over(
    mut registration: Registration,
    io: File,
    world: &Arc<World>,
) -> thread::JoinHandle<(bool, std::sync::Arc<Count>, Arc<Source>)> {
    let world = Arc::clone(world);
    thread::spawn(move || {
        let (count, waker) = Count::new();
        registration.deregister_and_close(io).unwrap();
        let source = Arc::clone(&registration.source().unwrap());
        let ready = source.poll_released(&waker).is_ready();
        assert!(!ready || world.memory().has_adopted());
        (ready, count, source)
    })
}

/// A descriptor is handed over while the reactor ends, by a task that waits for its file to be let go: when
/// it hears that, it knows that the descriptor is taken care of. The reactor takes no pushes any more, and
/// is about to tell the source.
#[test]
fn the_end_against_a_hand_over_and_a_wait_for_the_release() {
    explore(Exhaustive, || {
        let (mut reactor, handle, world) = reactor();
        let io = file();
        let registration = Registration::new();
        registration.register_with(&io, &handle).unwrap();
        turn(&mut reactor);
        drop(reactor.shared().intake.close());
        let source = Arc::clone(&registration.source().unwrap());
        let user = hander_over(registration, io, &world);
        source.orphan();
        let (ready, count, source) = user.join().unwrap();
        assert!(ready || count.get() > 0);
        assert!(source.poll_released(Waker::noop()).is_ready());
        assert_eq!(world.memory().adopted().len(), 1);
    });
}

/// A registration that the kernel has refused ends: its file is let go then, and not before, and a
/// descriptor that was handed over is closed.
#[test]
fn a_refused_registration_against_a_hand_over() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        let io = file();
        let registration = Registration::new();
        registration.register_with(&io, &handle).unwrap();
        turn(&mut reactor);
        world.end(io.as_raw_fd(), -libc::EBADF);
        let user = hander_over(registration, io, &world);
        settle(&mut reactor);
        let (ready, count, source) = user.join().unwrap();
        settle(&mut reactor);
        assert!(ready || count.get() > 0);
        assert!(source.poll_released(Waker::noop()).is_ready());
        assert_eq!(world.memory().adopted().len(), 1);
        assert!(reactor.driver_mut().is_settled());
    });
}

/// A wake of a reactor that ends does nothing.
#[test]
fn the_end_against_a_wake_and_a_registration() {
    explore(Preemptions(3), || {
        let (reactor, handle, world) = reactor();
        let waker = {
            let handle = handle.clone();
            thread::spawn(move || handle.wake())
        };
        let user = thread::spawn(move || {
            let registration = Registration::new();
            let made = registration.register_with(&fd(10), &handle).is_ok();
            let (count, waker) = Count::new();
            let ready = poll(&registration, Read, &waker).is_ready();
            assert!(made || ready);
            (registration, count, ready)
        });
        drop(reactor);
        waker.join().unwrap();
        let (registration, count, ready) = user.join().unwrap();
        assert_eq!(count.get(), usize::from(!ready));
        assert!(is_forgotten(&count));
        drop(registration);
        assert_eq!(world.held(), 0);
    });
}

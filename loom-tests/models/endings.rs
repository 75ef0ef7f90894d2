//! Polls that end though nobody cancelled them, against everybody who has a hand in them.
//!
//! Bounded: the kernel, a user and the reactor.

use super::support::*;
use crate::backend::Standing;
use crate::source::word::Direction::Read;
use std::sync::Arc as StdArc;

/// What a task got that polled once.
struct Polled {
    ready: bool,
    count: StdArc<Count>,
}

fn task(registration: &Arc<crate::Registration>) -> thread::JoinHandle<Polled> {
    let registration = Arc::clone(registration);
    thread::spawn(move || {
        let (count, waker) = Count::new();
        let ready = poll(&registration, Read, &waker).is_ready();
        Polled { ready, count }
    })
}

/// An edge and then an end: the edge is delivered, by the old poll or by the new one.
fn an_edge_and_an_end(end: i32) {
    explore(Preemptions(3), move || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let registration = Arc::new(registration);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.end(10, end);
                world.trigger(10, IN);
            })
        };
        let polled = task(&registration);
        turn(&mut reactor);
        kernel.join().unwrap();
        settle(&mut reactor);
        let Polled { ready, count } = polled.join().unwrap();
        assert!(ready || count.get() == 1);
        assert_eq!(world.armed(10).len(), 1);
        drop(registration);
        settle(&mut reactor);
        assert_eq!(world.held(), 0);
        assert!(reactor.driver_mut().is_settled());
    });
}

#[test]
fn an_overflow_against_a_poll() {
    an_edge_and_an_end(-libc::ECANCELED);
}

#[test]
fn an_overflow_that_takes_the_edge_along_against_a_poll() {
    an_edge_and_an_end(i32::from(IN));
}

#[test]
fn a_shortage_against_a_poll() {
    an_edge_and_an_end(-libc::ENOMEM);
}

/// A poll ends while its registration does and its descriptor is registered anew: the new one is
/// armed, once, gets its edge, and nothing is left of the old one.
#[test]
fn an_end_against_deregister_and_registration() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world, first) = armed(10);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.end(10, -libc::ECANCELED))
        };
        let user = thread::spawn(move || {
            drop(first);
            registered(&handle, 10)
        });
        turn(&mut reactor);
        turn(&mut reactor);
        kernel.join().unwrap();
        let second = user.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.armed(10).len(), 1);
        assert_eq!(world.held(), 1);
        assert_eq!(second.take_read_ready().unwrap(), None);
        world.trigger(10, IN);
        assert_eq!(turn(&mut reactor), 1);
        assert!(second.take_read_ready().unwrap().is_some());
        drop(second);
        settle(&mut reactor);
        assert!(reactor.driver_mut().is_settled());
    });
}

/// As above, with the last completion of the cancel kept back and everything said twice.
#[test]
fn an_end_that_comes_twice_against_deregister_and_registration() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world, first) = armed(10);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.end(10, -libc::ECANCELED);
                world.repeat_all();
            })
        };
        let user = thread::spawn(move || {
            drop(first);
            registered(&handle, 11)
        });
        turn(&mut reactor);
        turn(&mut reactor);
        kernel.join().unwrap();
        let second = user.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.armed(11).len(), 1);
        assert_eq!(world.held(), 1);
        assert_eq!(second.take_read_ready().unwrap(), None);
    });
}

/// An edge comes along with the end and is said twice: it is one edge, whether the poll is armed again
/// in between or not.
#[test]
fn an_edge_and_an_end_that_come_twice_against_a_poll() {
    explore(Preemptions(3), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let registration = Arc::new(registration);
        let polled = task(&registration);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.end(10, i32::from(IN));
                world.repeat_all();
            })
        };
        let mut events = turn(&mut reactor);
        kernel.join().unwrap();
        for _ in 0..4 {
            events += turn(&mut reactor);
        }
        assert_eq!(events, 1);
        let Polled { ready, count } = polled.join().unwrap();
        assert_eq!(count.get(), usize::from(!ready));
        assert_eq!(registration.take_read_ready().unwrap().is_some(), !ready);
        assert_eq!(world.armed(10).len(), 1);
    });
}

/// The kernel's verdict against a poll: it is answered with the verdict, or woken, and the verdict
/// stays; nothing is armed again.
#[test]
fn a_verdict_against_a_poll() {
    explore(Preemptions(3), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let registration = Arc::new(registration);
        let polled = task(&registration);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.end(10, -libc::EBADF))
        };
        turn(&mut reactor);
        kernel.join().unwrap();
        settle(&mut reactor);
        let Polled { ready, count } = polled.join().unwrap();
        assert_eq!(count.get(), usize::from(!ready));
        assert!(is_forgotten(&count));
        let error = registration.take_read_ready().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert_eq!(world.held(), 0);
        assert!(reactor.driver_mut().is_settled(), "it counts no more");
        drop(registration);
        settle(&mut reactor);
        assert!(reactor.driver_mut().is_settled());
    });
}

/// A file without a wait queue says that it is ready, once, and ends: nobody hears of that, and the
/// verdict is given in its place.
#[test]
fn a_file_that_cannot_be_polled_against_a_poll() {
    explore(Exhaustive, || {
        let (mut reactor, handle, world) = reactor();
        let registration = Arc::new(registered(&handle, 10));
        world.make_unpollable();
        turn(&mut reactor);
        world.end(10, i32::from(IN));
        let polled = task(&registration);
        assert_eq!(turn(&mut reactor), 0);
        let Polled { ready, count } = polled.join().unwrap();
        assert_eq!(count.get(), usize::from(!ready));
        let error = registration.take_read_ready().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    });
}

/// The ring is replaced under an edge and a drop: what is still wanted is armed anew, and an edge
/// that came before, during or after is reported.
fn replaced_ring(standing: Standing) {
    explore(Preemptions(3), move || {
        let (mut reactor, handle, world, registration) = armed(10);
        let other = registered(&handle, 11);
        turn(&mut reactor);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.trigger(10, IN))
        };
        let user = thread::spawn(move || drop(other));
        world.lose(standing);
        turn(&mut reactor);
        kernel.join().unwrap();
        user.join().unwrap();
        settle(&mut reactor);
        assert!(registration.take_read_ready().unwrap().is_some());
        assert_eq!(world.armed(10).len(), 1);
        assert_eq!(world.held(), 1);
        assert_eq!(reactor.metrics().registered, 1);
    });
}

#[test]
fn a_lost_ring_against_an_edge_and_a_drop() {
    replaced_ring(Standing::Lost);
}

/// As in a child process, where even what the ring had to say already is the parent's.
#[test]
fn an_inherited_ring_against_an_edge_and_a_drop() {
    replaced_ring(Standing::Inherited);
}

/// The ring is lost with the last completion of the last registration: a reactor that turns until it
/// has none left finds that out, though nothing tells of it.
#[test]
fn a_lost_ring_against_the_last_drop() {
    explore(Exhaustive, || {
        let (mut reactor, _handle, world, registration) = armed(10);
        world.keep_ends();
        let user = thread::spawn(move || drop(registration));
        turn(&mut reactor);
        user.join().unwrap();
        world.lose(Standing::Lost);
        while !reactor.driver_mut().is_settled() {
            reactor.turn(None).unwrap();
        }
        assert_eq!(world.held(), 0);
    });
}

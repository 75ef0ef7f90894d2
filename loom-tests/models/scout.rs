//! The scout: a reactor that sleeps over a registration in its intake, against whatever has to end
//! that. What is left in the scout would be an assertion, a sleep that does not end a deadlock.

use super::support::*;
use crate::backend::Standing;
use crate::backend::events::RDHUP;
use crate::backend::fake::World;
use crate::doorbell::{Call, Parked};
use crate::source::word::Direction::{Read, Write};
use crate::source::{Published, Source};
use crate::{Handle, Interest, Reactor, Registration};
use std::task::Waker;

/// Turns that may sleep, until that is so.
fn turn_until(reactor: &mut Reactor, done: impl Fn(&Reactor) -> bool) {
    while !done(reactor) {
        reactor.turn(None).unwrap();
    }
}

/// A descriptor that was scouted is so no more once it is armed.
fn is_watched_once(reactor: &mut Reactor, world: &World, numbers: &[i32]) {
    settle(reactor);
    assert_eq!(world.scouted(), []);
    for &number in numbers {
        assert_eq!(world.armed(number), [IN | RDHUP]);
    }
}

/// Registers while the reactor sleeps or is about to.
fn register_there(handle: &Handle, number: i32) -> thread::JoinHandle<Registration> {
    let handle = handle.clone();
    thread::spawn(move || registered(&handle, number))
}

/// As above, and what is to be read comes as soon as that has returned.
fn register_and_trigger_there(
    handle: &Handle,
    world: &Arc<World>,
    number: i32,
) -> thread::JoinHandle<Registration> {
    let (handle, world) = (handle.clone(), Arc::clone(world));
    thread::spawn(move || {
        let registration = registered(&handle, number);
        world.trigger(number, IN);
        registration
    })
}

/// The event comes at any time: before the descriptor is in the scout, in it, or armed.
#[test]
fn a_scouted_registration_against_an_event() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        let pusher = register_there(&handle, 10);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.trigger(10, IN))
        };
        turn_until_events(&mut reactor, 1);
        kernel.join().unwrap();
        let registration = pusher.join().unwrap();
        assert!(registration.take_read_ready().unwrap().is_some());
        is_watched_once(&mut reactor, &world, &[10]);
    });
}

/// The event comes once `register` has returned, and nothing else will.
#[test]
fn a_scouted_registration_against_park() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        let pusher = register_and_trigger_there(&handle, &world, 10);
        turn_until_events(&mut reactor, 1);
        assert!(world.rings() <= 1);
        drop(pusher.join().unwrap());
    });
}

/// The reactor wakes for another reason, and goes to sleep again, while the descriptor is on its way
/// into the scout.
#[test]
fn a_scouted_registration_against_a_wake() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        let pusher = register_and_trigger_there(&handle, &world, 10);
        let waker = thread::spawn(move || handle.wake());
        turn_until_events(&mut reactor, 1);
        waker.join().unwrap();
        let registration = pusher.join().unwrap();
        assert!(registration.take_read_ready().unwrap().is_some());
        is_watched_once(&mut reactor, &world, &[10]);
    });
}

/// The scout takes nothing: the bell is rung.
#[test]
fn a_refused_scout_against_park() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        world.refuse_scouts();
        world.trigger(10, IN);
        let pusher = register_there(&handle, 10);
        turn_until_events(&mut reactor, 1);
        assert!(world.rings() <= 1);
        drop(pusher.join().unwrap());
    });
}

/// Two at once: both may be left to the scout, in one sleep or in two, and neither is lost.
#[test]
fn two_scouted_registrations_against_park() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        let pushers = [10, 11].map(|number| register_and_trigger_there(&handle, &world, number));
        turn_until_events(&mut reactor, 2);
        let registrations = pushers.map(|pusher| pusher.join().unwrap());
        for registration in &registrations {
            assert!(registration.take_read_ready().unwrap().is_some());
        }
        is_watched_once(&mut reactor, &world, &[10, 11]);
    });
}

/// Two on one descriptor, of which the scout takes one: both hear of the event.
#[test]
fn two_scouted_registrations_of_one_descriptor() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        let pushers = [(); 2].map(|()| register_there(&handle, 10));
        world.trigger(10, IN);
        turn_until_events(&mut reactor, 2);
        let registrations = pushers.map(|pusher| pusher.join().unwrap());
        for registration in &registrations {
            assert!(registration.take_read_ready().unwrap().is_some());
        }
        settle(&mut reactor);
        assert_eq!(world.scouted(), []);
    });
}

/// The end of a registration for which nothing will ring: the reactor hears of it.
fn ends(end: impl Fn(Registration) + Clone + Sync + Send + 'static) {
    explore(Preemptions(3), move || {
        let (mut reactor, handle, world) = reactor();
        let user = {
            let end = end.clone();
            thread::spawn(move || end(registered(&handle, 10)))
        };
        reactor.turn(None).unwrap();
        turn_until(&mut reactor, Reactor::is_idle);
        user.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.scouted(), []);
        assert_eq!(world.held(), 0);
    });
}

#[test]
fn a_scouted_registration_against_deregister() {
    ends(|mut registration| registration.deregister(&fd(10)).unwrap());
}

#[test]
fn a_scouted_registration_against_its_drop() {
    ends(drop);
}

/// As above, with the descriptor handed over: it is closed, and was taken out before.
#[test]
fn a_scouted_registration_against_its_close() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        let user = thread::spawn(move || {
            let io = file();
            let mut registration = Registration::new();
            let new = registration.register_interest(&io, Interest::READABLE, &handle);
            assert!(new.unwrap());
            registration.deregister_and_close(io).unwrap();
        });
        turn_until(&mut reactor, |_| !world.memory().adopted().is_empty());
        user.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.scouted(), []);
        assert_eq!(world.held(), 0);
        assert!(reactor.is_idle());
    });
}

/// A task waits for the other direction, which the scout does not report.
#[test]
fn a_scouted_registration_against_a_poll_of_the_other_direction() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        world.trigger(10, OUT);
        let registration = Arc::new(Registration::new());
        let pusher = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let new = registration.register_interest(&fd(10), Interest::READABLE, &handle);
                assert!(new.unwrap());
            })
        };
        let poller = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                while registration.source().is_none() {
                    thread::yield_now();
                }
                assert!(poll(&registration, Write, Waker::noop()).is_pending());
            })
        };
        turn_until(&mut reactor, |_| {
            world.armed(10).iter().any(|events| events & OUT != 0)
        });
        pusher.join().unwrap();
        poller.join().unwrap();
        settle(&mut reactor);
        assert_eq!(world.scouted(), []);
        assert_eq!(world.armed(10), [IN | RDHUP | OUT]);
    });
}

/// A task waits for a registration whose pusher has come as far as the intake, and no further: it does
/// not depend on it.
#[test]
fn a_poll_rings_for_what_is_not_yet_scouted() {
    explore(Preemptions(3), || {
        let (mut reactor, _handle, world) = reactor();
        let shared = Arc::clone(reactor.shared());
        let source = Arc::new(Source::new(10, Interest::READABLE, Arc::clone(&shared)));
        shared.count_up();
        // SAFETY: `source` outlives it.
        let published = unsafe { Published::from_raw(&raw const *source) };
        published.announce();
        assert_eq!(shared.doorbell.park(1, || true), Parked::Asleep);
        assert_eq!(shared.doorbell.pushed(true), Call::Scout);
        assert!(published.poll(Read, Waker::noop()).is_pending());
        assert_eq!(world.rings(), 1);
        published.deregister(None);
        settle(&mut reactor);
        assert_eq!(world.held(), 0);
    });
}

/// `deregister` takes its descriptor out itself: the user may close it right after.
#[test]
fn a_deregistration_takes_its_descriptor_along() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        let shared = Arc::clone(reactor.shared());
        assert_eq!(shared.doorbell.park(1, || true), Parked::Asleep);
        let mut registration = registered(&handle, 10);
        assert_eq!(world.scouted(), [10]);
        registration.deregister(&fd(10)).unwrap();
        assert_eq!(world.scouted(), []);
        assert_eq!(world.rings(), 1);
        settle(&mut reactor);
        assert!(reactor.is_idle());
    });
}

/// Where one may be left to the scout, the other of two pushes rings.
#[test]
fn two_pushes_over_one_scout() {
    explore(Preemptions(3), || {
        let (reactor, _handle, _world) = reactor();
        let shared = Arc::clone(reactor.shared());
        assert_eq!(shared.doorbell.park(1, || true), Parked::Asleep);
        let pushers = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.doorbell.pushed(true))
        });
        let calls = pushers.map(|pusher| pusher.join().unwrap());
        assert!(calls.contains(&Call::Scout) && calls.contains(&Call::Bell));
        assert!(shared.doorbell.unpark());
    });
}

/// The reactor ends: nothing is left in the scout, and the registration answers that it is gone.
#[test]
fn the_end_against_a_scouted_registration() {
    explore(Preemptions(3), || {
        let (reactor, handle, world) = reactor();
        let shared = Arc::clone(reactor.shared());
        assert_eq!(shared.doorbell.park(1, || true), Parked::Asleep);
        let user = thread::spawn(move || {
            let registration = Registration::new();
            let new = registration.register_interest(&fd(10), Interest::READABLE, &handle);
            new.is_ok().then_some(registration)
        });
        shared.doorbell.unpark();
        drop(reactor);
        if let Some(registration) = user.join().unwrap() {
            assert!(is_gone(registration.take_read_ready()));
        }
        assert_eq!(world.scouted(), []);
    });
}

/// The instance is lost while the registration is scouted, as when the reactor moves: it is armed on
/// the next one.
#[test]
fn a_lost_ring_against_a_scouted_registration() {
    explore(Preemptions(3), || {
        let (mut reactor, handle, world) = reactor();
        turn(&mut reactor);
        let pusher = register_there(&handle, 10);
        handle.wake();
        reactor.turn(None).unwrap();
        world.lose(Standing::Lost);
        let kernel = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.trigger(10, IN))
        };
        turn_until_events(&mut reactor, 1);
        kernel.join().unwrap();
        drop(pusher.join().unwrap());
        settle(&mut reactor);
        assert_eq!(world.scouted(), []);
    });
}

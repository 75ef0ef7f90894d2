//! Registering for reading with a reactor that sleeps on another thread: it sleeps on, and wakes when
//! the descriptor has news.

mod common;

use common::descriptors::*;
use common::*;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;
use uring_reactor::{Backend, Handle, Interest, Reactor, Ready, Registration};

const ZERO: Option<Duration> = Some(Duration::ZERO);

/// A reactor that is not nested in another loop, for which somebody else would sleep.
fn lone(backend: Backend) -> Reactor {
    Reactor::builder().backend(backend).build().unwrap()
}

/// One that sleeps, on a thread of its own.
fn parked(backend: Backend) -> Turning {
    let turning = Turning::start(lone(backend));
    turning.wait_until_parked();
    turning
}

fn for_reading(io: &impl AsFd, handle: &Handle) -> Registration {
    let registration = Registration::new();
    let new = registration.register_interest(io, Interest::READABLE, handle);
    assert!(new.unwrap());
    registration
}

/// Fails if this wakes the reactor. (If it does not wake it at once, it may go unnoticed.)
#[track_caller]
fn sleeps_through<R>(turning: &Turning, act: impl FnOnce() -> R) -> R {
    turning.wait_until_parked();
    let before = turning.handle().metrics();
    let result = act();
    turning.wait_until_parked();
    let after = turning.handle().metrics();
    assert_eq!((after.turns, after.enters), (before.turns, before.enters));
    result
}

/// Fails unless what comes is reported, to a task that waits.
#[track_caller]
fn hears(registration: &Registration, cause: impl FnOnce()) {
    let (count, waker) = counting_waker();
    assert!(poll_read(registration, &waker).is_pending());
    cause();
    wait_until(|| count.get() == 1);
    let ready = registration.take_read_ready().unwrap().unwrap();
    assert!(ready.is_readable());
}

/// A registration over which a reactor sleeps, with its peer.
fn scouted(turning: &Turning) -> (UnixStream, UnixStream, Registration) {
    let (ours, theirs) = unix_pair();
    let registration = sleeps_through(turning, || for_reading(&ours, turning.handle()));
    (ours, theirs, registration)
}

/// A pair whose first descriptor has that number, if the number was just closed and no other thread takes
/// it first.
fn pair_with(number: RawFd) -> (UnixStream, UnixStream) {
    let (one, other) = unix_pair();
    if other.as_raw_fd() == number {
        (other, one)
    } else {
        (one, other)
    }
}

/// More than one sleep leaves to the scout, with their peers.
const MANY: usize = 32;

fn crowd(handle: &Handle) -> Vec<(UnixStream, UnixStream, Registration)> {
    let one = |_| {
        let (ours, theirs) = unix_pair();
        let registration = for_reading(&ours, handle);
        (ours, theirs, registration)
    };
    (0..MANY).map(one).collect()
}

both_backends! {
    fn a_registration_for_reading_wakes_nobody_and_its_event_comes(backend: Backend) {
        let turning = parked(backend);
        for _ in 0..20 {
            let (_ours, theirs, registration) = scouted(&turning);
            assert_eq!(turning.handle().metrics().registered, 1);
            hears(&registration, || put(&theirs, b"x"));
            // And from then on as ever.
            hears(&registration, || put(&theirs, b"x"));
            drop(registration);
            turning.pass();
        }
    }

    fn what_is_there_already_is_reported(backend: Backend) {
        let turning = parked(backend);
        for _ in 0..20 {
            turning.wait_until_parked();
            let (ours, theirs) = unix_pair();
            put(&theirs, b"x");
            let registration = for_reading(&ours, turning.handle());
            wait_until(|| registration.take_read_ready().unwrap().is_some());
        }
    }

    fn the_end_of_the_peer_is_reported(backend: Backend) {
        let turning = parked(backend);
        let (_ours, theirs, registration) = scouted(&turning);
        drop(theirs);
        wait_until(|| {
            let ready = registration.take_read_ready().unwrap();
            ready.is_some_and(|ready| ready.contains(Ready::READ_CLOSED | Ready::HUP))
        });
    }

    fn thousands_of_registrations_from_other_threads_are_heard(backend: Backend) {
        let turning = Turning::start(lone(backend));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for round in 0..2000 {
                        let (ours, theirs) = unix_pair();
                        let mut registration = for_reading(&ours, turning.handle());
                        let (count, waker) = counting_waker();
                        assert!(poll_read(&registration, &waker).is_pending());
                        put(&theirs, b"x");
                        wait_closely(|| count.get() == 1);
                        match round % 4 {
                            0 => registration.deregister(&ours).unwrap(),
                            1 => registration.deregister_and_close(ours).unwrap(),
                            2 => drop(registration),
                            _ => drop((ours, registration)),
                        }
                    }
                });
            }
        });
        turning.pass();
        assert!(turning.stop().is_idle());
    }

    fn thousands_of_registrations_come_and_go_unheard(backend: Backend) {
        let turning = Turning::start(lone(backend));
        for round in 0..3000 {
            let (ours, theirs) = unix_pair();
            let mut registration = for_reading(&ours, turning.handle());
            match round % 4 {
                0 => {
                    registration.deregister(&ours).unwrap();
                    drop(ours);
                }
                1 => registration.deregister_and_close(ours).unwrap(),
                2 => drop((registration, ours)),
                _ => drop((ours, registration)),
            }
            wait_closely(|| at_end(&theirs));
        }
        turning.pass();
        assert!(turning.stop().is_idle());
    }

    fn two_registrations_of_one_descriptor_both_hear(backend: Backend) {
        let turning = parked(backend);
        let (ours, theirs, one) = scouted(&turning);
        let other = for_reading(&ours, turning.handle());
        put(&theirs, b"x");
        for registration in [one, other] {
            wait_until(|| registration.take_read_ready().unwrap().is_some());
        }
    }

    fn a_few_registrations_wake_nobody_and_each_is_heard(backend: Backend) {
        let turning = parked(backend);
        for _ in 0..5 {
            let few: Vec<_> = (0..4).map(|_| scouted(&turning)).collect();
            // The first of these wakes it. By then it has to know of all.
            for (_, theirs, registration) in &few {
                hears(registration, || put(theirs, b"x"));
            }
            for (_, theirs, registration) in few.iter().rev() {
                hears(registration, || put(theirs, b"x"));
            }
            drop(few);
            turning.pass();
        }
    }

    fn the_event_of_any_of_a_few_wakes_it(backend: Backend) {
        let turning = parked(backend);
        for which in 0..4 {
            let few: Vec<_> = (0..4).map(|_| scouted(&turning)).collect();
            let (_, theirs, registration) = &few[which];
            hears(registration, || put(theirs, b"x"));
            drop(few);
            turning.pass();
        }
    }

    fn many_registrations_wake_it(backend: Backend) {
        let turning = parked(backend);
        let before = turning.handle().metrics().turns;
        let many = crowd(turning.handle());
        wait_until(|| turning.handle().metrics().turns > before);
        for (_, theirs, registration) in &many {
            hears(registration, || put(theirs, b"x"));
        }
    }

    fn where_many_came_at_once_the_next_wakes_it_right_away(backend: Backend) {
        let reactor = lone(backend);
        let _many = crowd(&reactor.handle());
        let turning = Turning::start(reactor);
        turning.wait_until_parked();
        let before = turning.handle().metrics().turns;
        let (ours, theirs) = unix_pair();
        let registration = for_reading(&ours, turning.handle());
        wait_until(|| turning.handle().metrics().turns > before);
        hears(&registration, || put(&theirs, b"x"));
        // It came alone, and so does the next, as far as one can tell.
        let (_ours, theirs, registration) = scouted(&turning);
        hears(&registration, || put(&theirs, b"x"));
    }

    fn a_registration_for_writing_is_answered_at_once(backend: Backend) {
        let turning = parked(backend);
        let (ours, _theirs) = unix_pair();
        let registration = Registration::new();
        registration.register_with(&ours, turning.handle()).unwrap();
        wait_until(|| registration.take_write_ready().unwrap().is_some());
    }

    fn a_poll_of_the_other_direction_wakes_it(backend: Backend) {
        let turning = parked(backend);
        let (_ours, _theirs, registration) = scouted(&turning);
        let (count, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        wait_until(|| count.get() == 1);
        assert!(registration.take_write_ready().unwrap().is_some());
    }

    fn the_peer_sees_the_close_of_a_descriptor_that_was_handed_over(backend: Backend) {
        let turning = parked(backend);
        let (ours, theirs, mut registration) = scouted(&turning);
        registration.deregister_and_close(ours).unwrap();
        wait_until(|| at_end(&theirs));
    }

    fn the_peer_sees_the_close_after_deregister(backend: Backend) {
        let turning = parked(backend);
        let (ours, theirs, mut registration) = scouted(&turning);
        let copy = ours.try_clone().unwrap();
        registration.deregister(&ours).unwrap();
        drop(ours);
        turning.pass();
        // The file lives on, and is nothing to the reactor any more.
        sleeps_through(&turning, || put(&theirs, b"x"));
        drop(copy);
        assert!(at_end(&theirs));
    }

    fn a_descriptor_closed_too_early_disturbs_nobody(backend: Backend) {
        let turning = parked(backend);
        let (ours, theirs, registration) = scouted(&turning);
        let copy = ours.try_clone().unwrap();
        drop(ours);
        // It is still in the scout, and wakes the reactor, which cannot take it out any more.
        let before = turning.handle().metrics().turns;
        put(&theirs, b"x");
        wait_until(|| turning.handle().metrics().turns > before);
        drop(registration);
        turning.pass();
        sleeps_through(&turning, || put(&theirs, b"x"));
        // What comes after it is scouted as ever.
        let (_ours, theirs, registration) = scouted(&turning);
        hears(&registration, || put(&theirs, b"x"));
        drop(copy);
    }

    fn a_number_closed_too_early_and_taken_anew_is_scouted_for_its_new_file(backend: Backend) {
        let turning = parked(backend);
        let (ours, theirs, registration) = scouted(&turning);
        let (number, copy) = (ours.as_raw_fd(), ours.try_clone().unwrap());
        drop(ours);
        drop(registration);
        turning.pass();
        let (again, their_again) = pair_with(number);
        let registration = sleeps_through(&turning, || for_reading(&again, turning.handle()));
        sleeps_through(&turning, || put(&theirs, b"x"));
        hears(&registration, || put(&their_again, b"x"));
        drop(copy);
    }

    fn a_number_taken_anew_in_the_same_sleep_is_scouted_for_its_new_file(backend: Backend) {
        let turning = parked(backend);
        let (ours, old_peer, early) = scouted(&turning);
        let (number, copy) = (ours.as_raw_fd(), ours.try_clone().unwrap());
        drop(ours);
        let (again, their_again) = pair_with(number);
        let late = sleeps_through(&turning, || for_reading(&again, turning.handle()));
        hears(&late, || put(&their_again, b"x"));
        drop(early);
        turning.pass();
        // The old file, which lives on, is in no scout any more.
        sleeps_through(&turning, || put(&old_peer, b"x"));
        hears(&late, || put(&their_again, b"x"));
        let (_ours, theirs, registration) = scouted(&turning);
        hears(&registration, || put(&theirs, b"x"));
        drop(copy);
    }

    fn what_cannot_be_scouted_wakes_it(backend: Backend) {
        let turning = parked(backend);
        let file = fs::File::open("/proc/self/exe").unwrap();
        let registration = for_reading(&file, turning.handle());
        wait_until(|| {
            let verdict = registration.take_read_ready();
            verdict.is_err_and(|error| errno(&error) == Some(libc::EPERM))
        });
    }

    fn a_reactor_that_moves_hears_of_what_it_slept_over(backend: Backend) {
        let turning = parked(backend);
        let (_ours, theirs, registration) = scouted(&turning);
        let (_other, their_other) = unix_pair();
        let mut reactor = turning.stop();
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
        // There, too, it watches the scout.
        let turning = Turning::start(reactor);
        let (_ours, theirs, registration) = scouted(&turning);
        hears(&registration, || put(&theirs, b"x"));
        drop(their_other);
    }

    fn a_reactor_that_becomes_nested_hears_of_what_it_slept_over(backend: Backend) {
        let turning = parked(backend);
        let (_ours, theirs, registration) = scouted(&turning);
        let mut reactor = turning.stop();
        reactor.as_fd();
        reactor.turn(ZERO).unwrap();
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn what_a_reactor_slept_over_ends_with_it(backend: Backend) {
        let turning = parked(backend);
        let (ours, theirs, registration) = scouted(&turning);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        drop(turning.stop());
        assert_eq!(count.get(), 1);
        assert!(registration.take_read_ready().is_err());
        drop(ours);
        assert!(at_end(&theirs));
    }

    fn a_background_reactor_ends_when_what_it_sleeps_over_is_gone(backend: Backend) {
        let background = lone(backend).background().unwrap();
        let handle = background.handle();
        let (ours, theirs) = unix_pair();
        let registration = for_reading(&ours, &handle);
        let shutdown = background.shutdown_on_idle();
        hears(&registration, || put(&theirs, b"x"));
        drop(registration);
        shutdown.wait();
    }
}

both_backends_in_child! {
    fn no_descriptor_is_left_behind(backend: Backend) {
        let round = || {
            let turning = parked(backend);
            let (ours, _theirs, early) = scouted(&turning);
            let copy: OwnedFd = ours.try_clone().unwrap().into();
            drop((ours, early));
            turning.pass();
            let (ours, _theirs, mut closed) = scouted(&turning);
            closed.deregister_and_close(ours).unwrap();
            turning.pass();
            let left = scouted(&turning);
            let reactor = turning.stop();
            drop(reactor);
            drop((left, copy));
        };
        round();
        let before = open_descriptors();
        for _ in 0..5 {
            round();
        }
        assert_eq!(open_descriptors(), before);
    }
}

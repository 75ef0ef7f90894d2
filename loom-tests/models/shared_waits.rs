//! Any number of tasks that await one direction, as `AsyncFd` has them: guards that clear, the list
//! of waiters, and the cell that the first of them gets.
//!
//! Exhaustive where two threads meet, bounded where three do.

use super::support::*;
use crate::source::word::Direction::Read;
use crate::source::word::End;
use crate::source::{Event, Published, Source};
use crate::sync::{AtomicUsize, Ordering};
use crate::{AsyncFd, Interest, Ready, Registration};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::task::{Context, Poll, Waker};

const READABLE: Interest = Interest::READABLE;

/// One task of `AsyncFd::readable`: where it waits, and what came of it.
struct Task {
    place: Option<usize>,
    count: std::sync::Arc<Count>,
    waker: Waker,
}

impl Task {
    fn new() -> Task {
        let (count, waker) = Count::new();
        Task {
            place: None,
            count,
            waker,
        }
    }

    fn poll(&mut self, registration: &Registration) -> Poll<io::Result<Event>> {
        let source = registration.source().unwrap();
        source.poll_shared(READABLE, &mut self.place, &self.waker)
    }

    /// As the drop of the future that waits.
    fn leave(&mut self, registration: &Registration) {
        registration.source().unwrap().leave(&mut self.place);
    }
}

fn peek(registration: &Registration) -> Option<Event> {
    let event = registration.source().unwrap().peek(READABLE);
    event.transpose().unwrap()
}

/// A guard clears what it saw while a new edge comes: the new one survives.
#[test]
fn a_clear_against_a_new_edge() {
    explore(Exhaustive, || {
        let (mut reactor, _handle, world, registration) = armed(10);
        world.trigger(10, IN);
        assert_eq!(turn(&mut reactor), 1);
        let registration = Arc::new(registration);
        let event = peek(&registration).unwrap();
        world.trigger(10, IN);
        let guard = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let source = registration.source().unwrap();
                source.clear(event, event.ready, READABLE);
            })
        };
        assert_eq!(turn(&mut reactor), 1);
        guard.join().unwrap();
        assert!(peek(&registration).is_some());
    });
}

/// Two guards clear, and one of them waits again, while a new edge comes.
#[test]
fn a_clear_and_a_new_wait_against_an_edge() {
    explore(Preemptions(2), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        world.trigger(10, IN);
        assert_eq!(turn(&mut reactor), 1);
        let registration = Arc::new(registration);
        let event = peek(&registration).unwrap();
        world.trigger(10, IN);
        let tasks = [(); 2].map(|()| {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let source = registration.source().unwrap();
                source.clear(event, event.ready, READABLE);
                let mut task = Task::new();
                let ready = task.poll(&registration).is_ready();
                (task, ready)
            })
        });
        assert_eq!(turn(&mut reactor), 1);
        // Both first: one may have been about to wake the other.
        for (mut task, ready) in tasks.map(|thread| thread.join().unwrap()) {
            assert!(ready || task.count.get() > 0);
            task.leave(&registration);
        }
        assert!(peek(&registration).is_some());
    });
}

/// Two tasks wait, one of them in the list at least, while the edge comes: each is answered or woken.
#[test]
fn two_waits_against_dispatch() {
    explore(Preemptions(2), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        world.trigger(10, IN);
        waits_against(&Arc::new(registration), || {
            assert_eq!(turn(&mut reactor), 1);
        });
    });
}

/// As above, and the reactor ends.
#[test]
fn two_waits_against_the_end() {
    explore(Preemptions(2), || {
        let (reactor, _handle, _world, registration) = armed(10);
        waits_against(&Arc::new(registration), || drop(reactor));
    });
}

fn waits_against(registration: &Arc<Registration>, news: impl FnOnce()) {
    let tasks = [(); 2].map(|()| {
        let registration = Arc::clone(registration);
        thread::spawn(move || {
            let mut task = Task::new();
            let ready = task.poll(&registration).is_ready();
            (task, ready)
        })
    });
    news();
    let mut tasks = tasks.map(|thread| thread.join().unwrap());
    for (task, ready) in &mut tasks {
        assert!(*ready || task.count.get() > 0);
        task.leave(registration);
    }
}

/// Two tasks that listen to both directions go to the list at once, which they both find missing.
#[test]
fn two_waits_make_one_list() {
    explore(Preemptions(2), || {
        let (mut reactor, _handle, world, registration) = armed(10);
        world.trigger(10, IN);
        let registration = Arc::new(registration);
        let tasks = [(); 2].map(|()| {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let (count, waker) = Count::new();
                let mut place = None;
                let source = registration.source().unwrap();
                let both = Interest::READABLE | Interest::WRITABLE;
                let ready = source.poll_shared(both, &mut place, &waker).is_ready();
                (count, place, ready)
            })
        });
        assert_eq!(turn(&mut reactor), 1);
        let mut places = Vec::new();
        for (count, mut place, ready) in tasks.map(|thread| thread.join().unwrap()) {
            // One that was answered may have been called as well: the other's bit stood for both.
            assert!(count.get() <= 1 && (ready || count.get() == 1));
            assert_eq!(place.is_none(), ready);
            places.extend(place);
            registration.source().unwrap().leave(&mut place);
        }
        assert!(places.len() < 2 || places[0] != places[1]);
    });
}

/// The cell serves another task and its edge comes just while a second one looks into the cell,
/// which it means to leave alone: the first is woken by one of the two.
#[test]
fn a_wait_that_yields_against_dispatch() {
    explore(Exhaustive, || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let registration = Arc::new(registration);
        let mut first = Task::new();
        assert!(first.poll(&registration).is_pending());
        assert!(first.place.is_none(), "it has the cell");
        world.trigger(10, IN);
        let second = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let mut task = Task::new();
                let ready = task.poll(&registration).is_ready();
                (task, ready)
            })
        };
        assert_eq!(turn(&mut reactor), 1);
        let (mut second, ready) = second.join().unwrap();
        assert_eq!(first.count.get(), 1);
        assert_eq!(second.count.get(), usize::from(!ready));
        second.leave(&registration);
    });
}

/// As above, with the reactor's end instead of an edge.
#[test]
fn a_wait_that_yields_against_the_end() {
    explore(Preemptions(3), || {
        let (reactor, _handle, _world, registration) = armed(10);
        let registration = Arc::new(registration);
        let mut first = Task::new();
        assert!(first.poll(&registration).is_pending());
        let second = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let mut task = Task::new();
                let ready = task.poll(&registration).is_ready();
                (task, ready)
            })
        };
        drop(reactor);
        let (mut second, ready) = second.join().unwrap();
        assert_eq!(first.count.get(), 1);
        assert!(ready || second.count.get() > 0);
        second.leave(&registration);
        let Task { count, waker, .. } = first;
        drop(waker);
        assert!(is_forgotten(&count));
    });
}

/// One task waits twice at a time, as with `join`: its second wait comes to the cell, where it finds its
/// own waker, just while there is news. The first, which is not asked again unless the task is woken, has
/// that announced to it, whatever becomes of the second.
fn a_second_wait_of_one_task_against(
    news: fn(&Source),
    poll_second: fn(&Published<'_>, &mut Option<usize>, &Waker) -> bool,
) {
    explore(Exhaustive, move || {
        let (_reactor, _handle, _world, registration) = armed(10);
        let registration = Arc::new(registration);
        let mut first = Task::new();
        assert!(first.poll(&registration).is_pending());
        let second = {
            let (registration, waker) = (Arc::clone(&registration), first.waker.clone());
            thread::spawn(move || {
                let mut place = None;
                let source = registration.source().unwrap();
                let ready = poll_second(&source, &mut place, &waker);
                source.leave(&mut place);
                ready
            })
        };
        news(&registration.source().unwrap());
        let ready = second.join().unwrap();
        assert!(first.count.get() > 0, "the second was told: {ready}");
        drop(registration);
        let Task { count, waker, .. } = first;
        drop(waker);
        assert!(is_forgotten(&count));
    });
}

fn an_edge_for_readers(source: &Source) {
    assert!(source.dispatch(Ready::READABLE));
}

#[test]
fn a_second_wait_of_one_task_against_dispatch() {
    a_second_wait_of_one_task_against(an_edge_for_readers, |source, place, waker| {
        source.poll_shared(READABLE, place, waker).is_ready()
    });
}

#[test]
fn a_second_wait_of_one_task_for_something_else_against_dispatch() {
    a_second_wait_of_one_task_against(an_edge_for_readers, |source, place, waker| {
        let ready = source.poll_shared(Interest::PRIORITY, place, waker);
        assert!(ready.is_pending());
        false
    });
}

#[test]
fn a_poll_beside_a_wait_of_one_task_against_dispatch() {
    a_second_wait_of_one_task_against(an_edge_for_readers, |source, _, waker| {
        source.poll_event(Read, READABLE, waker).is_ready()
    });
}

#[test]
fn a_second_wait_of_one_task_against_the_end() {
    a_second_wait_of_one_task_against(
        |source| source.end(End::Gone),
        |source, place, waker| source.poll_shared(READABLE, place, waker).is_ready(),
    );
}

/// A waiter leaves the list, or renews its place, while the list is woken: the other is woken.
#[test]
fn a_waiter_that_leaves_against_dispatch() {
    explore(Exhaustive, || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let registration = Arc::new(registration);
        let mut tasks = [(); 3].map(|()| Task::new());
        for task in &mut tasks {
            assert!(task.poll(&registration).is_pending());
        }
        let [mut cell, mut leaving, mut staying] = tasks;
        world.trigger(10, IN);
        let leaver = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                leaving.leave(&registration);
                leaving
            })
        };
        assert_eq!(turn(&mut reactor), 1);
        let leaving = leaver.join().unwrap();
        assert!(leaving.count.get() <= 1);
        assert_eq!(cell.count.get(), 1);
        assert_eq!(staying.count.get(), 1);
        cell.leave(&registration);
        staying.leave(&registration);
    });
}

/// The whole loop of `AsyncFd`: two tasks await what the kernel brings one by one. As long as there
/// is something left, nobody waits unwoken.
#[test]
fn two_tasks_share_what_comes() {
    explore(Preemptions(2), || {
        let (mut reactor, handle, world) = reactor();
        let io = AsyncFd::with_handle_and_interest(file(), &handle, READABLE).unwrap();
        let io = Arc::new(io);
        let number = io.get_ref().as_raw_fd();
        turn(&mut reactor);
        let data = Arc::new(AtomicUsize::new(0));
        let kernel = {
            let (world, data) = (Arc::clone(&world), Arc::clone(&data));
            thread::spawn(move || {
                for _ in 0..2 {
                    data.fetch_add(1, Ordering::Relaxed);
                    world.trigger(number, IN);
                    world.calm(number);
                }
            })
        };
        let task = {
            let (io, data) = (Arc::clone(&io), Arc::clone(&data));
            thread::spawn(move || attempt(&io, &data))
        };
        turn(&mut reactor);
        let here = attempt(&io, &data);
        turn(&mut reactor);
        kernel.join().unwrap();
        turn(&mut reactor);
        let left = data.fetch_add(0, Ordering::Relaxed);
        for (done, count) in [here, task.join().unwrap()] {
            assert!(done || left == 0 || count.get() > 0, "{left} left");
        }
    });
}

/// One poll of a task that reads once. The task stays where it waits.
fn attempt(io: &AsyncFd<File>, data: &AtomicUsize) -> (bool, std::sync::Arc<Count>) {
    let (count, waker) = Count::new();
    let read = io.async_io(READABLE, |_| {
        // A system call: it sees the latest value, in an order of its own.
        let mut seen = data.fetch_add(0, Ordering::Relaxed);
        while seen > 0 {
            let taken = data.compare_exchange(seen, seen - 1, Ordering::Relaxed, Ordering::Relaxed);
            match taken {
                Ok(_) => return Ok(()),
                Err(actual) => seen = actual,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    });
    let mut read = Box::pin(read);
    let done = match read.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(result) => {
            result.unwrap();
            true
        }
        Poll::Pending => false,
    };
    if !done {
        // Not dropped: that would give up its place. What it owns is on this side of loom.
        std::mem::forget(read);
    }
    (done, count)
}

/// A task polls with one waker and then another while the edge comes and the cell is its own.
#[test]
fn a_waker_of_the_same_task_renewed_against_dispatch() {
    explore(Exhaustive, || {
        let (mut reactor, _handle, world, registration) = armed(10);
        let registration = Arc::new(registration);
        let mut task = Task::new();
        assert!(task.poll(&registration).is_pending());
        world.trigger(10, IN);
        let again = {
            let registration = Arc::clone(&registration);
            thread::spawn(move || {
                let ready = task.poll(&registration).is_ready();
                assert!(task.place.is_none() || !ready);
                (task, ready)
            })
        };
        assert_eq!(turn(&mut reactor), 1);
        let (mut task, ready) = again.join().unwrap();
        assert!(ready || task.count.get() > 0);
        task.leave(&registration);
    });
}

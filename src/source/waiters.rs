//! The list of tasks that await one direction together, for [`AsyncFd`](crate::AsyncFd).
//!
//! A source has one waker cell a direction, which is all that a registration's two tasks need. The
//! second task that awaits the same direction goes into this list. It is made on first need, and
//! its lock is taken only by such tasks and by the event that wakes them: a source with one task a
//! direction never meets it.

use crate::ready::Interest;
use crate::source::word::Direction;
use crate::sync::{Mutex, MutexGuard, contain};
use slab::Slab;
use std::task::Waker;

/// How many wakers are called a time, off the lock.
const BATCH: usize = 16;

#[derive(Debug)]
struct Waiter {
    interest: Interest,
    waker: Option<Waker>,
}

#[derive(Debug)]
pub(crate) struct Waiters {
    list: Mutex<Slab<Waiter>>,
}

impl Waiters {
    pub(crate) fn new() -> Waiters {
        Waiters {
            list: Mutex::new(Slab::new()),
        }
    }

    /// No user code runs under the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Slab<Waiter>> {
        self.list
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Enters or renews a waiter. Returns its key and the waker that was there before, to be
    /// dropped outside of the lock.
    pub(crate) fn enter(
        &self,
        key: Option<usize>,
        interest: Interest,
        waker: Waker,
    ) -> (usize, Option<Waker>) {
        let mut list = self.lock();
        match key {
            Some(key) => (key, list[key].waker.replace(waker)),
            None => {
                let waker = Some(waker);
                (list.insert(Waiter { interest, waker }), None)
            }
        }
    }

    /// Takes a waiter out.
    pub(crate) fn leave(&self, key: usize) {
        let waiter = self.lock().remove(key);
        drop(waiter);
    }

    /// Calls every waiter of these directions.
    pub(crate) fn wake(&self, directions: impl Fn(Direction) -> bool) {
        let mut keys = 0..usize::MAX;
        while !keys.is_empty() {
            let mut batch: [Option<Waker>; BATCH] = [const { None }; BATCH];
            let mut room = batch.iter_mut();
            {
                let mut list = self.lock();
                // Whoever has entered since has looked since.
                keys.end = keys.end.min(list.capacity());
                while !room.as_slice().is_empty()
                    && let Some(key) = keys.next()
                {
                    if let Some(waiter) = list.get_mut(key)
                        && Direction::BOTH.into_iter().any(|direction| {
                            directions(direction) && direction.serves(waiter.interest)
                        })
                        && let Some(waker) = waiter.waker.take()
                        && let Some(place) = room.next()
                    {
                        *place = Some(waker);
                    }
                }
            }
            for waker in batch.into_iter().flatten() {
                contain(|| waker.wake());
            }
        }
    }
}

//! The doorbell: whether the reactor sleeps, and who wakes it.
//!
//! | state | meaning |
//! | --- | --- |
//! | `RUNNING` | the reactor's thread is awake and will look at the intake before it sleeps |
//! | `PARKED` | it sleeps in the kernel, or is about to; the bell has to be rung |
//! | `RUNG` | somebody asked for the current or the next turn to end; nobody needs to ring |
//!
//! The race that this survives: a pusher adds a source and looks whether the reactor sleeps; the
//! reactor looks whether there are sources and goes to sleep. If both looked before the other had
//! written, the source would lie there until something else happens. So both write first and look
//! second, with a sequentially consistent fence between: at least one of them sees the other.
//! (`push_against_park` in `loom-tests/` is this story, and fails without either fence.)
//!
//! A wake needs no fence, because both sides exchange the state itself, and the second of two
//! exchanges sees the first. Exchanges also pass on what came before others of their kind, so that a
//! turn that ends for one of two wakes and has seen both has seen what led to both.
//! (`wake_against_park`, `two_wakes_against_park`, `a_push_and_a_wake_against_park`)

use crate::sync::{AtomicU32, Ordering, fence};

#[derive(Debug)]
pub(crate) struct Doorbell {
    state: AtomicU32,
}

/// What came of an attempt to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// The state is `PARKED`, and whoever has news will ring.
    Asleep,
    /// Somebody had asked for a turn to end, or has rung meanwhile.
    Rung,
    /// There is something to do.
    Busy,
}

const RUNNING: u32 = 0;
const PARKED: u32 = 1;
const RUNG: u32 = 2;

impl Doorbell {
    pub(crate) fn new() -> Doorbell {
        Doorbell {
            state: AtomicU32::new(RUNNING),
        }
    }

    /// Something was pushed to the intake. True if the caller has to ring the bell.
    #[must_use]
    pub(crate) fn pushed(&self) -> bool {
        // Between the push and the look at the state. Pairs with the fence in `park`.
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Relaxed) == PARKED
            && self
                .state
                .compare_exchange(PARKED, RUNG, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// The current or the next turn shall end. True if the caller has to ring the bell.
    #[must_use]
    pub(crate) fn wake(&self) -> bool {
        // Release: what the caller did before `wake` is seen by the turn that ends for it.
        self.state.swap(RUNG, Ordering::Release) == PARKED
    }

    /// The reactor is about to sleep, if `idle` says that there is still nothing to do.
    #[must_use]
    pub(crate) fn park(&self, idle: impl FnOnce() -> bool) -> Parked {
        if self
            .state
            .compare_exchange(RUNNING, PARKED, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
        {
            self.unpark();
            return Parked::Rung;
        }
        // Between the write of the state and the look at the intake. Pairs with `pushed`.
        fence(Ordering::SeqCst);
        if idle() {
            return Parked::Asleep;
        }
        if self.unpark() {
            Parked::Rung
        } else {
            Parked::Busy
        }
    }

    /// A turn begins. Where the reactor was parked between turns, it is not any more; that it was
    /// rung stays.
    pub(crate) fn resume(&self) {
        if self.state.load(Ordering::Relaxed) == PARKED {
            let _ =
                self.state
                    .compare_exchange(PARKED, RUNNING, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The reactor is awake. True if somebody had asked for that.
    pub(crate) fn unpark(&self) -> bool {
        // A turn that does not sleep finds `RUNNING` and pays for a load, not for an exchange: nobody
        // but this thread parks. Acquire, if it comes to that: pairs with `wake`.
        self.state.load(Ordering::Relaxed) != RUNNING
            && self.state.swap(RUNNING, Ordering::Acquire) == RUNG
    }

    /// True if nobody has asked for a turn to end, and the reactor is not parked.
    pub(crate) fn is_quiet(&self) -> bool {
        // Relaxed: nobody acts on it but by doing nothing.
        self.state.load(Ordering::Relaxed) == RUNNING
    }

    /// True if somebody asked for a turn and none has ended for it yet.
    pub(crate) fn is_rung(&self) -> bool {
        // Relaxed: the turn that ends for it, and is about to come, acquires.
        self.state.load(Ordering::Relaxed) == RUNG
    }
}

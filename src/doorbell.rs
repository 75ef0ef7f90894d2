//! The doorbell: whether the reactor sleeps, and who wakes it.
//!
//! | state | meaning |
//! | --- | --- |
//! | `RUNNING` | the reactor's thread is awake and will look at the intake before it sleeps |
//! | `RUNG` | somebody asked for the current or the next turn to end; nobody needs to ring |
//! | `PARKED` | it sleeps in the kernel, or is about to, and the bell has to be rung |
//! | `PARKED` + n | the same, but instead of that a registration may be left to the [scout](crate::backend::scout), n times |
//!
//! The race that this survives: a pusher adds a source and looks whether the reactor sleeps; the
//! reactor looks whether there are sources and goes to sleep. If both looked before the other had
//! written, the source would lie there until something else happens. So both write first and look
//! second, with a sequentially consistent fence between: at least one of them sees the other.
//! (`push_against_park` in `loom-tests/` is this story, and fails without either fence.)
//!
//! A registration that is left to the scout lies in the intake while the reactor sleeps. Whoever leaves it
//! there takes on what ringing would have done: it has put the descriptor where its first event ends the
//! sleep, or else it rings after all. See [`Source`](crate::source) for how those who want more of it than
//! that are told apart.
//!
//! A wake needs no fence, because both sides exchange the state itself, and the second of two
//! exchanges sees the first. Exchanges also pass on what came before others of their kind, so that a
//! turn that ends for one of two wakes and has seen both has seen what led to both.
//! (`wake_against_park`, `two_wakes_against_park`, `a_push_and_a_wake_against_park`)

use crate::sync::{AtomicU32, Ordering, fence, fence_after_exchange};

#[derive(Debug)]
pub(crate) struct Doorbell {
    state: AtomicU32,
}

/// What came of an attempt to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// Whoever has news will see to it that the sleep ends.
    Asleep,
    /// Somebody had asked for a turn to end, or has rung meanwhile.
    Rung,
    /// There is something to do.
    Busy,
}

/// What a push has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Nothing: the reactor is awake, or has been rung.
    Nobody,
    /// Ring the bell.
    Bell,
    /// Leave the source to the scout, or call [`pushed`](Doorbell::pushed) once more.
    Scout,
}

const RUNNING: u32 = 0;
const RUNG: u32 = 1;
/// And all above.
const PARKED: u32 = 2;

impl Doorbell {
    pub(crate) fn new() -> Doorbell {
        Doorbell {
            state: AtomicU32::new(RUNNING),
        }
    }

    /// Something was pushed to the intake, or made known to the reactor by another exchange. `scout`
    /// says that the scout will do for it.
    #[must_use]
    pub(crate) fn pushed(&self, scout: bool) -> Call {
        // Between the push and the look at the state. Pairs with the fence in `park`.
        fence_after_exchange();
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let (next, call) = match state {
                RUNNING | RUNG => return Call::Nobody,
                _ if scout && state > PARKED => (state - 1, Call::Scout),
                _ => (RUNG, Call::Bell),
            };
            match self
                .state
                .compare_exchange(state, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return call,
                Err(actual) => state = actual,
            }
        }
    }

    /// The current or the next turn shall end. True if the caller has to ring the bell.
    #[must_use]
    pub(crate) fn wake(&self) -> bool {
        // Release: what the caller did before `wake` is seen by the turn that ends for it.
        self.state.swap(RUNG, Ordering::Release) >= PARKED
    }

    /// The reactor is about to sleep, if `idle` says that there is still nothing to do. It watches the
    /// scout meanwhile, to which so many registrations may be left.
    #[must_use]
    pub(crate) fn park(&self, scouts: u32, idle: impl FnOnce() -> bool) -> Parked {
        let parked = PARKED + scouts;
        if self
            .state
            .compare_exchange(RUNNING, parked, Ordering::Relaxed, Ordering::Relaxed)
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

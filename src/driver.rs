//! The driver: brings what the kernel watches in line with what is wanted.
//!
//! It belongs to the reactor's thread and uses no atomics of its own. It owns the slots, one a
//! registration; a [`Token`](crate::backend::Token) names a slot and a generation. A poll is in one of
//! three states:
//!
//! ```text
//!             arm                     cancel
//!   Idle ───────────► Armed ────────────────────► Cancelling
//!    ▲                  │ last completion             │ last completion
//!    └──────────────────┴─────────────────────────────┘
//! ```
//!
//! and there is one rule: [`Driver::reconcile`] compares what is wanted with what is
//! armed and asks for the difference. Registering, widening an interest, deregistering, recovering
//! from an overflow and moving to another ring are all that. It runs for every source from the
//! intake, and for every slot one of whose polls has ended.
//!
//! A slot is freed when its source is closing and both of its polls are idle: at its last
//! completion. Until then every completion that names the slot belongs to its source. The generation
//! is changed with every arming, so that a completion that comes twice, or after the end, is
//! recognised for what it is.
//!
//! The turn is here. What it is made of has files of its own: from what is wanted to requests
//! ([`reconcile`]), from completions to wakers ([`dispatch`]), and what comes over a driver as a whole
//! ([`lifecycle`]).

mod dispatch;
mod lifecycle;
mod reconcile;
mod slot;

use crate::backend::{Completion, Kernel, Standing, Tier};
use crate::doorbell::Parked;
use crate::shared::Shared;
use crate::source::Source;
use crate::sync::{Arc, Ordering};
use dispatch::Live;
use reconcile::SCOUTS;
use slab::Slab;
use slot::{Slot, State};
use std::hint;
use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::{Duration, Instant};

const NOW: Option<Duration> = Some(Duration::ZERO);
/// Looks at the intake, a turn, before it goes on without sleeping.
const LOOKS: u32 = 4;
/// Registrations that are fetched together from where the processor has them.
const AHEAD: usize = 16;

/// How a turn waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Parked, for as long as it may.
    Asleep,
    /// Not at all, because there should be something. If there is not, it may sleep after all.
    Glance,
    /// Not at all: there is something to do, or somebody asked for the turn to end.
    Awake,
}

pub(crate) struct Driver {
    kernel: Box<dyn Kernel>,
    slots: Slab<Slot>,
    /// By slot. Shorter than that where nothing has been reported yet.
    live: Vec<Live>,
    shared: Arc<Shared>,
    batch: Vec<Completion>,
    /// Slots one of whose polls has ended, or whose descriptor is closed.
    ended: Vec<u32>,
    /// Sources that are done with, but whose files a replaced ring may still hold.
    haunted: Vec<Arc<Source>>,
    /// A poll that refused to end has been told so once more.
    insists: bool,
    /// A poll that had ended has been armed again.
    resumes: bool,
    /// How long a turn looks for news before it sleeps.
    spin: Duration,
    /// Where new polls go.
    tier: Tier,
    /// Registrations that the next sleep leaves to the scout. None if more came at once, the last time
    /// that any did: the next will be followed by others, too, and one ring wakes the reactor for all.
    scouts: u32,
    /// The backend knows that its descriptor counts.
    nested: bool,
    /// The reactor ends, and arms nothing any more.
    ending: bool,
    /// The last one that was given out. No two polls of a slot have the same, for as long as it matters.
    generation: u32,
    /// Where the next spare source goes.
    spare: usize,
    /// Registrations that have ended, and count still.
    departed: usize,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("slots", &self.slots.len())
            .finish_non_exhaustive()
    }
}

impl Driver {
    pub(crate) fn new(kernel: Box<dyn Kernel>, shared: Arc<Shared>, spin: Duration) -> Driver {
        Driver {
            kernel,
            slots: Slab::new(),
            live: Vec::new(),
            shared,
            batch: Vec::with_capacity(256),
            ended: Vec::new(),
            haunted: Vec::new(),
            spin,
            insists: false,
            resumes: false,
            tier: Tier::Near,
            scouts: SCOUTS,
            nested: false,
            ending: false,
            generation: 0,
            spare: 0,
            departed: 0,
        }
    }

    /// One turn. Returns how many events were dispatched. `idle` says whether the caller, too, has
    /// nothing to do.
    #[inline(always)]
    pub(crate) fn turn(
        &mut self,
        timeout: Option<Duration>,
        idle: impl Fn() -> bool,
    ) -> io::Result<usize> {
        self.shared.counters.turns.add(1);
        if timeout == NOW && self.is_quiet() {
            return Ok(0);
        }
        let turned = self.turn_now(timeout, idle);
        if turned.is_err() && self.shared.nested.load(Ordering::Relaxed) {
            // The next turn tries again, and so is due.
            self.shared.bell.ring();
        }
        turned
    }

    #[inline(always)]
    fn turn_now(
        &mut self,
        timeout: Option<Duration>,
        idle: impl Fn() -> bool,
    ) -> io::Result<usize> {
        self.shared.doorbell.resume();
        let held = self.slots.len();
        let mut events = match self.kernel.standing() {
            Standing::Ready => 0,
            standing => self.stand(standing)?,
        };
        let nested = self.shared.nested.load(Ordering::Relaxed);
        if nested && !self.nested {
            events += self.nest()?;
        }
        // Whoever was woken for these may be this thread's next task.
        let timeout = if events > 0 { NOW } else { timeout };
        let mut ended = self.slots.len() < held;
        let timeout = if self.spin.is_zero() || timeout == NOW || self.kernel.has_news() {
            timeout
        } else {
            self.spin(timeout, &mut ended, &idle)?
        };
        let rest = self.admit(timeout, ended, true, &idle);
        let mut waited = self.wait(rest, timeout);
        if rest == Rest::Glance && self.batch.is_empty() && waited.is_ok() {
            waited = self.wait_after_all(timeout, ended, &idle);
        }
        events += self.dispatch();
        self.recover();
        // Whoever was deregistered counts on this turn to let go of the file, and whoever has widened an
        // interest, or was in an overflow, on its bringing what is ready. A poll that has to be told to end
        // twice is armed again only after that.
        for _ in 0..2 {
            if !mem::take(&mut self.insists) & !mem::take(&mut self.resumes) {
                break;
            }
            waited = waited.and(self.take_in(&mut events));
        }
        if nested {
            let quiet = self.kernel.settle()?;
            self.be_nested(quiet);
        }
        waited.map(|()| events)
    }

    /// A turn that must not sleep would do nothing.
    fn is_quiet(&self) -> bool {
        let shared = &self.shared;
        self.kernel.is_quiet()
            && shared.intake.is_empty()
            && shared.doorbell.is_quiet()
            && !shared.nested.load(Ordering::Relaxed)
            && self.haunted.is_empty()
            && self.batch.is_empty()
    }

    /// Looks for news for a while, without sleeping. Returns what is left of the timeout.
    fn spin(
        &mut self,
        timeout: Option<Duration>,
        ended: &mut bool,
        idle: impl Fn() -> bool,
    ) -> io::Result<Option<Duration>> {
        let begun = Instant::now();
        let limit = timeout.map_or(self.spin, |timeout| timeout.min(self.spin));
        loop {
            *ended |= self.attend_all();
            if self.kernel.has_requests() {
                self.kernel.wait(NOW, &mut self.batch)?;
            }
            let news = !self.batch.is_empty()
                || (*ended && self.is_settled())
                || !self.shared.doorbell.is_quiet()
                || !idle()
                || self.kernel.look();
            let elapsed = begun.elapsed();
            if news || elapsed >= limit {
                return Ok(timeout.map(|timeout| timeout.saturating_sub(elapsed)));
            }
            hint::spin_loop();
        }
    }

    /// The wait of a turn, after [`admit`](Driver::admit).
    #[inline(always)]
    fn wait(&mut self, rest: Rest, timeout: Option<Duration>) -> io::Result<()> {
        if rest == Rest::Asleep {
            let waited = self.kernel.wait(timeout, &mut self.batch);
            self.shared.doorbell.unpark();
            waited
        } else {
            self.kernel.wait(NOW, &mut self.batch)
        }
    }

    /// A glance has found nothing, and so the turn may sleep.
    #[cold]
    fn wait_after_all(
        &mut self,
        timeout: Option<Duration>,
        ended: bool,
        idle: impl Fn() -> bool,
    ) -> io::Result<()> {
        let rest = self.admit(timeout, ended, false, idle);
        self.wait(rest, timeout)
    }

    /// Drains the intake, and parks if there is a reason to sleep and none not to. `ended` says that
    /// a registration has ended in this turn already, `glance` that news from the kernel is such a
    /// reason.
    fn admit(
        &mut self,
        timeout: Option<Duration>,
        mut ended: bool,
        glance: bool,
        idle: impl Fn() -> bool,
    ) -> Rest {
        for _ in 0..LOOKS {
            ended |= self.attend_all();
            if timeout == NOW || !self.batch.is_empty() {
                break;
            }
            if ended && self.is_settled() {
                // The last registration has ended in this turn, and the kernel, which watches nothing
                // for it any more, will not say so. Whoever turns until there is none has to look.
                break;
            }
            let shared = &self.shared;
            if glance && self.kernel.has_news() {
                // To park costs more than to look.
                let rung = shared.doorbell.unpark() || !idle();
                return if rung { Rest::Awake } else { Rest::Glance };
            }
            let nothing = || shared.intake.is_empty() && idle();
            match shared.doorbell.park(self.scouts, nothing) {
                Parked::Asleep => return Rest::Asleep,
                Parked::Rung => return Rest::Awake,
                Parked::Busy if !idle() => break,
                Parked::Busy => {}
            }
        }
        // This turn ends soon, and so answers whoever asked for one to end.
        self.shared.doorbell.unpark();
        Rest::Awake
    }

    /// Somebody may wait for our descriptor until the next turn: as if parked, so that it becomes
    /// readable when there is something to do, and is so now if there is. `quiet` says that the kernel
    /// has nothing to say that it does not show.
    fn be_nested(&self, quiet: bool) {
        let shared = &self.shared;
        let asleep = quiet
            && !shared.doorbell.is_rung()
            && shared.doorbell.park(0, || shared.intake.is_empty()) == Parked::Asleep;
        if !asleep {
            shared.bell.ring();
        }
    }

    /// The descriptor that another loop may wait for.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        if !self.shared.nested.swap(true, Ordering::Relaxed) {
            match self.kernel.standing() {
                // What there is is the parent's, and not to be touched.
                Standing::Inherited => {}
                Standing::Lost => {
                    self.expose(&[]);
                    self.be_nested(false);
                }
                Standing::New | Standing::Ready => {
                    let quiet = self.expose_all();
                    self.be_nested(quiet);
                }
            }
        }
        self.kernel.descriptor()
    }

    /// True if the descriptor shows all that may come before the next turn. Otherwise that one has to be
    /// asked for, after which it does.
    fn expose_all(&self) -> bool {
        let slots = || self.slots.iter().map(|(_, slot)| slot);
        let armed = slots().filter(|slot| slot.main.state == State::Armed);
        let polls: Vec<_> = armed
            .map(|slot| (slot.source.fd(), slot.main.events))
            .collect();
        let shown = self.expose(&polls);
        let moving = slots().any(|slot| slot.main.state == State::Cancelling);
        shown && !moving && !self.kernel.has_requests() && !self.kernel.has_news()
    }

    fn expose(&self, polls: &[(RawFd, u16)]) -> bool {
        self.kernel.expose(polls).unwrap_or_else(|error| {
            tracing::error!(%error, "the reactor's descriptor does not show wakes until a turn");
            false
        })
    }

    pub(crate) fn pin(&mut self) -> bool {
        self.kernel.pin()
    }

    pub(crate) fn unpin(&mut self) {
        self.kernel.unpin();
    }

    /// True if nothing is left to be told to, or by, the kernel.
    pub(crate) fn is_settled(&self) -> bool {
        // A registration that is being published counts before it is in the intake.
        self.shared.registered() == 0 && self.slots.is_empty() && self.shared.intake.is_empty()
    }
}

#[cfg(all(test, not(uring_reactor_loom)))]
mod crowd;

#[cfg(all(test, not(uring_reactor_loom)))]
mod tests;

#[cfg(all(any(test, fuzzing), not(uring_reactor_loom)))]
pub(crate) mod hostile;

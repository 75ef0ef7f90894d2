//! What a reactor shares with its handles and sources.

use crate::backend::Bell;
use crate::doorbell::{Call, Doorbell};
use crate::error::Error;
use crate::intake::Intake;
use crate::metrics::{Counters, Metrics};
use crate::source::Source;
use crate::spares::Spares;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering};
use crossbeam_utils::CachePadded;
use std::io;
use std::os::fd::BorrowedFd;

/// The first four are what a registration touches. They share a cache line, because to a thread
/// that registers it comes from the reactor's processor, and one such line costs less than one for each.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Shared {
    pub(crate) intake: Intake,
    pub(crate) doorbell: Doorbell,
    /// Living registrations: up before `register` publishes, down when the driver sees the end.
    registered: AtomicUsize,
    pub(crate) spares: Spares,
    pub(crate) bell: Bell,
    /// Set once somebody holds the reactor's descriptor and so may sleep on it between turns. Relaxed:
    /// it is set through a `&Reactor` and read in a turn, which has a `&mut`.
    pub(crate) nested: AtomicBool,
    /// The reactor writes here in every turn.
    pub(crate) counters: CachePadded<Counters>,
}

impl Shared {
    pub(crate) fn new(bell: Bell) -> Shared {
        Shared {
            intake: Intake::new(),
            doorbell: Doorbell::new(),
            registered: AtomicUsize::new(0),
            spares: Spares::new(),
            bell,
            nested: AtomicBool::new(false),
            counters: CachePadded::default(),
        }
    }

    /// An error if no turn will ever come again.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.intake.is_closed() || self.bell.is_orphaned() {
            Err(Error::ReactorGone.into())
        } else {
            Ok(())
        }
    }

    /// Queues a source whose `QUEUED` bit the caller has just set. `share` goes to the intake, and comes
    /// back if the reactor is gone. `scouted` is its descriptor, if the scout will do for it.
    pub(crate) fn attend(
        &self,
        source: &Source,
        share: Arc<Source>,
        scouted: Option<BorrowedFd<'_>>,
    ) -> Result<(), Arc<Source>> {
        self.intake.push(share)?;
        match (self.doorbell.pushed(scouted.is_some()), scouted) {
            (Call::Nobody, _) => {}
            (Call::Scout, Some(descriptor)) if source.scout(descriptor) => {}
            (Call::Scout, _) => self.nudge(),
            (Call::Bell, _) => self.bell.ring(),
        }
        Ok(())
    }

    /// Makes a parked reactor look around. One that is awake will before it parks. What it is to find
    /// was written by an exchange.
    pub(crate) fn nudge(&self) {
        if self.doorbell.pushed(false) == Call::Bell {
            self.bell.ring();
        }
    }

    /// After the end of a registration: gives a drain that has fallen behind a chance.
    pub(crate) fn hold_up(&self) {
        if self.intake.is_behind() && self.check().is_ok() {
            self.intake.pause();
        }
    }

    /// Makes the current or the next turn return.
    pub(crate) fn wake(&self) {
        if self.doorbell.wake() {
            self.bell.ring();
        }
    }

    // Relaxed, all three: nothing is told by the count. A registration is announced by the intake, and
    // whoever waits for the last one to end was told of those that there are by other means.

    pub(crate) fn count_up(&self) {
        self.registered.fetch_add(1, Ordering::Relaxed);
    }

    /// True if those were the last ones.
    pub(crate) fn count_down(&self, ended: usize) -> bool {
        self.registered.fetch_sub(ended, Ordering::Relaxed) == ended
    }

    pub(crate) fn registered(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        // With the reactor they have all ended, and nobody counts down.
        let living = if self.intake.is_closed() {
            0
        } else {
            self.registered()
        };
        self.counters.snapshot(living)
    }
}

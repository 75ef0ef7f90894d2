//! From what is wanted to requests: the intake, and the difference between what a registration wants and
//! what is armed for it.

use super::slot::{Slot, Stage, State, Watch, wanted};
use super::{AHEAD, Driver};
use crate::backend::{Place, Tag, Tier, Token};
use crate::intake::Drain;
use crate::source::intent::Intent;
use crate::source::{NO_SLOT, REFUSED, RETIRED, Source};
use crate::sync::Arc;
use std::hint;
use std::os::fd::BorrowedFd;

/// Registrations that a sleep leaves to the scout, before the next one rings. To ring costs whoever
/// registers about as much as that many, so no number of them costs more than twice the least.
pub(super) const SCOUTS: u32 = 8;

impl Driver {
    /// Drains the intake. True if there was anything in it, perhaps one that ends.
    #[inline]
    pub(super) fn attend_all(&mut self) -> bool {
        let news = !self.shared.intake.is_empty();
        if news {
            self.attend_each();
        }
        news
    }

    #[inline(never)]
    fn attend_each(&mut self) {
        let mut newcomers = 0;
        let mut drain = self.shared.intake.drain();
        while self.look_ahead(&drain) {
            for source in drain.by_ref().take(AHEAD) {
                newcomers += u32::from(source.slot() == NO_SLOT);
                self.attend(source);
            }
        }
        if newcomers > 0 {
            self.scouts = if newcomers > SCOUTS { 0 } else { SCOUTS };
        }
        self.count_down();
    }

    /// Looks at the slots of the next few sources. With thousands of registrations these are in no cache
    /// near the processor, but several looks, none of which waits for another, take the time of one.
    /// False if there are no more.
    fn look_ahead(&self, drain: &Drain) -> bool {
        let mut any = false;
        for source in drain.ahead().take(AHEAD) {
            any = true;
            hint::black_box(self.slots.contains(source.slot() as usize));
        }
        any
    }

    fn count_down(&mut self) {
        let departed = std::mem::take(&mut self.departed);
        if departed > 0 {
            self.shared.count_down(departed);
        }
    }

    /// What is wanted of a source from the intake, which the scout has no part in any more.
    fn take_intent(&mut self, source: &Source) -> Intent {
        let (intent, out) = take_out(source);
        if !out {
            // The file may live on by another descriptor, and its entry with it.
            self.kernel.renew_scout();
        }
        intent
    }

    /// A source wants attention.
    fn attend(&mut self, source: Arc<Source>) {
        let intent = self.take_intent(&source);
        match source.slot() {
            RETIRED => {}
            REFUSED => {
                if intent.contains(Intent::CLOSING) {
                    drop(source.take_fd());
                    self.let_go(source, true);
                }
            }
            NO_SLOT if intent.contains(Intent::CLOSING) => {
                // It came and went between two turns: the kernel need not know.
                source.set_slot(RETIRED);
                self.departed += 1;
                drop(source.take_fd());
                source.release();
            }
            NO_SLOT => {
                let entry = self.slots.vacant_entry();
                // 2^32 registrations do not fit into the memory of their polls.
                let index = entry.key() as u32;
                source.set_slot(index);
                self.generation = (self.generation + 1) & Token::MAX_GENERATION;
                entry.insert(Slot {
                    source,
                    returned: None,
                    main: Watch::idle(self.generation),
                    urgent: Watch::idle(self.generation),
                    stage: Stage::Living,
                    tier: self.tier,
                    misplaced: false,
                    place: Place::default(),
                    pollable: false,
                    failed: false,
                    in_old_ring: false,
                    shortages: 0,
                });
                self.reconcile(index, intent);
            }
            index => {
                if intent.contains(Intent::CLOSING) {
                    self.slots[index as usize].returned = Some(source);
                }
                self.reconcile(index, intent);
            }
        }
    }

    /// Asks the kernel for the difference between what is wanted and what is armed.
    fn reconcile(&mut self, index: u32, intent: Intent) {
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        let closing = intent.contains(Intent::CLOSING);
        let over = closing || slot.failed;
        if over && slot.stage == Stage::Living {
            slot.stage = Stage::Ending;
            self.departed += 1;
        }
        let (main, urgent) = if over || self.ending {
            (0, 0)
        } else {
            wanted(intent, self.kernel.separate_urgent())
        };
        let fd = slot.source.fd();
        for (tag, wanted) in [(Tag::Urgent, urgent), (Tag::Main, main)] {
            let tier = if tag == Tag::Urgent {
                Tier::Far
            } else {
                slot.tier
            };
            let misplaced = tag == Tag::Main && slot.misplaced;
            let watch = slot.watch(tag);
            match watch.state {
                State::Idle if wanted != 0 => {
                    self.generation = (self.generation + 1) & Token::MAX_GENERATION;
                    watch.generation = self.generation;
                    watch.events = wanted;
                    watch.state = State::Armed;
                    watch.fresh = true;
                    let token = Token::new(tag, index, watch.generation);
                    let place = self.kernel.arm(token, fd, wanted, tier);
                    if tag == Tag::Main {
                        slot.misplaced = false;
                        slot.place = place;
                    }
                }
                State::Armed if wanted != watch.events || misplaced => {
                    watch.state = State::Cancelling;
                    let token = Token::new(tag, index, watch.generation);
                    self.kernel.cancel(token, fd, slot.place(tag));
                }
                State::Idle | State::Armed | State::Cancelling => {}
            }
        }
        if over {
            // Upon the cancels, which go the same way.
            if let Some((token, fd)) = slot.close(index) {
                self.kernel.close(token, fd, slot.place);
            }
            if slot.is_quiet() {
                self.conclude(index, closing);
            }
        }
    }

    /// The kernel watches nothing any more for a source that is closing or was refused, and has closed what
    /// was handed over.
    fn conclude(&mut self, index: u32, closing: bool) {
        let slot = self.slots.remove(index as usize);
        if !closing {
            return slot.source.set_slot(REFUSED);
        }
        let mut source = slot.source;
        if let Some(returned) = slot.returned {
            match self.shared.spares.put(&mut self.spare, [source, returned]) {
                // Nobody else had it, so nobody waits to hear that the file is released.
                Ok(()) => return,
                Err(shared) => source = shared,
            }
        }
        self.let_go(source, slot.in_old_ring);
    }

    /// The driver is done with a source, whose file may be in a ring that was replaced.
    fn let_go(&mut self, source: Arc<Source>, in_old_ring: bool) {
        source.set_slot(RETIRED);
        if in_old_ring && self.kernel.is_haunted() {
            self.haunted.push(source);
        } else {
            source.release();
        }
    }

    /// Reconciles every slot that has lost something.
    #[inline]
    pub(super) fn recover(&mut self) {
        if !self.ended.is_empty() || !self.haunted.is_empty() {
            self.recover_each();
        }
    }

    #[inline(never)]
    fn recover_each(&mut self) {
        let generation = self.generation;
        // A slot may be here twice, and may be gone the second time.
        let mut ended = std::mem::take(&mut self.ended);
        for index in ended.drain(..) {
            if let Some(slot) = self.slots.get(index as usize) {
                let intent = slot.source.intent();
                self.reconcile(index, intent);
            }
        }
        self.ended = ended;
        self.count_down();
        // Each arming has its own. What is ready is reported by it, and somebody may wait for that.
        self.resumes = self.generation != generation;
        if !self.haunted.is_empty() && !self.kernel.is_haunted() {
            for source in self.haunted.drain(..) {
                source.release();
            }
        }
    }
}

/// What is wanted of a source from the intake, which leaves the scout. False if its entry could not be
/// removed there.
pub(super) fn take_out(source: &Source) -> (Intent, bool) {
    let intent = source.take_intent();
    if !intent.contains(Intent::SCOUTED) {
        return (intent, true);
    }
    // SAFETY: the descriptor is the user's, who promised to keep it open until it is deregistered, or
    // ours to close after this. If it is closed, its number names another file or none, and no entry, or
    // that of another registration which the same sleep has left to the scout. That is drained with this
    // one, and finds its entry gone. (One that is too late has its descriptor open, and removes its entry
    // itself.)
    let descriptor = unsafe { BorrowedFd::borrow_raw(source.fd()) };
    (intent, source.shared().bell.scout.remove(descriptor))
}

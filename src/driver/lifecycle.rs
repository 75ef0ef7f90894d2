//! What comes over a driver as a whole: another thread or process, being nested in another loop, and the end.

use super::reconcile::take_out;
use super::slot::{Stage, State};
use super::{Driver, NOW};
use crate::backend::{Standing, Tag, Token};
use crate::source::{NO_SLOT, REFUSED};
use std::io;

/// Registrations that are cancelled one by one when the reactor ends. More are left to the end of
/// the ring, whose cost does not depend on their order.
const CANCELLED_AT_END: usize = 1024;

impl Driver {
    /// Sees to it that the kernel's side belongs to this thread and this process. Returns how many
    /// events were dispatched on the way.
    #[cold]
    pub(super) fn stand(&mut self, standing: Standing) -> io::Result<usize> {
        let mut events = 0;
        match standing {
            Standing::Ready => return Ok(0),
            Standing::New => return self.kernel.start().map(|()| 0),
            Standing::Lost => {
                // What the old instance has to say is said; what it was about to say, the new one
                // will, because arming reports what is ready.
                self.kernel.salvage(&mut self.batch);
                events = self.dispatch();
            }
            Standing::Inherited => {}
        }
        self.kernel.rebuild()?;
        self.nested = false;
        tracing::debug!(
            ?standing,
            slots = self.slots.len(),
            "rebuilt; arming every slot anew"
        );
        self.ended.clear();
        self.live.clear();
        for (index, slot) in &mut self.slots {
            slot.main.state = State::Idle;
            slot.urgent.state = State::Idle;
            slot.in_old_ring = true;
            if slot.stage == Stage::Closing {
                // The old ring executed it with its submission, or gave the descriptor back.
                slot.stage = Stage::Closed;
            }
            self.ended.push(index as u32);
        }
        self.recover();
        Ok(events)
    }

    /// Somebody has our descriptor: moves every poll to where it shows there. Returns how many events
    /// were dispatched on the way.
    #[cold]
    pub(super) fn nest(&mut self) -> io::Result<usize> {
        self.tier = self.kernel.nest()?;
        self.nested = true;
        for (index, slot) in &mut self.slots {
            if slot.tier != self.tier {
                slot.tier = self.tier;
                slot.misplaced = true;
                self.ended.push(index as u32);
            }
        }
        self.recover();
        self.dispatch_until(|driver| {
            let mut slots = driver.slots.iter();
            !slots.any(|(_, slot)| slot.main.state == State::Cancelling)
        })
        .map(|(events, _)| events)
    }

    /// Waits for what is on its way already, until `done`. Returns how many events were dispatched,
    /// and whether it came to that.
    fn dispatch_until(&mut self, done: impl Fn(&Driver) -> bool) -> io::Result<(usize, bool)> {
        let mut events = 0;
        for _ in 0..64 {
            if done(self) {
                return Ok((events, true));
            }
            self.take_in(&mut events)?;
        }
        Ok((events, done(self)))
    }

    /// Hands over all requests, and acts on what there is.
    pub(super) fn take_in(&mut self, events: &mut usize) -> io::Result<()> {
        let waited = self.kernel.wait(NOW, &mut self.batch);
        *events += self.dispatch();
        self.recover();
        waited
    }

    /// The end of the reactor. When this returns, no file is held any more, every waiter has been
    /// called, and every later call is answered with "reactor gone".
    pub(crate) fn shut_down(mut self) {
        let clean = match self.kernel.standing() {
            // It has taken no turn, and armed nothing.
            Standing::New => true,
            Standing::Ready => self.slots.len() <= CANCELLED_AT_END && self.cancel_all(),
            Standing::Lost | Standing::Inherited => false,
        };
        let Driver {
            kernel,
            slots,
            shared,
            haunted,
            ..
        } = self;
        // The files first: whoever hears "gone" may count on them.
        kernel.shut_down(clean);
        for source in haunted {
            source.release();
        }
        for source in shared.intake.close() {
            take_out(&source);
            // Its slot, if it has one, follows; what was handed over is closed by whichever is first
            // to find that nobody else will.
            if matches!(source.slot(), NO_SLOT | REFUSED) {
                source.orphan();
            }
        }
        for (_, slot) in slots {
            slot.source.orphan();
        }
        shared.spares.clear();
    }

    /// Ends every poll with the ring's own means, which lets go of the files at once. True if all of
    /// them have ended.
    fn cancel_all(&mut self) -> bool {
        self.attend_all();
        // Nothing is armed again from here on.
        self.ending = true;
        let mut cancelled = Vec::new();
        for (index, slot) in &mut self.slots {
            for tag in [Tag::Main, Tag::Urgent] {
                let place = slot.place(tag);
                let watch = slot.watch(tag);
                if watch.state == State::Armed {
                    watch.state = State::Cancelling;
                    let token = Token::new(tag, index as u32, watch.generation);
                    cancelled.push((token, slot.source.fd(), place));
                }
            }
        }
        // The youngest first is the cheap order: a cancel walks past all younger polls.
        for (token, fd, place) in cancelled.into_iter().rev() {
            self.kernel.cancel(token, fd, place);
        }
        self.dispatch_until(|driver| driver.slots.iter().all(|(_, slot)| slot.is_quiet()))
            .is_ok_and(|(_, done)| done)
    }
}

//! From completions to wakers.

use super::slot::{Stage, State};
use super::{AHEAD, Driver};
use crate::backend::{Completion, Tag};
use crate::metrics::Counters;
use crate::ready::Ready;
use crate::source::Source;
use crate::sync::Arc;
use std::os::fd::BorrowedFd;
use std::ptr;

/// A main poll that has reported and lives on, so that what it reports from now on goes straight to its
/// source: all that an edge needs to know of a slot, in a quarter of a cache line.
#[derive(Clone, Copy)]
pub(super) struct Live {
    pub(super) source: *const Source,
    pub(super) generation: u32,
}

// SAFETY: a source may be used from any thread. Whoever follows the pointer says why it is there.
unsafe impl Send for Live {}
// SAFETY: as above.
unsafe impl Sync for Live {}

impl Live {
    /// No poll has this generation.
    pub(super) const NONE: Live = Live {
        source: ptr::null(),
        generation: u32::MAX,
    };
}

impl Driver {
    /// Acts on the batch. Returns how many events reached a registration.
    pub(super) fn dispatch(&mut self) -> usize {
        if self.batch.is_empty() {
            return 0;
        }
        let mut events = 0;
        let mut completions = 0;
        // By index: the backend may add to the batch meanwhile.
        let mut next = 0;
        // By its parts: whole, each would be copied to the stack for the sake of those that are rare.
        while let Some(&Completion {
            token,
            result,
            more,
        }) = self.batch.get(next)
        {
            if next.is_multiple_of(AHEAD) {
                self.fetch(next);
            }
            next += 1;
            if more
                && token.tag() == Some(Tag::Main)
                && let Some(live) = self.live.get(token.slot() as usize)
                && live.generation == token.generation()
                && result >= 0
            {
                completions += 1;
                // SAFETY: that poll has not ended, or `polled` or `stand` would have removed the
                // entry. So its slot is there, which holds the source.
                let source = unsafe { &*live.source };
                let ready = Ready::from_poll(result as u16);
                events += usize::from(report(source, ready, &self.shared.counters));
                continue;
            }
            let completion = Completion {
                token,
                result,
                more,
            };
            match token.tag() {
                Some(Tag::Internal) => self.kernel.own(completion, &mut self.batch),
                Some(tag @ (Tag::Main | Tag::Urgent)) => {
                    completions += 1;
                    events += usize::from(self.polled(tag, completion));
                }
                Some(Tag::Close) => {
                    completions += 1;
                    self.closed(completion);
                }
                Some(Tag::Cancel) => {
                    completions += 1;
                    self.not_cancelled(completion);
                }
                // Not ours: the setting-up of the ring, or a kernel gone mad.
                None => {}
            }
        }
        self.batch.clear();
        self.shared.counters.completions.add(completions);
        self.shared.counters.events.add(events as u64);
        events
    }

    /// Asks the processor for what the next few completions will touch. With thousands of registrations
    /// that is in no cache near it; fetched together, all come in the time of one.
    fn fetch(&self, from: usize) {
        for completion in self.batch[from..].iter().take(AHEAD) {
            if let Some(live) = self.live.get(completion.token.slot() as usize) {
                Source::fetch(live.source);
            }
        }
    }

    /// A poll has reported. True if the registration heard of it.
    fn polled(&mut self, tag: Tag, completion: Completion) -> bool {
        let Completion {
            token,
            result,
            more,
        } = completion;
        let spurious = &self.shared.counters.spurious;
        let slot = self.slots.get_mut(token.slot() as usize);
        let Some(slot) = slot.filter(|slot| slot.is_watching(tag, token)) else {
            spurious.add(1);
            self.kernel.stray();
            return false;
        };
        if more {
            slot.shortages = 0;
        }
        let watch = slot.watch(tag);
        let armed = watch.state == State::Armed;
        let fresh = std::mem::replace(&mut watch.fresh, false);
        if more {
            if tag == Tag::Main && watch.reads() {
                let index = token.slot() as usize;
                if self.live.len() <= index {
                    self.live.resize(index + 1, Live::NONE);
                }
                self.live[index] = Live {
                    source: Arc::as_ptr(&slot.source),
                    generation: token.generation(),
                };
            }
        } else {
            watch.state = State::Idle;
            self.ended.push(token.slot());
            if tag == Tag::Main
                && let Some(live) = self.live.get_mut(token.slot() as usize)
            {
                *live = Live::NONE;
            }
            // The first word and the last: an overflow, or a file without a wait queue. Of that the
            // kernel says that it is ready, once, and would say so after every arming.
            if result >= 0 && armed && fresh && !slot.pollable {
                // SAFETY: the user promised to keep the descriptor open until it is deregistered;
                // if it is not, the answer is about another file or none, and so was the poll's.
                let fd = unsafe { BorrowedFd::borrow_raw(slot.source.fd()) };
                slot.pollable = self.kernel.is_pollable(fd);
                if !slot.pollable {
                    slot.fail(libc::EPERM);
                    return false;
                }
            }
            if armed {
                // Ended by the kernel, not by us. `recover` arms it again, unless it failed.
                slot.ended_early(result);
                if !slot.failed {
                    tracing::debug!(
                        fd = slot.source.fd(),
                        result,
                        "the kernel ended a poll; arming it again"
                    );
                    self.shared.counters.rearms.add(1);
                }
            }
        }
        // `ECANCELED` as a number has the bit of `POLLIN`: the sign first.
        if result < 0 {
            return false;
        }
        let ready = slot.ready(tag, result as u16);
        // Armed anew, it repeats what was there before.
        let repeated = fresh && slot.source.has_edges(ready);
        report(&slot.source, ready, &self.shared.counters) && !repeated
    }

    fn closed(&mut self, completion: Completion) {
        let index = completion.token.slot();
        if let Some(slot) = self.slots.get_mut(index as usize)
            && slot.stage == Stage::Closing
            && completion.token == slot.close_token(index)
        {
            if completion.result < 0 {
                self.kernel.not_closed(slot.source.fd(), -completion.result);
            }
            slot.stage = Stage::Closed;
            self.ended.push(index);
        }
    }

    /// A cancel found nothing (then the end is on its way), or was too late for this wake-up.
    fn not_cancelled(&mut self, completion: Completion) {
        let token = completion.token;
        if completion.result != -libc::EALREADY {
            return;
        }
        if let Some(slot) = self.slots.get_mut(token.slot() as usize) {
            for tag in [Tag::Main, Tag::Urgent] {
                let place = slot.place(tag);
                let watch = slot.watch(tag);
                if watch.state == State::Cancelling && watch.generation == token.generation() {
                    self.kernel.insist(token.tagged(tag), place);
                    self.insists = true;
                }
            }
        }
    }
}

/// Tells a registration what its poll has reported. True if it heard of it.
#[inline(always)]
fn report(source: &Source, ready: Ready, counters: &Counters) -> bool {
    if ready.is_empty() {
        return false;
    }
    tracing::trace!(fd = source.fd(), ?ready, "event");
    let heard = source.dispatch(ready);
    if !heard {
        counters.spurious.add(1);
    }
    heard
}

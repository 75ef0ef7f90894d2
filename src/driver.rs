//! The driver: brings what the kernel watches in line with what is wanted.
//!
//! It belongs to the reactor's thread and uses no atomics of its own. It owns the slots, one a
//! registration; a [`Token`] names a slot and a generation. A poll is in one of three states:
//!
//! ```text
//!             arm                     cancel
//!   Idle ───────────► Armed ────────────────────► Cancelling
//!    ▲                  │ last completion             │ last completion
//!    └──────────────────┴─────────────────────────────┘
//! ```
//!
//! and there is one rule: [`reconcile`](Driver::reconcile) compares what is wanted with what is
//! armed and asks for the difference. Registering, widening an interest, deregistering, recovering
//! from an overflow and moving to another ring are all that. It runs for every source from the
//! intake, and for every slot one of whose polls has ended.
//!
//! A slot is freed when its source is closing and both of its polls are idle: at its last
//! completion. Until then every completion that names the slot belongs to its source. The generation
//! is changed with every arming, so that a completion that comes twice, or after the end, is
//! recognised for what it is.

mod slot;

use crate::backend::{Completion, Kernel, Place, Standing, Tag, Tier, Token};
use crate::doorbell::Parked;
use crate::metrics::Counters;
use crate::ready::Ready;
use crate::shared::Shared;
use crate::source::intent::Intent;
use crate::source::{NO_SLOT, RETIRED, Source};
use crate::sync::{Arc, Ordering};
use slab::Slab;
use slot::{Fd, Slot, State, Watch, wanted};
use std::hint;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::time::{Duration, Instant};

const NOW: Option<Duration> = Some(Duration::ZERO);
/// Registrations that are cancelled one by one when the reactor ends. More are left to the end of
/// the ring, whose cost does not depend on their order.
const CANCELLED_AT_END: usize = 1024;
/// Completions whose registrations are fetched together.
const AHEAD: usize = 16;
/// Looks at the intake, a turn, before it goes on without sleeping.
const LOOKS: u32 = 4;
/// Registrations that a sleep leaves to the scout, before the next one rings. To ring costs whoever
/// registers about as much as that many, so no number of them costs more than twice the least.
const SCOUTS: u32 = 8;

/// A main poll that has reported and lives on, so that what it reports from now on goes straight to its
/// source: all that an edge needs to know of a slot, in a quarter of a cache line.
#[derive(Clone, Copy)]
struct Live {
    source: *const Source,
    generation: u32,
}

// SAFETY: a source may be used from any thread. Whoever follows the pointer says why it is there.
unsafe impl Send for Live {}
// SAFETY: as above.
unsafe impl Sync for Live {}

impl Live {
    /// No poll has this generation.
    const NONE: Live = Live {
        source: ptr::null(),
        generation: u32::MAX,
    };
}

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
    /// How long a turn looks for news before it sleeps.
    spin: Duration,
    /// Where new polls go.
    tier: Tier,
    /// Registrations that the next sleep leaves to the scout. None if more came at once, the last time
    /// that any did: the next will be followed by others, too, and one ring wakes the reactor for all.
    scouts: u32,
    /// The backend knows that its descriptor counts.
    nested: bool,
    /// The last one that was given out. No two polls have the same, whatever slot they are in.
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
            tier: Tier::Near,
            scouts: SCOUTS,
            nested: false,
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
        if std::mem::take(&mut self.insists) {
            // Whoever was deregistered counts on this turn to let go of the file.
            waited = waited.and(self.take_in(&mut events));
        }
        if nested {
            self.settle()?;
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
    }

    /// Sees to it that the kernel's side belongs to this thread and this process. Returns how many
    /// events were dispatched on the way.
    #[cold]
    fn stand(&mut self, standing: Standing) -> io::Result<usize> {
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
            if slot.fd == Fd::Closing {
                // The old ring executed it with its submission, or gave the descriptor back.
                slot.fd = Fd::Closed;
            }
            self.ended.push(index as u32);
        }
        self.recover();
        Ok(events)
    }

    /// Somebody has our descriptor: moves every poll to where it shows there. Returns how many events
    /// were dispatched on the way.
    #[cold]
    fn nest(&mut self) -> io::Result<usize> {
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
    fn take_in(&mut self, events: &mut usize) -> io::Result<()> {
        let waited = self.kernel.wait(NOW, &mut self.batch);
        *events += self.dispatch();
        self.recover();
        waited
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

    /// Drains the intake. True if there was anything in it, perhaps one that ends.
    #[inline]
    fn attend_all(&mut self) -> bool {
        let news = !self.shared.intake.is_empty();
        if news {
            self.attend_each();
        }
        news
    }

    #[inline(never)]
    fn attend_each(&mut self) {
        let mut newcomers = 0;
        for source in self.shared.intake.drain() {
            newcomers += u32::from(source.slot() == NO_SLOT);
            self.attend(source);
        }
        if newcomers > 0 {
            self.scouts = if newcomers > SCOUTS { 0 } else { SCOUTS };
        }
        self.count_down();
    }

    /// Those that have ended do not count any more.
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
                    fd: Fd::Kept,
                    tier: self.tier,
                    misplaced: false,
                    place: Place::default(),
                    pollable: false,
                    failed: false,
                    closing: false,
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
        if closing && !slot.closing {
            slot.closing = true;
            self.departed += 1;
        }
        let (main, urgent) = if closing || slot.failed {
            (0, 0)
        } else {
            wanted(intent, self.kernel.separate_urgent())
        };
        let fd = slot.source.fd();
        // The urgent poll first: a close follows upon the cancel of the last one.
        for (tag, wanted) in [(Tag::Urgent, urgent), (Tag::Main, main)] {
            let tier = if tag == Tag::Urgent {
                Tier::Far
            } else {
                slot.tier
            };
            let other_idle = tag == Tag::Main && slot.urgent.state != State::Armed;
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
                    if other_idle
                        && closing
                        && let Some((token, fd)) = slot.close(index)
                    {
                        self.kernel.close(token, fd, slot.place);
                    }
                }
                State::Idle | State::Armed | State::Cancelling => {}
            }
        }
        if closing && slot.main.state == State::Idle && slot.urgent.state == State::Idle {
            self.conclude(index);
        }
    }

    /// The kernel watches nothing any more for a source that is closing.
    fn conclude(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if let Some((token, fd)) = slot.close(index) {
            self.kernel.close(token, fd, slot.place);
        } else if slot.fd != Fd::Closing {
            let slot = self.slots.remove(index as usize);
            let mut source = slot.source;
            if let Some(returned) = slot.returned {
                match self.shared.spares.put(&mut self.spare, [source, returned]) {
                    // Nobody else had it, so nobody waits to hear that the file is released.
                    Ok(()) => return,
                    Err(shared) => source = shared,
                }
            }
            source.set_slot(RETIRED);
            if self.kernel.is_haunted() {
                self.haunted.push(source);
            } else {
                source.release();
            }
        }
    }

    /// Acts on the batch. Returns how many events reached a registration.
    fn dispatch(&mut self) -> usize {
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
        let Some(slot) = self.slots.get_mut(token.slot() as usize) else {
            spurious.add(1);
            return false;
        };
        let watch = slot.watch(tag);
        if watch.state == State::Idle || watch.generation != token.generation() {
            spurious.add(1);
            return false;
        }
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
                    self.shared.counters.rearms.add(1);
                }
            }
        }
        // `ECANCELED` as a number has the bit of `POLLIN`: the sign first.
        if result < 0 {
            return false;
        }
        let ready = slot.ready(tag, result as u16);
        report(&slot.source, ready, &self.shared.counters)
    }

    fn closed(&mut self, completion: Completion) {
        let index = completion.token.slot();
        if let Some(slot) = self.slots.get_mut(index as usize)
            && slot.fd == Fd::Closing
            && completion.token == slot.close_token(index)
        {
            slot.fd = Fd::Closed;
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

    /// Reconciles every slot that has lost something.
    #[inline]
    fn recover(&mut self) {
        if !self.ended.is_empty() || !self.haunted.is_empty() {
            self.recover_each();
        }
    }

    #[inline(never)]
    fn recover_each(&mut self) {
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
        if !self.haunted.is_empty() && !self.kernel.is_haunted() {
            for source in self.haunted.drain(..) {
                source.release();
            }
        }
    }

    /// Somebody may wait for our descriptor until the next turn: as if parked, so that it becomes
    /// readable when there is something to do, and is so now if there is.
    fn settle(&mut self) -> io::Result<()> {
        let quiet = self.kernel.settle()?;
        let shared = &self.shared;
        let asleep = quiet
            && !shared.doorbell.is_rung()
            && shared.doorbell.park(0, || shared.intake.is_empty()) == Parked::Asleep;
        if !asleep {
            shared.bell.ring();
        }
        Ok(())
    }

    /// The descriptor that another loop may wait for.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        if !self.shared.nested.swap(true, Ordering::Relaxed) {
            if let Err(error) = self.kernel.expose() {
                tracing::error!(%error, "the reactor's descriptor does not show wakes until a turn");
            }
            // Polls show there after the next turn, so that one is asked for.
            self.shared.bell.ring();
        }
        self.kernel.descriptor()
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

    /// The end of the reactor. When this returns, no file is held any more, every waiter has been
    /// called, and every later call is answered with "reactor gone".
    pub(crate) fn shut_down(mut self) {
        let clean = self.kernel.standing() == Standing::Ready
            && self.slots.len() <= CANCELLED_AT_END
            && self.cancel_all();
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
            if source.slot() == NO_SLOT {
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
            // Nothing is armed again from here on.
            slot.failed = true;
        }
        // The youngest first is the cheap order: a cancel walks past all younger polls.
        for (token, fd, place) in cancelled.into_iter().rev() {
            self.kernel.cancel(token, fd, place);
        }
        self.dispatch_until(|driver| driver.slots.iter().all(|(_, slot)| slot.is_quiet()))
            .is_ok_and(|(_, done)| done)
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

/// What is wanted of a source from the intake, which leaves the scout. False if its entry could not be
/// removed there.
fn take_out(source: &Source) -> (Intent, bool) {
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

#[cfg(all(test, not(loom)))]
mod crowd;

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) mod hostile;

//! The io_uring backend: multishot polls on rings, submitted in batches.
//!
//! What it takes care of, so that the driver need not know:
//!
//! - **Batches.** Requests are queued and go out with the `io_uring_enter` that also waits. A full
//!   submission queue is flushed without waiting; what the kernel does not take even then waits in
//!   `backlog`, in order.
//! - **Ending a poll.** `POLL_REMOVE` costs half of what `ASYNC_CANCEL` does, but refuses (`EALREADY`)
//!   while a wake-up is under way; only then is the other used.
//! - **Closing.** An armed poll holds its file, so the removal goes in front of the `CLOSE`: the peer
//!   sees the end in the same call. Linked they need not be, for neither waits for anything, and
//!   whichever comes second lets go of the file. `closes` remembers the descriptors of `CLOSE`
//!   entries that have not been submitted, which would leak with the ring.
//! - **The bell** is one more multishot poll, and so is the scout. An overflow can end them; then they
//!   are armed again.
//! - **Many polls** make removals on one ring expensive. Beyond some thousands those of sockets go to
//!   [`children`].
//! - **The far tier** is an epoll instance, which the ring watches, for what a ring cannot do:
//!   - files with more than two wait queues (`EINVAL`);
//!   - urgent data. A wake-up for `POLLPRI` alone is ignored (`IO_ASYNC_POLL_COMMON` in
//!     `io_poll_wake`), and with `POLLIN` in the mask every TCP segment reports it, because a
//!     multishot poll reports what the wake-up was for and not what the file says;
//!   - being nested in another event loop. Under `DEFER_TASKRUN` a ring's descriptor does not become
//!     readable when work comes in. A registered eventfd would, but the kernel signals it only once
//!     on account of other eventfds (`IO_EVENTFD_OP_SIGNAL_BIT` is set and never cleared; seen on
//!     6.18). So once somebody asks for the descriptor, all polls move here, and the instance's
//!     descriptor is what others get.
//! - **The end of a ring** is not the end of its polls. Until the kernel has taken those down, rings that
//!   were replaced are among the [`ending`] ones, which the ring that came after watches.

pub(crate) mod children;
mod ending;
mod instance;
mod list;
pub(crate) mod ring;

use crate::backend::choice::explain;
use crate::backend::epoll::{self, Entries};
use crate::backend::{Completion, Kernel, Place, Standing, Tag, Tier, Token, events, process};
use crate::shared::Shared;
use crate::sync::Arc;
use children::{Children, Limits};
use ending::EndingRings;
use instance::{Instance, poll_add};
use io_uring::{opcode, types};
use ring::Ring;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the end of a ring is waited for.
const LONGEST_END: Duration = Duration::from_secs(10);
/// How long what a ring had is waited for, if there is not enough for its successor.
const LONGEST_SHORTAGE: Duration = Duration::from_secs(1);
/// Calls to the far tier in a row.
const FAR_CALLS: usize = 4;
/// Waits on one thread before its table of registered rings is used.
const WAITS_BEFORE_REGISTERING: u32 = 64;

const NOW: Option<Duration> = Some(Duration::ZERO);

const BELL: Token = Token::new(Tag::Internal, 0, 0);
const FAR: Token = Token::new(Tag::Internal, 1, 0);
const ENDING: Token = Token::new(Tag::Internal, 2, 0);
const SCOUT: Token = Token::new(Tag::Internal, 3, 0);
const SCOUT_RENEWED: Token = Token::new(Tag::Internal, 4, 0);
const CALL: Token = Token::new(Tag::Internal, 5, 0);
const SHOWN: Token = Token::new(Tag::Internal, 6, 0);

/// No locked memory or no descriptor left.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE)
    )
}

/// Waits for wake-ups of these files that are under way. They come to the youngest waiter first, which may
/// be one that `expose` has made, and to the ring later; but under the lock of a file's wait queue, which
/// another waiter has to take.
fn await_wake_ups(polls: &[(RawFd, u16)]) -> io::Result<()> {
    let others = Entries::new()?;
    for &(fd, events) in polls {
        others.show(SHOWN, fd, events)?;
    }
    Ok(())
}

pub(crate) struct Uring {
    /// With the main ring.
    instance: Instance,
    children: Children,
    far: Entries,
    /// The ring watches the far tier.
    far_watched: bool,
    /// There may be more in the far tier than was taken.
    far_more: bool,
    /// Somebody else may be waiting for the far tier.
    nested: bool,
    /// Descriptors whose polls are in the ring, and show in the far tier until the next turn.
    shown: Mutex<Vec<RawFd>>,
    ending: EndingRings,
    /// Completions that the ring does not know of: of the far tier's requests.
    made: Vec<Completion>,
    pinned: bool,
    waits: u32,
    shared: Arc<Shared>,
}

impl Uring {
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Uring> {
        Uring::with_limits(shared, Limits::default())
    }

    pub(crate) fn with_limits(shared: Arc<Shared>, limits: Limits) -> io::Result<Uring> {
        Ok(Uring {
            instance: Instance::new()?,
            children: Children::new(limits),
            far: Entries::new()?,
            far_watched: false,
            far_more: false,
            nested: false,
            shown: Mutex::default(),
            ending: EndingRings::default(),
            made: Vec::new(),
            pinned: false,
            waits: 0,
            shared,
        })
    }

    fn watch(&mut self, token: Token, fd: RawFd) {
        self.instance.push(poll_add(token, fd, events::IN));
    }

    fn watch_far(&mut self) {
        if !self.far_watched {
            self.far_watched = true;
            let far = self.far.fd().as_raw_fd();
            self.watch(FAR, far);
        }
    }

    /// Takes what the far tier has to say. Both sides of it are edge-triggered: after a call that finds less
    /// than it has room for, the next event is a new one for the ring, too (`ep_poll_callback`).
    fn take_from_far(&mut self, batch: &mut Vec<Completion>) {
        for _ in 0..FAR_CALLS {
            self.shared.counters.enters.add(1);
            let taken = self.far.wait(NOW, batch);
            // Also if it failed: the ring has said it once, and will not again.
            self.far_more = taken.map_or(true, |count| count == epoll::BATCH);
            if !self.far_more {
                break;
            }
        }
    }

    /// Watches the eventfd by which the children call. Once: a signal on account of a ring ends any
    /// poll (`EPOLL_URING_WAKE` in `io_poll_wake`).
    fn watch_call(&mut self) {
        if let Some(call) = self.children.call() {
            let entry = opcode::PollAdd::new(types::Fd(call.as_raw_fd()), u32::from(events::IN));
            self.instance.push(entry.build().user_data(CALL.0));
        }
    }

    /// The ring that takes a poll of that file.
    fn choose(&mut self, fd: RawFd) -> u8 {
        let had_children = !self.children.is_empty();
        let ring = self.children.choose(self.instance.polls, fd);
        if !had_children && !self.children.is_empty() {
            self.watch_call();
        }
        ring
    }

    fn instance(&mut self, ring: u8) -> &mut Instance {
        // The main ring closes what was in no ring, or in one that is gone.
        self.children.get(ring).unwrap_or(&mut self.instance)
    }

    /// An instance in the place of one that is of no use any more, and ends.
    fn successor(&mut self) -> io::Result<Instance> {
        let fresh = Instance::new();
        if let Err(error) = &fresh
            && !is_shortage(error)
        {
            return fresh;
        }
        self.ending.add(self.instance.sentinel.take());
        self.instance.end();
        fresh.or_else(|_| Instance::new()).or_else(|_| {
            // The kernel takes its time to give back what the old one had.
            self.ending.await_rings(Instant::now() + LONGEST_SHORTAGE);
            Instance::new()
        })
    }

    /// Enables the ring on this thread, and watches what is the backend's own.
    fn set_up(&mut self) -> io::Result<()> {
        self.instance.ring.enable()?;
        let bell = self.shared.bell.fd().as_raw_fd();
        self.watch(BELL, bell);
        let scout = self.shared.bell.scout.fd().as_raw_fd();
        self.watch(SCOUT, scout);
        if std::mem::take(&mut self.far_watched) {
            self.watch_far();
        }
        self.ending.watch_on(&mut self.instance);
        self.instance.enter(0, None)
    }
}

impl Kernel for Uring {
    fn separate_urgent(&self) -> bool {
        true
    }

    fn arm(&mut self, token: Token, fd: RawFd, events: u16, tier: Tier) -> Place {
        self.shared.counters.entries.add(1);
        if tier == Tier::Near {
            let ring = self.choose(fd);
            let list = self.instance(ring).arm(token, fd, events);
            return Place { ring, list };
        }
        self.watch_far();
        if let Err(error) = self.far.add(token, fd, events) {
            self.made.push(Completion::end(token, error.raw_os_error()));
        }
        Place::FAR
    }

    fn cancel(&mut self, token: Token, fd: RawFd, place: Place) {
        self.shared.counters.entries.add(1);
        if place == Place::FAR {
            self.far.remove(token, fd);
            self.made.push(Completion::end(token, libc::ECANCELED));
        } else {
            let entry = opcode::PollRemove::new(token.in_list(place.list).0).build();
            self.instance(place.ring).remove(token, entry);
        }
    }

    fn insist(&mut self, token: Token, place: Place) {
        self.shared.counters.entries.add(1);
        let entry = opcode::AsyncCancel::new(token.in_list(place.list).0).build();
        self.instance(place.ring).remove(token, entry);
    }

    fn close(&mut self, token: Token, fd: OwnedFd, place: Place) {
        self.shared.counters.entries.add(1);
        self.instance(place.ring).close(token, fd);
    }

    fn not_closed(&mut self, fd: RawFd, errno: i32) {
        // A ring will not close a ring (`io_close`). Any other error leaves the descriptor closed (`close(2)`).
        if errno == libc::EBADF {
            // SAFETY: it was handed over as an `OwnedFd`, whose number nobody else has while it is open.
            drop(unsafe { process::adopt(fd) });
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, batch: &mut Vec<Completion>) -> io::Result<()> {
        if !self.made.is_empty() {
            batch.append(&mut self.made);
        }
        if self.far_more {
            self.take_from_far(batch);
        }
        if self.pinned && self.waits < WAITS_BEFORE_REGISTERING {
            self.waits += 1;
            if self.waits == WAITS_BEFORE_REGISTERING {
                self.instance.ring.register();
            }
        }
        let Uring {
            instance,
            children,
            shared,
            ..
        } = self;
        let counters = &shared.counters;
        let first = children.serve(batch, counters);
        let block = timeout != NOW
            && batch.is_empty()
            && !instance.ring.has_completions()
            && children.listen();
        let main = instance.serve(block, timeout, batch, counters);
        if block {
            children.ignore();
        }
        let mut last = Ok(());
        if block || batch.is_empty() {
            // A child may have ended the wait, or kept it from being one.
            last = children.serve(batch, counters);
        }
        first.and(main).and(last)
    }

    fn is_quiet(&self) -> bool {
        self.standing() == Standing::Ready && !self.has_requests() && !self.has_news()
    }

    fn has_requests(&self) -> bool {
        self.instance.has_requests() || self.children.have_requests()
    }

    fn has_news(&self) -> bool {
        self.instance.has_news()
            || !self.made.is_empty()
            || self.far_more
            || self.children.have_news()
    }

    fn is_pollable(&mut self, fd: BorrowedFd<'_>) -> bool {
        // Both ask the same of a file: that it can be polled (`file_can_poll`).
        self.far.accepts(fd)
    }

    fn standing(&self) -> Standing {
        let instance = &self.instance;
        if instance.process != process::generation() {
            Standing::Inherited
        } else if instance.owner.is_none() && !instance.ended {
            Standing::New
        } else if instance.owner != Some(process::thread())
            || instance.ended
            || instance.broken
            || self.children.are_broken()
        {
            Standing::Lost
        } else {
            Standing::Ready
        }
    }

    fn start(&mut self) -> io::Result<()> {
        self.instance.owner = Some(process::thread());
        let started = self.set_up();
        // A ring can be enabled once. What failed half-way is replaced.
        self.instance.broken = started.is_err();
        started
    }

    fn salvage(&mut self, batch: &mut Vec<Completion>) {
        batch.append(&mut self.made);
        if !self.instance.ended {
            self.instance.reap(batch);
        }
        self.children.reap(batch);
    }

    fn own(&mut self, completion: Completion, batch: &mut Vec<Completion>) {
        match completion.token {
            FAR => self.take_from_far(batch),
            ENDING => {
                let far = self.nested.then_some(&self.far);
                self.ending.look(&mut self.instance, far);
            }
            CALL => self.children.answer(),
            _ => {}
        }
        if completion.more || self.standing() != Standing::Ready {
            return;
        }
        let fd = match completion.token {
            BELL => self.shared.bell.fd().as_raw_fd(),
            FAR => self.far.fd().as_raw_fd(),
            SCOUT => self.shared.bell.scout.fd().as_raw_fd(),
            CALL => return self.watch_call(),
            _ => return,
        };
        tracing::debug!("the kernel ended a poll of the reactor's own; arming it again");
        self.watch(completion.token, fd);
    }

    fn renew_scout(&mut self) {
        let instance = &mut self.instance;
        self.shared.bell.scout.renew(|| {
            // The poll holds the old one. Its end is answered as an overflow's is: the new one is
            // watched.
            let cancel = opcode::AsyncCancel::new(SCOUT.0).build();
            instance.push(cancel.user_data(SCOUT_RENEWED.0));
            Ok(())
        });
    }

    fn rebuild(&mut self) -> io::Result<()> {
        if self.standing() == Standing::Inherited {
            // The parent's as well, whose ring does not end with our part in it.
            let fresh = Instance::new().map_err(explain)?;
            self.shared.bell.replace()?;
            self.far.replace()?;
            self.ending.forget();
            self.children.end();
            self.instance = fresh;
        } else {
            // Whatever comes of it, their polls are gone.
            self.instance.broken = true;
            self.ending.add(self.children.end());
            self.instance = self.successor().map_err(explain)?;
            // The epoll instance stays: another loop may be watching it.
            self.far.clear();
        }
        self.made.clear();
        self.far_more = false;
        self.waits = 0;
        self.shared.counters.rebuilds.add(1);
        self.start()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.far.fd()
    }

    fn expose(&self, polls: &[(RawFd, u16)]) -> io::Result<bool> {
        self.far.watch(BELL, self.shared.bell.fd())?;
        if self.far_watched {
            // What is ready there is not ours to take, as below.
            return Ok(polls.is_empty());
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for &(fd, events) in polls {
            if self.far.show(SHOWN, fd, events).is_err() {
                return Ok(false);
            }
            shown.push(fd);
        }
        // What is ready by now has been reported, or is in the ring, or about to be.
        let mut known = Vec::new();
        for _ in 0..=polls.len() / epoll::BATCH {
            self.far.wait(NOW, &mut known)?;
        }
        let any = known.iter().any(|completion| completion.token == SHOWN);
        Ok(!any || await_wake_ups(polls).is_ok())
    }

    fn nest(&mut self) -> io::Result<Tier> {
        let shown = self.shown.get_mut().unwrap_or_else(PoisonError::into_inner);
        for fd in shown.drain(..) {
            self.far.hide(fd);
        }
        self.watch_far();
        self.far.watch(BELL, self.shared.bell.fd())?;
        self.ending.expose_in(&self.far);
        self.nested = true;
        Ok(Tier::Far)
    }

    fn settle(&mut self) -> io::Result<bool> {
        let counters = &self.shared.counters;
        let children = self.children.settle(counters)?;
        let main = self.instance.settle(counters)?;
        Ok(main && children && self.made.is_empty() && !self.far_more)
    }

    fn pin(&mut self) -> bool {
        if std::mem::replace(&mut self.pinned, true) {
            return false;
        }
        self.waits = 0;
        true
    }

    fn unpin(&mut self) {
        self.pinned = false;
        let instance = &mut self.instance;
        if instance.is_at_home() && !instance.ended {
            instance.ring.unregister();
        }
    }

    fn is_haunted(&self) -> bool {
        !self.ending.is_empty()
    }

    fn shut_down(self: Box<Self>, clean: bool) {
        if self.standing() == Standing::Inherited {
            return;
        }
        let Uring {
            mut instance,
            mut children,
            mut ending,
            ..
        } = *self;
        let sentinels = children.end();
        if !clean {
            ending.add(sentinels);
            ending.add(instance.sentinel.take());
        }
        drop(instance);
        if !ending.is_empty() && !ending.await_files(Instant::now() + LONGEST_END) {
            tracing::warn!("the kernel has not taken an io_uring down in {LONGEST_END:?}");
        }
    }
}

#[cfg(test)]
mod overflow;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Bell;
    use crate::backend::bell::{new_eventfd, signal};
    use std::os::fd::AsFd;

    const POLL: Token = Token::new(Tag::Main, 3, 1);

    fn started() -> Uring {
        let shared = Arc::new(Shared::new(Bell::new().unwrap()));
        let mut uring = Uring::new(shared).unwrap();
        uring.start().unwrap();
        uring
    }

    /// Waits, with the backend's own completions acted upon, until there is one for `POLL`.
    fn next(uring: &mut Uring) -> Completion {
        for _ in 0..100 {
            let mut batch = Vec::new();
            uring
                .wait(Some(Duration::from_secs(10)), &mut batch)
                .unwrap();
            let mut index = 0;
            while let Some(&completion) = batch.get(index) {
                index += 1;
                match completion.token.tag() {
                    Some(Tag::Internal) => uring.own(completion, &mut batch),
                    _ if completion.token == POLL => return completion,
                    _ => {}
                }
            }
        }
        panic!("no completion came");
    }

    #[test]
    fn the_far_tier_serves_what_the_ring_refuses() {
        let mut uring = started();
        let watched = new_eventfd().unwrap();
        uring.arm(POLL, watched.as_raw_fd(), events::IN, Tier::Far);
        for _ in 0..3 {
            signal(watched.as_fd());
            let completion = next(&mut uring);
            assert_eq!(completion.result, i32::from(events::IN));
            assert!(completion.more);
        }
        uring.cancel(POLL, watched.as_raw_fd(), Place::FAR);
        let completion = next(&mut uring);
        assert_eq!(completion.result, -libc::ECANCELED);
        assert!(!completion.more);
    }

    /// True if the scout makes a wait end.
    fn is_stirred(uring: &mut Uring) -> bool {
        let mut stirred = false;
        for _ in 0..3 {
            let mut batch = Vec::new();
            uring.wait(NOW, &mut batch).unwrap();
            for completion in batch.clone() {
                stirred |= completion.token == SCOUT && completion.result >= 0;
                uring.own(completion, &mut batch);
            }
        }
        stirred
    }

    #[test]
    fn a_renewed_scout_forgets_what_was_in_it() {
        let mut uring = started();
        let shared = Arc::clone(&uring.shared);
        let (old, new) = (new_eventfd().unwrap(), new_eventfd().unwrap());
        for _ in 0..10 {
            assert!(shared.bell.scout.add(old.as_fd()));
            // Also while the ring is being told of an event.
            signal(old.as_fd());
            uring.renew_scout();
            is_stirred(&mut uring);
            signal(old.as_fd());
            assert!(!is_stirred(&mut uring));
            assert!(shared.bell.scout.add(new.as_fd()));
            signal(new.as_fd());
            assert!(is_stirred(&mut uring));
            assert!(shared.bell.scout.remove(new.as_fd()));
            assert!(!shared.bell.scout.remove(new.as_fd()));
        }
    }

    #[test]
    fn the_far_tier_answers_for_what_it_refuses_too() {
        let mut uring = started();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        uring.arm(POLL, file.as_raw_fd(), events::IN, Tier::Far);
        assert_eq!(next(&mut uring), Completion::end(POLL, libc::EPERM));
    }

    #[test]
    fn a_ring_is_in_its_thread_s_table_while_it_is_pinned() {
        let mut uring = started();
        let waits = |uring: &mut Uring| {
            for _ in 0..=WAITS_BEFORE_REGISTERING {
                uring.wait(NOW, &mut Vec::new()).unwrap();
            }
        };
        waits(&mut uring);
        assert!(!uring.instance.ring.is_registered());
        assert!(uring.pin());
        waits(&mut uring);
        assert!(uring.instance.ring.is_registered());
        assert!(!uring.pin(), "it stays where it is");
        waits(&mut uring);
        assert!(uring.instance.ring.is_registered());
        uring.unpin();
        assert!(!uring.instance.ring.is_registered());
    }

    #[test]
    fn a_batch_larger_than_the_queue_is_handed_over_whole() {
        let mut uring = started();
        let watched = new_eventfd().unwrap();
        signal(watched.as_fd());
        let count = 5000;
        for slot in 0..count {
            let token = Token::new(Tag::Main, slot, 1);
            uring.arm(token, watched.as_raw_fd(), events::IN, Tier::Near);
        }
        let mut seen = vec![false; count as usize];
        let mut batch = Vec::new();
        for _ in 0..100 {
            uring.wait(Some(Duration::ZERO), &mut batch).unwrap();
            for completion in batch.drain(..) {
                assert_eq!(completion.result, i32::from(events::IN));
                seen[completion.token.slot() as usize] = true;
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }
}

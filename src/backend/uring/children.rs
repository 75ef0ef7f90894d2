//! Child rings: where polls go that are too many for one ring.
//!
//! The kernel keeps the polls of a ring in at most 256 lists and walks one of them to remove a poll. With
//! 100 000 in one ring that is a walk of 400, most of them in no cache, and costs several times what
//! epoll takes. So the main ring takes as many as it serves at a good price, and what comes after that
//! goes to rings of its kind, made when they are needed. From then on it takes no more than each of them.
//! A child that cannot be made is no error: the rings that there are take more. One that has become empty
//! stays, because who had so many connections once may have them again, and beside what those took it is
//! little.
//!
//! # Who sleeps
//!
//! A thread sleeps in one ring, and that is the main one. Children are entered without waiting, before it
//! and after, if they have requests or news. While the thread sleeps a child *calls*: its first work item
//! signals an eventfd (`IORING_REGISTER_EVENTFD`) that the main ring watches. While the thread is awake
//! that would cost those who cause events, and say nothing new, so then the children are muted
//! (`IORING_CQ_EVENTFD_DISABLED`).
//!
//! The race that this survives: the kernel adds a work item, sets `SQ_TASKRUN`, and looks whether the
//! ring is muted (`io_req_local_work_add` in Linux 6.18); we unmute, and look whether `SQ_TASKRUN` is set.
//! If both looked before the other had written, the reactor would sleep through the event. So both write
//! first and look second, with a fence between. Ours is in [`listen`](Children::listen). The kernel's is
//! the locked instruction that sets the flag, on x86; elsewhere that instruction orders nothing, and
//! children are not muted at all. Then the eventfd counts what comes at any time, and the main ring,
//! which watches it anew after it was read, sees a count at once.
//!
//! # Who may be in a child
//!
//! The kernel does not signal an eventfd from within the signal of another. It puts that off, and does so
//! once in the life of a ring: `IO_EVENTFD_OP_SIGNAL_BIT` is set and never cleared (seen on 6.18). A poll
//! of an eventfd, or of an epoll instance that an eventfd may wake, would call once and never again. So
//! these stay in the main ring, however many they are.
//!
//! They are told from others by `lseek`, which is the cheapest call that can (170 ns where `fstat` takes
//! 470): it succeeds for both, if to no effect (`noop_llseek`), but not for sockets, pipes and terminals
//! (`ESPIPE`). All that can be sought stays in the main ring. A ring's own descriptor cannot be sought
//! either, but is woken by the work of its owner, never from within a signal. Should a kernel ever refuse
//! to seek an eventfd, there are no children: see [`Children::make`].

use super::instance::Instance;
use super::ring::Ring;
use crate::backend::bell::new_eventfd;
use crate::backend::{Completion, process};
use crate::metrics::Counters;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, fence};

/// Whether the kernel sees the muting in time. See the module's documentation.
const MUTES: bool = cfg!(any(target_arch = "x86", target_arch = "x86_64"));
/// The number of the main ring, before those of the children.
const MAIN: u8 = 0;

/// How many polls go where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// In the main ring, while no other has any.
    pub(crate) main: u32,
    /// In each ring, otherwise.
    pub(crate) child: u32,
    /// Each takes 150 KiB of the memory that may be locked (8 MiB for all processes of a user, by default
    /// and unless it has `CAP_IPC_LOCK`), and two descriptors.
    pub(crate) children: usize,
    pub(crate) ring: fn() -> io::Result<Ring>,
}

impl Default for Limits {
    fn default() -> Limits {
        // The few are for `ci/crowded`, where the tests need no thousands to make a crowd.
        let (main, child) = if cfg!(uring_reactor_crowded) {
            (4, 3)
        } else {
            (12_000, 2_500)
        };
        Limits {
            main,
            child,
            children: 39,
            ring: Ring::child,
        }
    }
}

pub(super) struct Children {
    rings: Vec<Instance>,
    /// By which they call. There is one as soon as there are children.
    call: Option<OwnedFd>,
    limits: Limits,
    /// The ring that takes polls, until it has `ceiling` of them. So those that come one after the other
    /// stay together, a batch of them takes one system call, and they share a [list](super::list).
    current: u8,
    ceiling: u32,
}

impl Children {
    pub(super) fn new(limits: Limits) -> Children {
        Children {
            rings: Vec::new(),
            call: None,
            limits,
            current: MAIN,
            ceiling: limits.main,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }

    pub(super) fn get(&mut self, ring: u8) -> Option<&mut Instance> {
        self.rings.get_mut(usize::from(ring).checked_sub(1)?)
    }

    pub(super) fn call(&self) -> Option<BorrowedFd<'_>> {
        self.call.as_ref().map(AsFd::as_fd)
    }

    /// The ring that takes a poll of that file, where the main ring has so many.
    pub(super) fn choose(&mut self, main: u32, fd: RawFd) -> u8 {
        if self.current == MAIN && main < self.ceiling {
            return MAIN;
        }
        self.choose_among_all(main, fd)
    }

    #[inline(never)]
    fn choose_among_all(&mut self, main: u32, fd: RawFd) -> u8 {
        let Limits {
            main: mut limit,
            child,
            ..
        } = self.limits;
        if self.rings.iter().any(|ring| ring.polls > 0) {
            limit = limit.min(child);
        }
        if has_room(main, limit) {
            self.take_from_now_on(MAIN, limit);
            return MAIN;
        }
        if !may_call(fd) {
            return MAIN;
        }
        if self.polls(self.current, main) >= self.ceiling {
            let mut children = 1..=self.rings.len() as u8;
            let ring = children.find(|&ring| has_room(self.polls(ring, main), child));
            match ring.or_else(|| self.add()) {
                Some(ring) => self.take_from_now_on(ring, child),
                None => self.take_a_few_more(main),
            }
        }
        self.current
    }

    fn take_from_now_on(&mut self, ring: u8, ceiling: u32) {
        self.current = ring;
        self.ceiling = ceiling;
    }

    /// All rings are full, and there can be no more of them. So they share what comes, a few at a time.
    fn take_a_few_more(&mut self, main: u32) {
        let rings = 0..=self.rings.len() as u8;
        let polls = rings.map(|ring| (self.polls(ring, main), ring)).min();
        let (polls, ring) = polls.expect("there is the main ring");
        self.take_from_now_on(ring, polls.saturating_add(self.limits.child.div_ceil(4)));
    }

    fn polls(&self, ring: u8, main: u32) -> u32 {
        let child = usize::from(ring).checked_sub(1);
        child.map_or(main, |index| self.rings[index].polls)
    }

    /// One more child, if there can be one.
    fn add(&mut self) -> Option<u8> {
        if self.rings.len() >= self.limits.children {
            return None;
        }
        let child = self
            .make()
            .inspect_err(|error| tracing::debug!(%error, "there can be no ring for more polls"));
        self.rings.push(child.ok()?);
        Some(self.rings.len() as u8)
    }

    fn make(&mut self) -> io::Result<Instance> {
        let mut child = Instance::child((self.limits.ring)()?);
        child.owner = Some(process::thread());
        child.ring.enable()?;
        child.ring.mute(MUTES);
        let call = match self.call.take() {
            Some(call) => call,
            None => new_eventfd()?,
        };
        if may_call(call.as_raw_fd()) {
            return Err(io::Error::other("eventfds cannot be told from other files"));
        }
        child.ring.announce_by(self.call.insert(call).as_fd())?;
        Ok(child)
    }

    /// Hands over what the children have to hand over, and takes what they have to say.
    #[inline]
    pub(super) fn serve(
        &mut self,
        batch: &mut Vec<Completion>,
        counters: &Counters,
    ) -> io::Result<()> {
        if self.rings.is_empty() {
            return Ok(());
        }
        self.serve_all(batch, counters)
    }

    #[inline(never)]
    fn serve_all(&mut self, batch: &mut Vec<Completion>, counters: &Counters) -> io::Result<()> {
        let mut result = Ok(());
        for child in &mut self.rings {
            if child.has_requests() || child.has_news() {
                result = result.and(child.serve(false, None, batch, counters));
            }
        }
        result
    }

    /// From now on the children call. False, and they do not, if one has something to hand over or to
    /// say already.
    #[inline]
    #[must_use]
    pub(super) fn listen(&self) -> bool {
        self.rings.is_empty() || self.all_listen()
    }

    #[inline(never)]
    fn all_listen(&self) -> bool {
        self.mute(false);
        // Between the unmuting and the look. Pairs with the kernel's side.
        fence(Ordering::SeqCst);
        let quiet = !self.have_requests() && !self.have_news() && !self.are_broken();
        if !quiet {
            self.ignore();
        }
        quiet
    }

    /// From now on they need not call.
    pub(super) fn ignore(&self) {
        self.mute(MUTES);
    }

    fn mute(&self, muted: bool) {
        for child in &self.rings {
            child.ring.mute(muted);
        }
    }

    /// A child has called, and may call again: what it called for is seen by every look after this.
    pub(super) fn answer(&self) {
        if let Some(call) = &self.call {
            // It fails if nobody has called since the last time.
            let _ = rustix::io::read(call, &mut [0; 8]);
        }
    }

    pub(super) fn have_requests(&self) -> bool {
        self.rings.iter().any(Instance::has_requests)
    }

    pub(super) fn have_news(&self) -> bool {
        self.rings.iter().any(Instance::has_news)
    }

    pub(super) fn are_broken(&self) -> bool {
        self.rings.iter().any(|child| child.broken)
    }

    pub(super) fn reap(&mut self, batch: &mut Vec<Completion>) {
        for child in &mut self.rings {
            child.reap(batch);
        }
    }

    /// Hands over all requests. False if there is something to say.
    pub(super) fn settle(&mut self, counters: &Counters) -> io::Result<bool> {
        let mut quiet = true;
        for child in &mut self.rings {
            quiet &= child.settle(counters)?;
        }
        Ok(quiet)
    }

    /// Ends all of them. Their sentinels.
    pub(super) fn end(&mut self) -> Vec<OwnedFd> {
        let mut rings = std::mem::replace(self, Children::new(self.limits)).rings;
        rings
            .iter_mut()
            .filter_map(|child| child.sentinel.take())
            .collect()
    }
}

/// A ring that was full takes polls again when a quarter of it is free, so that many come to it
/// together.
fn has_room(polls: u32, limit: u32) -> bool {
    polls < limit - limit / 4
}

/// See the module's documentation.
fn may_call(fd: RawFd) -> bool {
    // SAFETY: the user promised to keep the descriptor open until it is deregistered. If it is not, the
    // answer is about another file or none, and so will be that of the poll.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    seek(fd, SeekFrom::Current(0)) == Err(Errno::SPIPE)
}

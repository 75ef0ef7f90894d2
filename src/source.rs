//! What a registration shares with its reactor.
//!
//! Who may touch what:
//!
//! 1. `word` (readiness, ends, who owns the waker cells) is changed by anybody, one atomic step at
//!    a time. Its bits are explained in [`word`].
//! 2. `cells[direction]` is touched only by whoever set `BUSY(direction)` in `word`. Nobody waits
//!    for that bit, and no user code runs while it is set: wakers are cloned before and called or
//!    dropped after. A cell that is not busy holds a waker if and only if `WAITS` is set.
//! 3. `intent` (what the user wants) is changed by anybody; the driver acts on it. See [`intent`].
//! 4. `next` belongs to whoever set `QUEUED` in `intent`, and from the push to the drain to the
//!    intake.
//! 5. `slot` belongs to the driver.
//! 6. Everything else is written before the source is published and never again.
//! 7. A source that nobody has but the driver is the driver's, which makes it a [spare](crate::spares)
//!    one. Whoever takes it has it alone until it is published again.
//!
//! # The races, and why they are harmless
//!
//! In brackets the models of `loom-tests/` that play them.
//!
//! *An edge comes while a task is leaving its waker.* The task sets `BUSY`, stores the waker and
//! clears `BUSY` with an exchange that fails if the word has changed. A dispatch that meets `BUSY`
//! only sets its bits; the exchange fails, the task sees them and returns `Ready`. A dispatch that
//! comes after the exchange sees `WAITS` and calls the waker. There is no third order.
//! (`dispatch_against_two_directions`, `two_edges_against_a_poll`)
//!
//! *Two tasks poll one direction.* The second meets `BUSY` and has itself called again, or takes
//! the cell over and calls the task whose waker it replaces. Nobody is forgotten.
//! (`two_polls_of_one_direction_against_dispatch`, `a_replaced_waker_against_dispatch`)
//!
//! *One task waits twice at a time*, as with `join`, and an edge comes while its second wait is at the
//! cell, where it finds its own waker. The dispatch meets `BUSY` and calls nobody. The second wait is
//! answered, or waits for something else; so it calls the waker that it found for the sake of the first.
//! (`a_second_wait_of_one_task_against_*`, `a_poll_beside_a_wait_of_one_task_against_dispatch`)
//!
//! *A task is answered and waits again while the dispatch is still at its cell.* It meets `BUSY` and has
//! itself called, or it finds the cell as the dispatch has left it.
//! (`a_task_that_waits_again_against_its_dispatch`)
//!
//! *A task means to leave the cell to another, and an edge comes while it looks.* The dispatch meets
//! `BUSY` and leaves the cell's task to whoever set it. That one, before it gives the cell back, sees
//! the edge and calls. (`a_wait_that_yields_against_dispatch`, `a_wait_that_yields_against_the_end`)
//!
//! *Deregistration meets a dispatch.* Both take wakers only after they have claimed the cell with
//! the same exchange that publishes their news, so a waker is called by exactly one of them. A
//! dispatch that starts after the end is in the word does nothing. (`deregister_against_dispatch`)
//!
//! *The end comes while a task is leaving its waker.* Whoever brings the end finds the cell busy and
//! passes it by. The task finds the end when it gives the cell back, and takes its waker out again:
//! one that stayed would keep the task alive, and with it, as like as not, the registration that it
//! owns. (`the_end_against_two_directions`)
//!
//! *A guard clears what it saw while a new edge comes.* The tick tells the two apart, so the new one
//! stays. (`a_clear_against_a_new_edge`, `a_clear_and_a_new_wait_against_an_edge`)
//!
//! *The reactor sleeps over a source in the intake.* It is for reading alone, and its descriptor is in
//! the [scout](crate::backend::scout), where its first event ends the sleep. It was pushed first and
//! put there second, so that whoever is woken by the event finds it in the intake. Whoever wants more of
//! it sets bits in the word in which it is then marked as scouted, finds it queued, and rings. If the
//! bits come first, the mark is not made, and whoever would have made it rings. If the mark comes first,
//! the reactor was asleep before the bits came, and whoever rings sees that. (`scout::*_against_deregister`,
//! `*_its_drop`, `*_its_close`, `*_a_poll_of_the_other_direction`)
//!
//! *The reactor wakes, and sleeps again, while a descriptor is on its way into the scout.* It sleeps over
//! nothing that was pushed before, but for those that this very sleep has left to the scout. So the
//! driver has looked at the source, and `QUEUED` is clear: the mark is not made, and the descriptor is
//! taken out again by who put it in. (`scout::a_scouted_registration_against_a_wake`)
//!
//! *A task is answered by a load alone.* That load acquires too: whoever is told of an edge sees what
//! led to it, and whoever is told of the end, what came before it. (`what_led_to_an_edge_is_seen_by_*`)

pub(crate) mod intent;
mod published;
pub(crate) mod waiters;
pub(crate) mod word;

use crate::backend::process;
use crate::error::Error;
use crate::ready::{Interest, Ready};
use crate::shared::Shared;
use crate::sync::{Arc, AtomicPtr, AtomicU32, AtomicU64, Ordering, UnsafeCell, contain};
pub(crate) use published::Published;

use intent::Intent;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::task::{Poll, Waker};
use waiters::Waiters;
use word::{Direction, End, News, Word};

/// The value of `slot` while the source has none.
pub(crate) const NO_SLOT: u32 = u32::MAX;
/// The value of `slot` once the driver is done with the source.
pub(crate) const RETIRED: u32 = u32::MAX - 1;
/// The value of `slot` once the kernel has refused the source's file. The driver will hear of its end.
pub(crate) const REFUSED: u32 = u32::MAX - 2;

#[derive(Debug)]
pub(crate) struct Source {
    word: AtomicU64,
    intent: AtomicU32,
    fd: RawFd,
    cells: [UnsafeCell<Option<Waker>>; 2],
    waiters: AtomicPtr<Waiters>,
    pub(crate) next: AtomicPtr<Source>,
    slot: AtomicU32,
    shared: Arc<Shared>,
}

// SAFETY: `cells` is the only part that is not `Sync` by itself, and rule 2 above gives it one user
// at a time: `BUSY` is set by an acquiring exchange that fails if it is set already, and cleared by
// a releasing operation. `Waker` is `Send`, so it may be stored on one thread and taken on another.
unsafe impl Sync for Source {}
// SAFETY: as above; nothing in a source is bound to a thread.
unsafe impl Send for Source {}

/// Readiness as a guard sees it: which bits, and as of which edge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) ready: Ready,
    tick: u32,
}

/// How [`Source::park`] ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parked {
    /// There is news, or was: to be looked at again.
    News,
    Waiting,
    /// The cell serves another task, which was not to be disturbed.
    Occupied,
}

/// What a poll does when the cell serves another task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contention {
    Replace,
    Yield,
}

impl Source {
    pub(crate) fn new(fd: RawFd, interest: Interest, shared: Arc<Shared>) -> Source {
        Source {
            word: AtomicU64::new(Word::EMPTY.0),
            intent: AtomicU32::new(Intent::of(interest).0),
            fd,
            cells: [UnsafeCell::new(None), UnsafeCell::new(None)],
            waiters: AtomicPtr::new(ptr::null_mut()),
            next: AtomicPtr::new(ptr::null_mut()),
            slot: AtomicU32::new(NO_SLOT),
            shared,
        }
    }

    /// A source that nobody has seen, a spare one or a new one: the registration's share of it, and the
    /// reactor's.
    pub(crate) fn obtain(fd: RawFd, interest: Interest, shared: &Arc<Shared>) -> [Arc<Source>; 2] {
        shared.spares.take(fd, interest).unwrap_or_else(|| {
            let source = Arc::new(Source::new(fd, interest, Arc::clone(shared)));
            [Arc::clone(&source), source]
        })
    }

    /// Empties a source that is to be a spare one: of the wakers of tasks that gave up.
    pub(crate) fn reset(&mut self) {
        for cell in &self.cells {
            // SAFETY: nobody shares the source.
            if let Some(waker) = cell.with_mut(|cell| unsafe { (*cell).take() }) {
                contain(|| drop(waker));
            }
        }
        contain(|| self.free_waiters());
    }

    /// Makes a source that was [reset](Source::reset) a new one. All of it is written here, as it comes
    /// from the reactor's processor: so all of it comes at once.
    pub(crate) fn renew(&mut self, fd: RawFd, interest: Interest) {
        for cell in &self.cells {
            // SAFETY: nobody shares the source.
            cell.with(|cell| debug_assert!(unsafe { (*cell).is_none() }));
        }
        self.word = AtomicU64::new(Word::EMPTY.0);
        self.intent = AtomicU32::new(Intent::of(interest).0);
        self.fd = fd;
        self.next = AtomicPtr::new(ptr::null_mut());
        self.slot = AtomicU32::new(NO_SLOT);
    }

    fn free_waiters(&mut self) {
        // Relaxed: nobody shares the source.
        let waiters = self.waiters.load(Ordering::Relaxed);
        if !waiters.is_null() {
            self.waiters.store(ptr::null_mut(), Ordering::Relaxed);
            // SAFETY: made by `Box::into_raw` in `waiters`, and forgotten there.
            drop(unsafe { Box::from_raw(waiters) });
        }
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn load(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// One step of the word: to what `step` makes of it, unless that is `None`. Returns the word
    /// before the step and what `step` said, or the word that it declined.
    fn step<R>(&self, step: impl Fn(Word) -> Option<(Word, R)>) -> Result<(Word, R), Word> {
        let mut word = self.load();
        loop {
            let Some((new, result)) = step(word) else {
                return Err(word);
            };
            if new == word {
                return Ok((word, result));
            }
            match self.word.compare_exchange_weak(
                word.0,
                new.0,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok((word, result)),
                Err(actual) => word = Word(actual),
            }
        }
    }

    /// A step that never declines.
    fn advance<R>(&self, advance: impl Fn(Word) -> (Word, R)) -> (Word, R) {
        self.step(|word| Some(advance(word)))
            .unwrap_or_else(|_| unreachable!("the step never declines"))
    }

    /// Takes what the stream has to report.
    pub(crate) fn take(&self, direction: Direction) -> Option<io::Result<Ready>> {
        self.step(|word| consume(word, direction))
            .ok()
            .map(|(_, outcome)| outcome.map_err(error))
    }

    /// Looks at what answers `interest` without taking it.
    pub(crate) fn peek(&self, interest: Interest) -> Option<io::Result<Event>> {
        observe(self.load(), interest).map(|outcome| outcome.map_err(error))
    }

    /// A waiter of [`poll_shared`](Published::poll_shared) gives up its place.
    pub(crate) fn leave(&self, key: &mut Option<usize>) {
        if let Some(key) = key.take() {
            self.waiters().leave(key);
        }
    }

    /// A guard that saw `event` met `WouldBlock`: clears its bits, unless a newer edge came in.
    pub(crate) fn clear(&self, event: Event, ready: Ready, interest: Interest) {
        let _ = self.step(|word| {
            (word.tick() == event.tick).then(|| (word.cleared(ready & event.ready, interest), ()))
        });
    }

    /// Waits until the kernel holds the file no more.
    pub(crate) fn poll_released(&self, waker: &Waker) -> Poll<()> {
        match self.park(Direction::Read, waker, Contention::Replace, News::RELEASE) {
            Parked::News => Poll::Ready(()),
            Parked::Waiting | Parked::Occupied => Poll::Pending,
        }
    }

    /// Leaves the waker in the direction's cell, unless there is news.
    fn park(
        &self,
        direction: Direction,
        waker: &Waker,
        contention: Contention,
        news: News,
    ) -> Parked {
        if self.load().has(news) {
            return Parked::News;
        }
        // Cloned here because `clone` is the user's code. Where the cell has this very waker
        // already that is a reference too many for a moment.
        let clone = waker.clone();
        let claimed = self.step(|word| {
            let free = !word.has(news) && !word.busy(direction);
            free.then(|| (word.with_busy(direction), ()))
        });
        let before = match claimed {
            Ok((before, ())) => before,
            Err(word) if word.has(news) => return Parked::News,
            Err(_) if contention == Contention::Yield => return Parked::Occupied,
            Err(_) => {
                // Another thread is at the cell right now. Rather than wait for it, come again.
                contain(|| clone.wake());
                return Parked::Waiting;
            }
        };
        let waited = before.waits(direction);
        let cell = &self.cells[direction as usize];
        if waited && contention == Contention::Yield {
            let same = cell.with(|cell| {
                // SAFETY: `BUSY(direction)` is ours.
                let other = unsafe { &*cell };
                other.as_ref().is_some_and(|other| other.will_wake(waker))
            });
            if !same {
                // An edge that came in meanwhile left the cell's task to us.
                let given_back = self.step(|word| {
                    let due = word.has(News::for_any(direction));
                    (!due).then(|| (word.without_busy(direction), ()))
                });
                if given_back.is_err() {
                    self.call(direction);
                }
                return Parked::Occupied;
            }
        }
        // SAFETY: `BUSY(direction)` is ours.
        let replaced = cell.with_mut(|cell| unsafe { (*cell).replace(clone) });
        let left = self.step(|word| {
            let waiting = word.without_busy(direction).with_waits(direction);
            (!word.has(news)).then_some((waiting, ()))
        });
        if left.is_err() {
            // Nobody waits: nobody's waker stays behind.
            let unused = self.vacate(direction);
            contain(|| drop(unused));
        }
        if let Some(replaced) = replaced
            && waited
        {
            // One task may wait twice at a time. Its first wait is not served by our answer, nor by the
            // same waker in the cell, if there was an edge while nobody but we could see to it. (An end
            // is an answer to all.)
            let missed = left.map_or(true, |(word, ())| word.tick() != before.tick());
            if missed || !replaced.will_wake(waker) {
                contain(|| replaced.wake());
            }
        }
        match left {
            Ok(_) => Parked::Waiting,
            Err(_) => Parked::News,
        }
    }

    /// Calls the waker of a cell whose `BUSY` is ours, and gives the cell back.
    #[inline(always)]
    fn call(&self, direction: Direction) {
        if let Some(waker) = self.vacate(direction) {
            contain(|| waker.wake());
        }
    }

    /// Empties a cell whose `BUSY` is ours, and gives it back.
    fn vacate(&self, direction: Direction) -> Option<Waker> {
        // SAFETY: `BUSY(direction)` is ours.
        let waker = self.cells[direction as usize].with_mut(|cell| unsafe { (*cell).take() });
        let vacant = Word(u64::MAX)
            .without_busy(direction)
            .without_waits(direction);
        self.word.fetch_and(vacant.0, Ordering::Release);
        waker
    }

    /// The list of waiters, made on first need.
    fn waiters(&self) -> &Waiters {
        let mut waiters = self.waiters.load(Ordering::Acquire);
        if waiters.is_null() {
            let fresh = Box::into_raw(Box::new(Waiters::new()));
            // Whoever wins knows what is in it.
            waiters = match self.waiters.compare_exchange(
                ptr::null_mut(),
                fresh,
                Ordering::Release,
                Ordering::Acquire,
            ) {
                Ok(_) => fresh,
                Err(theirs) => {
                    // SAFETY: `fresh` came from `Box::into_raw` and was not published.
                    drop(unsafe { Box::from_raw(fresh) });
                    theirs
                }
            };
        }
        // SAFETY: a list once published stays until the source is dropped.
        unsafe { &*waiters }
    }

    /// Leaves a source that is in the intake to the scout. False if it has to be rung for, because the
    /// scout does not take the descriptor, or because more is wanted of it by now than that it be read.
    pub(crate) fn scout(&self, descriptor: BorrowedFd<'_>) -> bool {
        let scout = &self.shared.bell.scout;
        if !scout.add(descriptor) {
            return false;
        }
        // In the scout first, `SCOUTED` second: whoever clears the bit takes it out.
        let scouted = Intent::UNHEARD.or(Intent::SCOUTED);
        let marked = self.intent.compare_exchange(
            Intent::UNHEARD.0,
            scouted.0,
            Ordering::Release,
            Ordering::Relaxed,
        );
        let Err(actual) = marked else { return true };
        // Nobody knows of it but we.
        scout.remove(descriptor);
        // If it is not queued any more, the driver has looked at it.
        !Intent(actual).contains(Intent::QUEUED)
    }

    /// True once [`deregister`](Published::deregister) was called.
    pub(crate) fn is_closing(&self) -> bool {
        self.intent().contains(Intent::CLOSING)
    }

    // ---- the driver's side ---------------------------------------------------------------------

    pub(crate) fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    pub(crate) fn set_slot(&self, slot: u32) {
        self.slot.store(slot, Ordering::Relaxed);
    }

    /// What is wanted, as of now. A later change queues the source again.
    pub(crate) fn take_intent(&self) -> Intent {
        // Acquire: pairs with `request` and `scout`. Release: what the drain did to `next` comes
        // before what the next push does.
        let cleared = Intent::QUEUED.or(Intent::SCOUTED);
        Intent(self.intent.fetch_and(!cleared.0, Ordering::AcqRel))
    }

    /// What is wanted, for a source that is not in the intake.
    pub(crate) fn intent(&self) -> Intent {
        Intent(self.intent.load(Ordering::Acquire))
    }

    /// Asks the processor for a source, which is about to be used. The pointer may dangle.
    #[inline]
    pub(crate) fn fetch(source: *const Source) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            use std::mem::offset_of;

            for field in [offset_of!(Source, word), offset_of!(Source, cells)] {
                // SAFETY: a prefetch reads nothing, and no address makes it fault.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(source.wrapping_byte_add(field).cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = source;
    }

    /// All of these are there already.
    pub(crate) fn has_edges(&self, ready: Ready) -> bool {
        self.load().has_edges(ready)
    }

    /// Edges came in: sets their bits and calls who waits for them. False if the registration has
    /// ended and nobody hears of them.
    // Inlined, as all on the way to the waker: what an edge costs is instructions more than atomics.
    #[inline(always)]
    pub(crate) fn dispatch(&self, ready: Ready) -> bool {
        let directions = Word::concerned(ready);
        let claimed = self.step(|word| {
            if word.end().is_some() {
                return None;
            }
            let claimed = word
                .with_edges(ready)
                .claimed(word.idle_waiters(directions), word.lists(directions));
            Some((claimed, ()))
        });
        match claimed {
            Ok((before, ())) => {
                self.call_waiters(before, directions);
                true
            }
            Err(_) => false,
        }
    }

    /// The registration ends: every waiter is called, and every call from now on is answered with
    /// the end.
    pub(crate) fn end(&self, end: End) {
        self.finish(|word| word.with_end(end));
    }

    /// The kernel holds the file no more.
    pub(crate) fn release(&self) {
        self.finish(Word::with_released);
    }

    /// No driver will look at this source again.
    pub(crate) fn orphan(&self) {
        // Release: whoever closes the descriptor because of this knows that the kernel has let go.
        self.intent.fetch_or(Intent::ORPHANED.0, Ordering::Release);
        drop(self.take_fd());
        self.finish(|word| word.with_end(End::Gone).with_released());
    }

    /// As [`orphan`](Source::orphan), by whoever finds that the intake is closed. If the driver has taken the
    /// descriptor, it is about to close it, and says that the file is released after that.
    pub(crate) fn abandon(&self) {
        // Relaxed: who hands a descriptor over has the registration to itself, and so comes after this.
        let before = Intent(self.intent.fetch_or(Intent::ORPHANED.0, Ordering::Relaxed));
        let fd = self.take_fd();
        let taken = before.contains(Intent::CLOSE_FD) && fd.is_none();
        drop(fd);
        self.finish(|word| {
            let gone = word.with_end(End::Gone);
            if taken { gone } else { gone.with_released() }
        });
    }

    /// The descriptor that [`deregister`](Published::deregister) was given, for the first who asks.
    pub(crate) fn take_fd(&self) -> Option<OwnedFd> {
        // What came before `CLOSE_FD`, and before `ORPHANED`, is acquired here.
        if !self.intent().contains(Intent::CLOSE_FD) {
            return None;
        }
        let before = Intent(self.intent.fetch_or(Intent::TAKEN.0, Ordering::Relaxed));
        // SAFETY: `deregister` gave up the `OwnedFd` with this number when it set `CLOSE_FD`, and
        // whoever sets `TAKEN` first is the only one to come here.
        (!before.contains(Intent::TAKEN)).then(|| unsafe { process::adopt(self.fd) })
    }

    /// A change that everybody must hear of.
    fn finish(&self, change: impl Fn(Word) -> Word) {
        let directions = 0b11;
        let (before, ()) = self.advance(|word| {
            let claimed =
                change(word).claimed(word.idle_waiters(directions), word.lists(directions));
            (claimed, ())
        });
        self.call_waiters(before, directions);
    }

    /// Calls everybody who waited for these directions before they were claimed. Whoever is at a cell
    /// finds the change when it gives the cell back.
    #[inline(always)]
    fn call_waiters(&self, before: Word, directions: u64) {
        let cells = before.idle_waiters(directions);
        for direction in Direction::BOTH {
            if direction.is_in(cells) {
                self.call(direction);
            }
        }
        let lists = before.lists(directions);
        if lists != 0 {
            self.call_lists(lists);
        }
    }

    #[cold]
    fn call_lists(&self, directions: u64) {
        self.waiters().wake(|direction| direction.is_in(directions));
    }
}

/// What a registration's poll makes of the word.
fn consume(word: Word, direction: Direction) -> Option<(Word, Result<Ready, End>)> {
    let outcome = match word.end() {
        _ if !word.has(News::of(direction)) => return None,
        Some(end) => (word, Err(end)),
        None => (word.consumed(direction), Ok(word.edges(direction))),
    };
    Some(outcome)
}

/// What a guard's poll makes of the word.
fn observe(word: Word, interest: Interest) -> Option<Result<Event, End>> {
    let outcome = match word.end() {
        _ if !word.has(News::for_interest(interest)) => return None,
        Some(end) => Err(end),
        None => Ok(Event {
            ready: word.answers(interest),
            tick: word.tick(),
        }),
    };
    Some(outcome)
}

/// Made only once the step is done: an `io::Error` allocates.
fn error(end: End) -> io::Error {
    match end {
        End::Deregistered => Error::Deregistered.into(),
        End::Gone => Error::ReactorGone.into(),
        End::Failed(errno) => io::Error::from_raw_os_error(errno),
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.free_waiters();
    }
}

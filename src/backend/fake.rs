//! A kernel for the model checker: polls in a vector, and a condition variable to sleep on.
//!
//! It is as capricious as the real one may be, and worse. What a model does to a [`World`] happens
//! on the model's own threads, so a completion comes whenever loom likes it to: events, ends that
//! nobody asked for, last completions that are kept back, cancels that come too late, completions
//! that come twice or after the end.
//!
//! It checks what it is asked for: no poll is armed twice under one token, and a descriptor that was
//! given away is closed once ([`process::adopt`]).
//!
//! Its lock orders more than the real kernel promises. What must not depend on that goes through
//! [`Memory`], which it does not order.

use crate::backend::{Completion, Kernel, Place, Standing, Tag, Tier, Token, events};
use crate::shared::Shared;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering};
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// What the kernel knows.
#[derive(Debug)]
pub(crate) struct World {
    state: Mutex<State>,
    changed: Condvar,
    memory: std::sync::Arc<Memory>,
    /// Set and read by the reactor's thread alone, and so none of loom's business.
    standing: std::sync::Mutex<Standing>,
    /// As above.
    rumour: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    polls: Vec<Poll>,
    completions: VecDeque<Completion>,
    /// Everything that was ever completed.
    history: Vec<Completion>,
    rung: bool,
    rings: usize,
    /// The descriptor for other loops: it shows the bell; it shows the polls; it is readable.
    exposed: bool,
    nested: bool,
    raised: bool,
    /// What is ready, by descriptor.
    ready: Vec<(RawFd, u16)>,
    /// The descriptors in the scout, and whether it takes any.
    scouted: Vec<RawFd>,
    refuses_scouts: bool,
    closed: Vec<RawFd>,
    /// Cancelled polls keep their last completion back, here.
    keeps_ends: bool,
    ending: Vec<Poll>,
    /// Descriptors are closed when that is asked for, and are here until then.
    keeps_closes: bool,
    closing: Vec<(Token, OwnedFd)>,
    /// That many cancels come too late for a wake-up that is under way.
    too_late: usize,
    unpollable: bool,
}

#[derive(Clone, Copy, Debug)]
struct Poll {
    token: Token,
    fd: RawFd,
    events: u16,
}

impl World {
    fn new() -> World {
        World {
            state: Mutex::default(),
            changed: Condvar::new(),
            memory: Memory::replace(),
            standing: Standing::New.into(),
            rumour: false.into(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Something happens in the kernel, and whoever sleeps gets to see it.
    fn happen<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Something happens to a descriptor, and stays: every poll that asked for it reports.
    pub(crate) fn trigger(&self, fd: RawFd, bits: u16) {
        self.happen(|state| {
            state.ready.push((fd, bits));
            for index in 0..state.polls.len() {
                let poll = state.polls[index];
                if poll.fd == fd {
                    state.report(poll, bits, true);
                }
            }
            state.stir(fd, bits);
        });
    }

    /// The cause of whatever was ready is gone: a poll that is armed from now on finds nothing.
    pub(crate) fn calm(&self, fd: RawFd) {
        self.happen(|state| state.ready.retain(|(ready, _)| *ready != fd));
    }

    /// The polls of a descriptor end by themselves. With `ECANCELED` as in an overflow, with another
    /// error as the kernel's verdict, with poll bits as in an overflow while an event comes.
    pub(crate) fn end(&self, fd: RawFd, result: i32) {
        self.happen(|state| {
            for poll in extract(&mut state.polls, |poll| poll.fd == fd) {
                state.complete(Completion {
                    token: poll.token,
                    result,
                    more: false,
                });
            }
        });
    }

    /// From now on the last completion of a cancelled poll comes when
    /// [`let_end`](World::let_end) says so.
    pub(crate) fn keep_ends(&self) {
        self.lock().keeps_ends = true;
    }

    /// The last completions that were kept back.
    pub(crate) fn let_end(&self, fd: RawFd) {
        self.happen(|state| {
            for poll in extract(&mut state.ending, |poll| poll.fd == fd) {
                state.complete(Completion::end(poll.token, libc::ECANCELED));
            }
        });
    }

    /// From now on a descriptor is closed when [`let_close`](World::let_close) says so.
    pub(crate) fn keep_closes(&self) {
        self.lock().keeps_closes = true;
    }

    /// Closes the descriptors that were kept back.
    pub(crate) fn let_close(&self) {
        self.happen(|state| {
            for (token, fd) in mem::take(&mut state.closing) {
                state.close(token, fd);
            }
        });
    }

    /// So many cancels come while the poll's wake-up is under way.
    pub(crate) fn come_too_late(&self, cancels: usize) {
        self.lock().too_late = cancels;
    }

    /// Everything that was ever said is said again.
    pub(crate) fn repeat_all(&self) {
        self.happen(|state| {
            for completion in state.history.clone() {
                state.completions.push_back(completion);
            }
        });
    }

    /// No file has a wait queue.
    pub(crate) fn make_unpollable(&self) {
        self.lock().unpollable = true;
    }

    /// The next turn finds the instance to be like that: all polls are gone without a word. To be
    /// called by whoever takes that turn.
    pub(crate) fn lose(&self, standing: Standing) {
        *self.standing.lock().unwrap() = standing;
    }

    /// The next turn is told of news, whether there are any or not.
    pub(crate) fn spread_rumour(&self) {
        self.rumour.store(true, Ordering::Relaxed);
    }

    /// Waits until the reactor's descriptor is readable, as the loop does in which it is nested.
    pub(crate) fn wait_until_raised(&self) {
        let mut state = self.lock();
        while !state.raised {
            state = self.changed.wait(state).unwrap();
        }
    }

    /// What the polls that watch that descriptor asked for.
    pub(crate) fn armed(&self, fd: RawFd) -> Vec<u16> {
        let state = self.lock();
        let polls = state.polls.iter().filter(|poll| poll.fd == fd);
        polls.map(|poll| poll.events).collect()
    }

    /// How many polls there are, also those that wait for their end.
    pub(crate) fn held(&self) -> usize {
        let state = self.lock();
        state.polls.len() + state.ending.len()
    }

    /// The descriptors that the kernel was asked to close.
    pub(crate) fn closed(&self) -> Vec<RawFd> {
        self.lock().closed.clone()
    }

    /// From now on the scout takes no descriptor.
    pub(crate) fn refuse_scouts(&self) {
        self.lock().refuses_scouts = true;
    }

    /// The descriptors in the scout.
    pub(crate) fn scouted(&self) -> Vec<RawFd> {
        self.lock().scouted.clone()
    }

    /// How often the bell was rung.
    pub(crate) fn rings(&self) -> usize {
        self.lock().rings
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }
}

fn extract<T>(from: &mut Vec<T>, which: impl FnMut(&T) -> bool) -> Vec<T> {
    let (taken, rest) = mem::take(from).into_iter().partition(which);
    *from = rest;
    taken
}

impl State {
    fn complete(&mut self, completion: Completion) {
        self.completions.push_back(completion);
        self.history.push(completion);
        self.raised |= self.nested;
    }

    /// News of a descriptor: if it is in the scout, they end a sleep as the bell does.
    fn stir(&mut self, fd: RawFd, bits: u16) {
        let reported = events::IN | events::RDHUP | events::ERR | events::HUP;
        self.rung |= bits & reported != 0 && self.scouted.contains(&fd);
    }

    fn close(&mut self, token: Token, fd: OwnedFd) {
        self.closed.push(fd.as_raw_fd());
        drop(fd);
        self.complete(Completion::end(token, 0));
    }

    fn report(&mut self, poll: Poll, bits: u16, more: bool) {
        let bits = bits & (poll.events | events::ERR | events::HUP);
        if bits != 0 {
            self.complete(Completion {
                token: poll.token,
                result: i32::from(bits),
                more,
            });
        }
    }
}

/// What threads tell each other behind the kernel's back. Nothing here is ordered: who must see it
/// has to be told so by the code under test.
#[derive(Debug)]
pub(crate) struct Memory {
    written: AtomicBool,
    let_go: AtomicBool,
    /// Descriptors that the scout was given.
    scouted: AtomicUsize,
    adoptions: AtomicUsize,
    adopted: std::sync::Mutex<Vec<Adoption>>,
    /// Where a model asks for it.
    armings: std::sync::Mutex<Option<Vec<Arming>>>,
}

/// A poll was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arming {
    pub(crate) events: u16,
    /// Whoever asked for it has seen what was [written](Memory::write) before.
    pub(crate) saw_written: bool,
}

/// A descriptor that had been given away was taken to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Adoption {
    pub(crate) fd: RawFd,
    /// Whoever closes it has seen what was [written](Memory::write) before.
    pub(crate) saw_written: bool,
    /// Whoever closes it has seen that the kernel let go of the files.
    pub(crate) saw_let_go: bool,
}

thread_local! {
    /// Of the execution under way: one thread of the system runs all of a model's threads.
    static MEMORY: std::cell::RefCell<Option<std::sync::Arc<Memory>>> =
        const { std::cell::RefCell::new(None) };
}

impl Memory {
    /// Makes the memory of a new world, which is the one that `adopt` knows.
    fn replace() -> std::sync::Arc<Memory> {
        let memory = std::sync::Arc::new(Memory {
            written: AtomicBool::new(false),
            let_go: AtomicBool::new(false),
            scouted: AtomicUsize::new(0),
            adoptions: AtomicUsize::new(0),
            adopted: std::sync::Mutex::default(),
            armings: std::sync::Mutex::default(),
        });
        MEMORY.set(Some(std::sync::Arc::clone(&memory)));
        memory
    }

    /// Something that happens before what the caller does next.
    pub(crate) fn write(&self) {
        self.written.store(true, Ordering::Relaxed);
    }

    /// True for those who were told that it was written.
    pub(crate) fn is_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }

    /// True for those who were told that the kernel let go of all files.
    pub(crate) fn has_let_go(&self) -> bool {
        self.let_go.load(Ordering::Relaxed)
    }

    /// From now on takes note of the polls that are asked for, and returns those up to now.
    pub(crate) fn armings(&self) -> Vec<Arming> {
        let mut armings = self.armings.lock().unwrap();
        armings.get_or_insert_default().clone()
    }

    fn note_arming(&self, events: u16) {
        if self.armings.lock().unwrap().is_none() {
            return;
        }
        // Not under the lock: loom may go on with another thread here.
        let saw_written = self.is_written();
        if let Some(armings) = &mut *self.armings.lock().unwrap() {
            armings.push(Arming {
                events,
                saw_written,
            });
        }
    }

    /// True for those who were told that a descriptor was taken to be closed.
    pub(crate) fn has_adopted(&self) -> bool {
        self.adoptions.load(Ordering::Relaxed) != 0
    }

    /// In order.
    pub(crate) fn adopted(&self) -> Vec<Adoption> {
        self.adopted.lock().unwrap().clone()
    }
}

/// The bell of a reactor on a fake kernel.
#[derive(Debug)]
pub(crate) struct Bell {
    pub(crate) world: Arc<World>,
    pub(crate) scout: Scout,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        let world = Arc::new(World::new());
        let scout = Scout {
            world: Arc::clone(&world),
        };
        Ok(Bell { world, scout })
    }

    pub(crate) fn ring(&self) {
        self.world.happen(|state| {
            state.rung = true;
            state.rings += 1;
            state.raised |= state.exposed;
        });
    }

    pub(crate) fn settle_down(&self) {}

    pub(crate) fn is_orphaned(&self) -> bool {
        false
    }
}

/// The scout of a reactor on a fake kernel.
#[derive(Debug)]
pub(crate) struct Scout {
    world: Arc<World>,
}

impl Scout {
    pub(crate) fn add(&self, descriptor: BorrowedFd<'_>) -> bool {
        let fd = descriptor.as_raw_fd();
        let added = self.world.happen(|state| {
            if state.refuses_scouts || state.scouted.contains(&fd) {
                return false;
            }
            state.scouted.push(fd);
            let ready = state.ready.iter().filter(|(ready, _)| *ready == fd);
            let bits = ready.fold(0, |bits, (_, more)| bits | more);
            state.stir(fd, bits);
            true
        });
        if added {
            self.world.memory.scouted.fetch_add(1, Ordering::Relaxed);
        }
        added
    }

    pub(crate) fn remove(&self, descriptor: BorrowedFd<'_>) -> bool {
        let fd = descriptor.as_raw_fd();
        let memory = &self.world.memory;
        let known = memory.scouted.load(Ordering::Relaxed) != 0;
        assert!(known, "out of the scout before it went in: {fd}");
        let closed = memory.adopted().iter().any(|other| other.fd == fd);
        assert!(!closed, "closed, then out of the scout: {fd}");
        let mut state = self.world.lock();
        let before = state.scouted.len();
        state.scouted.retain(|other| *other != fd);
        state.scouted.len() < before
    }
}

#[derive(Debug)]
enum Request {
    Arm(Poll),
    Cancel(Token),
    Close(Token, OwnedFd),
}

pub(crate) struct Fake {
    world: Arc<World>,
    requests: Vec<Request>,
}

impl Fake {
    fn apply(&mut self, state: &mut State) {
        for request in self.requests.drain(..) {
            match request {
                Request::Arm(poll) => {
                    let known = state.polls.iter().chain(&state.ending);
                    let again = known.into_iter().any(|other| other.token == poll.token);
                    assert!(!again, "armed twice: {poll:?}");
                    state.polls.push(poll);
                    let ready = state.ready.iter().filter(|(fd, _)| *fd == poll.fd);
                    let bits = ready.fold(0, |bits, (_, more)| bits | more);
                    state.report(poll, bits, true);
                }
                Request::Cancel(token) => {
                    let cancel = token.tagged(Tag::Cancel);
                    let known = state.polls.iter().any(|poll| poll.token == token);
                    if !known {
                        state.complete(Completion::end(cancel, libc::ENOENT));
                    } else if state.too_late > 0 {
                        state.too_late -= 1;
                        state.complete(Completion::end(cancel, libc::EALREADY));
                    } else {
                        let mut ended = extract(&mut state.polls, |poll| poll.token == token);
                        if state.keeps_ends {
                            state.ending.append(&mut ended);
                        } else {
                            state.complete(Completion::end(token, libc::ECANCELED));
                        }
                    }
                }
                Request::Close(token, fd) if state.keeps_closes => {
                    state.closing.push((token, fd));
                }
                Request::Close(token, fd) => state.close(token, fd),
            }
        }
    }
}

impl Kernel for Fake {
    fn separate_urgent(&self) -> bool {
        true
    }

    fn arm(&mut self, token: Token, fd: RawFd, events: u16, _: Tier) -> Place {
        self.world.memory.note_arming(events);
        self.requests.push(Request::Arm(Poll { token, fd, events }));
        Place::default()
    }

    fn cancel(&mut self, token: Token, _: RawFd, _: Place) {
        self.requests.push(Request::Cancel(token));
    }

    fn insist(&mut self, token: Token, _: Place) {
        self.requests.push(Request::Cancel(token));
    }

    fn close(&mut self, token: Token, fd: OwnedFd, _: Place) {
        self.requests.push(Request::Close(token, fd));
    }

    fn wait(&mut self, timeout: Option<Duration>, batch: &mut Vec<Completion>) -> io::Result<()> {
        let world = Arc::clone(&self.world);
        let mut state = world.lock();
        self.apply(&mut state);
        while timeout != Some(Duration::ZERO) && state.completions.is_empty() && !state.rung {
            state = world.changed.wait(state).unwrap();
        }
        state.rung = false;
        state.raised = false;
        batch.extend(state.completions.drain(..));
        Ok(())
    }

    fn has_news(&self) -> bool {
        self.world.rumour.swap(false, Ordering::Relaxed)
    }

    fn own(&mut self, _: Completion, _: &mut Vec<Completion>) {}

    fn is_pollable(&mut self, _: BorrowedFd<'_>) -> bool {
        !self.world.lock().unpollable
    }

    fn standing(&self) -> Standing {
        *self.world.standing.lock().unwrap()
    }

    fn start(&mut self) -> io::Result<()> {
        *self.world.standing.lock().unwrap() = Standing::Ready;
        Ok(())
    }

    fn salvage(&mut self, batch: &mut Vec<Completion>) {
        batch.extend(self.world.lock().completions.drain(..));
    }

    fn rebuild(&mut self) -> io::Result<()> {
        let mut state = self.world.lock();
        state.polls.clear();
        state.ending.clear();
        state.completions.clear();
        drop(state);
        self.start()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: nobody waits for it; a model has `World::wait_until_raised` for that.
        unsafe { BorrowedFd::borrow_raw(0) }
    }

    fn expose(&self, polls: &[(RawFd, u16)]) -> io::Result<bool> {
        self.world.lock().exposed = true;
        Ok(polls.is_empty())
    }

    fn nest(&mut self) -> io::Result<Tier> {
        self.expose(&[])?;
        self.world.lock().nested = true;
        Ok(Tier::Near)
    }

    fn settle(&mut self) -> io::Result<bool> {
        let world = Arc::clone(&self.world);
        let mut state = world.lock();
        self.apply(&mut state);
        // What the descriptor shows is there to be taken.
        Ok(true)
    }

    fn shut_down(mut self: Box<Self>, _: bool) {
        let mut state = self.world.lock();
        state.polls.clear();
        state.ending.clear();
        state.completions.clear();
        // What was not handed over any more. A descriptor in it is closed here.
        for request in self.requests.drain(..) {
            if let Request::Close(_, fd) = request {
                state.closed.push(fd.as_raw_fd());
            }
        }
        drop(state);
        self.world.memory.let_go.store(true, Ordering::Relaxed);
    }
}

/// Stands in for the choice of a backend.
pub(crate) mod choice {
    use super::{Arc, Fake, Kernel, Shared, io};
    use crate::reactor::Backend;

    pub(crate) fn choose(chosen: Backend) -> io::Result<Backend> {
        Ok(chosen)
    }

    pub(crate) fn build(
        backend: Backend,
        shared: &Arc<Shared>,
    ) -> io::Result<(Backend, Box<dyn Kernel>)> {
        let fake = Fake {
            world: Arc::clone(&shared.bell.world),
            requests: Vec::new(),
        };
        Ok((backend, Box::new(fake)))
    }
}

/// There is one process.
pub(crate) mod process {
    use super::{Adoption, MEMORY, Ordering};
    use std::os::fd::{FromRawFd, OwnedFd, RawFd};

    pub(crate) fn generation() -> u32 {
        0
    }

    /// Takes note, and fails if the descriptor was taken before.
    pub(crate) unsafe fn adopt(fd: RawFd) -> OwnedFd {
        let memory = MEMORY.with_borrow(|memory| memory.clone().expect("a world was made"));
        let adoption = Adoption {
            fd,
            saw_written: memory.is_written(),
            saw_let_go: memory.has_let_go(),
        };
        let mut adopted = memory.adopted.lock().unwrap();
        let again = adopted.iter().any(|other| other.fd == fd);
        assert!(!again, "closed twice: {fd}");
        adopted.push(adoption);
        drop(adopted);
        memory.adoptions.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, which was just checked.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }
}

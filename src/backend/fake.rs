//! A kernel for the model checker: polls in a vector, and a condition variable to sleep on.
//!
//! It is as capricious as the real one may be. What a model does to a [`World`] happens on the
//! model's own threads, so a completion comes whenever loom likes it to.

use crate::backend::{Completion, Kernel, Standing, Tier, Token, events};
use crate::shared::Shared;
use crate::sync::{Arc, Mutex, MutexGuard};
use loom::sync::Condvar;
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
}

#[derive(Debug, Default)]
struct State {
    polls: Vec<Poll>,
    completions: VecDeque<Completion>,
    rung: bool,
    /// What is ready, by descriptor.
    ready: Vec<(RawFd, u16)>,
    closed: Vec<RawFd>,
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
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Something happens to a descriptor, and stays: every poll that asked for it reports.
    pub(crate) fn trigger(&self, fd: RawFd, bits: u16) {
        let mut state = self.lock();
        state.ready.push((fd, bits));
        for index in 0..state.polls.len() {
            let poll = state.polls[index];
            if poll.fd == fd {
                state.report(poll, bits, true);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The polls of a descriptor end by themselves, as in an overflow.
    pub(crate) fn end(&self, fd: RawFd) {
        let mut state = self.lock();
        let (ended, rest) = mem::take(&mut state.polls)
            .into_iter()
            .partition::<Vec<_>, _>(|poll| poll.fd == fd);
        state.polls = rest;
        for poll in ended {
            let completion = Completion::end(poll.token, libc::ECANCELED);
            state.completions.push_back(completion);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// How many polls watch that descriptor.
    pub(crate) fn armed(&self, fd: RawFd) -> usize {
        self.lock()
            .polls
            .iter()
            .filter(|poll| poll.fd == fd)
            .count()
    }

    /// The descriptors that were closed, in order.
    pub(crate) fn closed(&self) -> Vec<RawFd> {
        self.lock().closed.clone()
    }
}

impl State {
    fn report(&mut self, poll: Poll, bits: u16, more: bool) {
        let bits = bits & (poll.events | events::ERR | events::HUP);
        if bits != 0 {
            self.completions.push_back(Completion {
                token: poll.token,
                result: i32::from(bits),
                more,
            });
        }
    }
}

/// The bell of a reactor on a fake kernel.
#[derive(Debug)]
pub(crate) struct Bell {
    pub(crate) world: Arc<World>,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        let world = Arc::new(World::new());
        Ok(Bell { world })
    }

    pub(crate) fn ring(&self) {
        self.world.lock().rung = true;
        self.world.changed.notify_all();
    }

    pub(crate) fn settle_down(&self) {}

    pub(crate) fn is_orphaned(&self) -> bool {
        false
    }
}

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
                    let again = state.polls.iter().any(|other| other.token == poll.token);
                    assert!(!again, "armed twice: {poll:?}");
                    state.polls.push(poll);
                    let ready = state.ready.clone();
                    for (_, bits) in ready.into_iter().filter(|(fd, _)| *fd == poll.fd) {
                        state.report(poll, bits, true);
                    }
                }
                Request::Cancel(token) => {
                    let before = state.polls.len();
                    state.polls.retain(|poll| poll.token != token);
                    if state.polls.len() < before {
                        let completion = Completion::end(token, libc::ECANCELED);
                        state.completions.push_back(completion);
                    }
                }
                Request::Close(token, fd) => {
                    state.closed.push(fd.as_raw_fd());
                    // It never was a descriptor.
                    mem::forget(fd);
                    state.completions.push_back(Completion::end(token, 0));
                }
            }
        }
    }
}

impl Kernel for Fake {
    fn separate_urgent(&self) -> bool {
        true
    }

    fn arm(&mut self, token: Token, fd: RawFd, events: u16, _: Tier) {
        self.requests.push(Request::Arm(Poll { token, fd, events }));
    }

    fn cancel(&mut self, token: Token, _: RawFd, then_close: Option<(Token, OwnedFd)>) {
        self.requests.push(Request::Cancel(token));
        if let Some((token, fd)) = then_close {
            self.requests.push(Request::Close(token, fd));
        }
    }

    fn close(&mut self, token: Token, fd: OwnedFd) {
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
        batch.extend(state.completions.drain(..));
        Ok(())
    }

    fn own(&mut self, _: Completion, _: &mut Vec<Completion>) {}

    fn is_pollable(&mut self, _: BorrowedFd<'_>) -> bool {
        true
    }

    fn standing(&self) -> Standing {
        Standing::Ready
    }

    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn salvage(&mut self, _: &mut Vec<Completion>) {}

    fn rebuild(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        unimplemented!("a fake kernel has no descriptor to wait for")
    }

    fn nest(&mut self) -> io::Result<Tier> {
        Ok(Tier::Near)
    }

    fn settle(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn shut_down(self: Box<Self>, _: bool) {
        let mut state = self.world.lock();
        state.polls.clear();
        state.completions.clear();
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
    pub(crate) fn generation() -> u32 {
        0
    }
}

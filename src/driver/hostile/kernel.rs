//! The kernel that lies, and what it has to remember to tell what the driver may make of it.

use super::program::Bytes;
use crate::backend::{Completion, Kernel, Place, Standing, Tag, Tier, Token, events};
use crate::ready::Ready;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Completions that may be repeated.
const MEMORY: usize = 48;

/// What poll bits come to in the read stream and in the write stream.
fn streams(bits: u16) -> [Ready; 2] {
    let ready = Ready::from_poll(bits);
    let closed = if ready.is_hup() {
        [
            Ready::READ_CLOSED | Ready::WRITE_CLOSED,
            Ready::WRITE_CLOSED,
        ]
    } else {
        [Ready::EMPTY; 2]
    };
    let writes = ready & (Ready::WRITABLE | Ready::ERROR | Ready::HUP);
    [(ready - Ready::WRITABLE) | closed[0], writes | closed[1]]
}

pub(super) enum Request {
    Arm(Token),
    Cancel(Token),
    Close(Token, OwnedFd),
}

/// A poll that has not had its last completion.
pub(super) struct Living {
    pub(super) token: Token,
    pub(super) owner: usize,
    events: u16,
    pub(super) cancelled: bool,
    place: Place,
}

/// What the kernel has told a registration.
#[derive(Clone, Copy, Default)]
pub(super) struct Told {
    /// What each stream has to report.
    pub(super) must: [Ready; 2],
    /// What each stream may report.
    pub(super) may: [Ready; 2],
    /// It may be told that its file cannot be watched.
    pub(super) refused: bool,
    /// Its file may be polled no more: it has deregistered.
    pub(super) ended: bool,
    /// Its file was watched when everything was started over.
    pub(super) left_behind: bool,
    /// Its descriptor is going to be handed over, and is not yet.
    pub(super) to_close: bool,
}

pub(super) struct World {
    pub(super) bytes: Bytes,
    pub(super) honest: bool,
    separate_urgent: bool,
    pub(super) standing: Standing,
    pub(super) haunted: bool,
    pub(super) requests: VecDeque<Request>,
    pub(super) polls: Vec<Living>,
    /// Closes that were taken and have not completed.
    pub(super) closes: Vec<(Token, usize, OwnedFd)>,
    pub(super) owners: HashMap<RawFd, usize>,
    pub(super) told: Vec<Told>,
    used: HashSet<u64>,
    memory: VecDeque<Completion>,
    pub(super) delivered: u64,
}

impl World {
    /// Takes some of the requests, or all of them.
    fn take_requests(&mut self) {
        let mut left = self.requests.len();
        if !self.honest && self.bytes.one_in(3) {
            left = self.bytes.below(left + 1);
        }
        for request in self.requests.drain(..left).collect::<Vec<_>>() {
            match request {
                Request::Arm(token) | Request::Cancel(token) => {
                    assert!(token.tag().is_some(), "a request without a tag");
                }
                Request::Close(token, fd) => {
                    let owner = self.owners[&fd.as_raw_fd()];
                    self.closes.push((token, owner, fd));
                }
            }
        }
    }

    /// Says something to the driver, and notes who has to hear it.
    fn deliver(&mut self, completion: Completion, batch: &mut Vec<Completion>) {
        let Completion {
            token,
            result,
            more,
        } = completion;
        self.delivered += 1;
        batch.push(completion);
        if self.memory.len() == MEMORY {
            self.memory.pop_front();
        }
        self.memory.push_back(completion);
        self.closes.retain(|(close, _, _)| *close != token);
        self.requests
            .retain(|request| !matches!(request, Request::Close(close, _) if *close == token));
        let Some(index) = self.polls.iter().position(|poll| poll.token == token) else {
            return;
        };
        let Living {
            owner,
            events: asked,
            cancelled,
            ..
        } = self.polls[index];
        if !more {
            self.polls.swap_remove(index);
        }
        let watched_too = self
            .polls
            .iter()
            .any(|poll| poll.owner == owner && poll.token.tag() == Some(Tag::Main));
        let told = &mut self.told[owner];
        if result >= 0 {
            let mut bits = result as u16;
            if asked & events::RDHUP == 0 {
                // Reading was not asked for.
                bits &= !(events::IN | events::RDHUP);
            }
            let certain = if token.tag() == Some(Tag::Urgent) && watched_too {
                bits & events::PRI
            } else {
                bits
            };
            for direction in [0, 1] {
                told.may[direction] |= streams(bits)[direction];
                told.must[direction] |= streams(certain)[direction];
            }
        } else if !more && !cancelled && result != -libc::ECANCELED {
            told.refused = true;
        }
    }

    /// A lie, or the truth.
    fn invent(&mut self) -> Option<Completion> {
        let bytes = &mut self.bytes;
        let kind = bytes.byte() % 16;
        let alive = if self.polls.is_empty() {
            None
        } else {
            Some(self.polls[bytes.below(self.polls.len())].token)
        };
        let with = |token, result, more| {
            Some(Completion {
                token,
                result,
                more,
            })
        };
        match kind {
            0..=4 => with(alive?, bytes.result(), true),
            5 | 6 => with(alive?, bytes.result(), false),
            7 => with(alive?, bytes.failure(), bytes.one_in(2)),
            8 | 9 if !self.memory.is_empty() => Some(self.memory[bytes.below(self.memory.len())]),
            10 => {
                let past = self.memory.get(bytes.below(MEMORY))?.token;
                with(past, bytes.result(), bytes.one_in(2))
            }
            11 => {
                let token = alive?;
                let (mut slot, mut generation) = (token.slot(), token.generation());
                match bytes.byte() % 4 {
                    0 => slot = slot.wrapping_add(1),
                    1 => generation = generation.wrapping_add(1),
                    2 => generation = generation.wrapping_sub(1),
                    _ => slot = u32::MAX,
                }
                let token = Token::new(token.tag()?, slot, generation);
                with(token, bytes.result(), bytes.one_in(2))
            }
            12 => {
                let tags = [
                    Tag::Main,
                    Tag::Urgent,
                    Tag::Cancel,
                    Tag::Close,
                    Tag::Internal,
                ];
                let token = alive?.tagged(tags[bytes.below(tags.len())]);
                with(token, bytes.result(), bytes.one_in(2))
            }
            13 => with(alive?.tagged(Tag::Cancel), bytes.failure(), false),
            14 => {
                let (token, _, _) = self.closes.get(bytes.below(8))?;
                with(*token, bytes.failure(), false)
            }
            _ => with(Token(bytes.word()), bytes.result(), bytes.one_in(2)),
        }
    }

    /// What an honest kernel says: what was cancelled has ended, what was to be closed is.
    fn confess(&mut self, batch: &mut Vec<Completion>) {
        let ended: Vec<_> = self
            .polls
            .iter()
            .filter(|poll| poll.cancelled)
            .map(|poll| Completion::end(poll.token, libc::ECANCELED))
            .collect();
        let closed: Vec<_> = self
            .closes
            .iter()
            .map(|(token, _, _)| Completion::end(*token, 0))
            .collect();
        for completion in ended.into_iter().chain(closed) {
            self.deliver(completion, batch);
        }
    }

    fn say(&mut self, batch: &mut Vec<Completion>) {
        if self.honest {
            return self.confess(batch);
        }
        if self.bytes.one_in(3) {
            self.confess(batch);
        }
        for _ in 0..self.bytes.byte() % 16 {
            if let Some(completion) = self.invent() {
                self.deliver(completion, batch);
            }
        }
    }
}

#[derive(Clone)]
pub(super) struct Liar {
    world: Arc<Mutex<World>>,
    descriptor: Arc<OwnedFd>,
}

impl Liar {
    pub(super) fn new(bytes: Bytes, separate_urgent: bool, descriptor: OwnedFd) -> Liar {
        let world = World {
            bytes,
            honest: false,
            separate_urgent,
            standing: Standing::New,
            haunted: false,
            requests: VecDeque::new(),
            polls: Vec::new(),
            closes: Vec::new(),
            owners: HashMap::new(),
            told: Vec::new(),
            used: HashSet::new(),
            memory: VecDeque::new(),
            delivered: 0,
        };
        Liar {
            world: Arc::new(Mutex::new(world)),
            descriptor: Arc::new(descriptor),
        }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

impl Kernel for Liar {
    fn separate_urgent(&self) -> bool {
        self.world().separate_urgent
    }

    fn arm(&mut self, token: Token, fd: RawFd, events: u16, tier: Tier) -> Place {
        let world = &mut *self.world();
        assert!(matches!(token.tag(), Some(Tag::Main | Tag::Urgent)));
        assert_ne!(events, 0, "a poll for nothing");
        assert!(world.used.insert(token.0), "used twice: {token:?}");
        let owner = world.owners[&fd];
        assert!(!world.told[owner].ended, "armed after its end");
        let twice = |poll: &Living| poll.owner == owner && poll.token.tag() == token.tag();
        assert!(!world.polls.iter().any(twice), "armed twice");
        let place = match tier {
            Tier::Near => Place {
                ring: world.bytes.byte() % 8,
                list: world.bytes.byte(),
            },
            Tier::Far => Place::FAR,
        };
        world.polls.push(Living {
            token,
            owner,
            events,
            cancelled: false,
            place,
        });
        world.requests.push_back(Request::Arm(token));
        place
    }

    fn cancel(&mut self, token: Token, _: RawFd, place: Place) {
        let world = &mut *self.world();
        // It may have ended a moment ago, of which the driver hears next.
        assert!(world.used.contains(&token.0), "never armed: {token:?}");
        for poll in &mut world.polls {
            if poll.token == token {
                assert_eq!(poll.place, place, "looked for in the wrong place");
                poll.cancelled = true;
            }
        }
        world.requests.push_back(Request::Cancel(token));
    }

    fn insist(&mut self, token: Token, place: Place) {
        self.cancel(token, -1, place);
    }

    fn close(&mut self, token: Token, fd: OwnedFd, _: Place) {
        hand_over(&mut self.world(), token, fd);
    }

    fn wait(&mut self, _: Option<Duration>, batch: &mut Vec<Completion>) -> io::Result<()> {
        let world = &mut *self.world();
        world.take_requests();
        world.say(batch);
        if world.honest || world.bytes.one_in(4) {
            world.haunted = false;
        }
        if !world.honest && world.bytes.one_in(9) {
            world.standing = Standing::Lost;
        }
        world.bytes.error()
    }

    fn has_news(&self) -> bool {
        self.world().bytes.one_in(2)
    }

    fn own(&mut self, _: Completion, batch: &mut Vec<Completion>) {
        let world = &mut *self.world();
        if world.bytes.one_in(2)
            && let Some(completion) = world.invent()
        {
            world.deliver(completion, batch);
        }
    }

    fn is_pollable(&mut self, fd: BorrowedFd<'_>) -> bool {
        let world = &mut *self.world();
        let pollable = !world.bytes.one_in(4);
        if !pollable {
            let owner = world.owners[&fd.as_raw_fd()];
            world.told[owner].refused = true;
        }
        pollable
    }

    fn standing(&self) -> Standing {
        self.world().standing
    }

    fn start(&mut self) -> io::Result<()> {
        let world = &mut *self.world();
        world.bytes.error()?;
        world.standing = Standing::Ready;
        Ok(())
    }

    fn salvage(&mut self, batch: &mut Vec<Completion>) {
        self.world().say(batch);
    }

    fn rebuild(&mut self) -> io::Result<()> {
        let world = &mut *self.world();
        world.bytes.error()?;
        world.standing = Standing::Ready;
        world.haunted = world.bytes.one_in(2);
        for poll in world.polls.drain(..) {
            world.told[poll.owner].left_behind = true;
        }
        world.requests.clear();
        world.closes.clear();
        Ok(())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    fn expose(&self, _: &[(RawFd, u16)]) -> io::Result<bool> {
        let world = &mut *self.world();
        world.bytes.error().map(|()| world.bytes.one_in(2))
    }

    fn nest(&mut self) -> io::Result<Tier> {
        self.world().bytes.error().map(|()| Tier::Far)
    }

    fn settle(&mut self) -> io::Result<bool> {
        let world = &mut *self.world();
        world.bytes.error().map(|()| world.bytes.one_in(2))
    }

    fn is_haunted(&self) -> bool {
        self.world().haunted
    }

    fn shut_down(self: Box<Self>, clean: bool) {
        let world = &mut *self.world();
        assert!(!clean || world.polls.is_empty(), "not as clean as it says");
        world.polls.clear();
        world.requests.clear();
        world.closes.clear();
        world.haunted = false;
    }
}

fn hand_over(world: &mut World, token: Token, fd: OwnedFd) {
    assert_eq!(token.tag(), Some(Tag::Close));
    assert!(world.used.insert(token.0), "used twice: {token:?}");
    let owner = world.owners[&fd.as_raw_fd()];
    let asked = std::mem::take(&mut world.told[owner].to_close);
    assert!(asked, "nobody handed that descriptor over, or it is closed");
    world.requests.push_back(Request::Close(token, fd));
}

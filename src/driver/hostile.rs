//! The driver against a kernel that lies: what it answers comes from bytes.
//!
//! [`run`] takes a string of bytes as a program. Some of them say what the user does (register,
//! poll, deregister, turn, move the reactor); the rest say what the kernel makes of it: completions
//! that are unknown, stale, repeated, reordered, late or impossible, every error number from every
//! call, requests that are taken a few at a time, polls that end at any moment. The same entry
//! serves the bounded test below and the fuzzer in `fuzz/`.
//!
//! A lie that nobody could see through counts as the truth: a completion with the very token of a
//! living poll is that poll's. From this the [`World`] knows what each registration must hear, and
//! what it may. After every step the two views are compared:
//!
//! - a registration heard all that it had to, and nothing that was another's;
//! - a waiter was called once for what it had to hear, and not without a reason;
//! - who has deregistered hears nothing;
//! - each living poll has its slot, and each slot that believes in a poll has one;
//! - a token is never used twice, a descriptor is handed over once;
//! - a file is not called released while a poll of its lives.
//!
//! In the end the kernel turns honest, or the driver is shut down, and nothing may be left: no slot,
//! no source, no waker, no descriptor.

use super::slot::State;
use super::*;
use crate::backend::{Bell, Place, Tag, Token, events};
use crate::error::Error;
use crate::handle::Handle;
use crate::ready::{Interest, Ready};
use crate::registration::Registration;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};

/// Registrations that live at the same time.
const MOST: usize = 12;
/// Completions that may be repeated.
const MEMORY: usize = 48;
/// Turns in which an honest kernel has nothing left to say.
const TURNS_TO_REST: usize = 8;

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

/// What stays in a stream once it was reported.
fn sticky(direction: usize) -> Ready {
    let stays = Ready::HUP | Ready::WRITE_CLOSED;
    [stays | Ready::READ_CLOSED, stays][direction]
}

/// Runs a program. Returns how many completions the kernel delivered. Panics if anything is not as
/// it has to be.
pub(crate) fn run(bytes: &[u8]) -> u64 {
    let mut bench = Bench::new(bytes);
    while !bench.world().bytes.is_empty() {
        bench.step();
    }
    if bench.shuts_down {
        bench.shut_down()
    } else {
        bench.come_to_rest()
    }
}

/// What a program has left to say. Zeros when it has nothing.
struct Bytes {
    rest: VecDeque<u8>,
}

impl Bytes {
    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.rest.pop_front().unwrap_or(0)
    }

    /// One in `n`, as long as there are bytes.
    fn one_in(&mut self, n: u8) -> bool {
        !self.is_empty() && self.byte().is_multiple_of(n)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    fn word(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.fill_with(|| self.byte());
        u64::from_ne_bytes(bytes)
    }

    /// A result of a poll: mostly bits, some of which no poll has.
    fn result(&mut self) -> i32 {
        match self.byte() % 8 {
            0 => i32::from(events::IN),
            1 => i32::from(events::OUT),
            2 => i32::from(events::IN | events::RDHUP),
            3 => i32::from(self.byte() & 0x3f),
            4 => i32::from(events::PRI),
            5 => self.word() as i32,
            6 => -libc::ECANCELED,
            _ => self.failure(),
        }
    }

    /// A negated error number.
    fn failure(&mut self) -> i32 {
        match self.byte() {
            0 => -libc::ENOMEM,
            1 => -libc::EINVAL,
            2 => -libc::EALREADY,
            3 => i32::MIN,
            4 => -4095,
            errno => -i32::from(errno % 134),
        }
    }

    /// An error of a call.
    fn error(&mut self) -> io::Result<()> {
        if self.one_in(5) {
            let errno = 1 + i32::from(self.byte() % 133);
            Err(io::Error::from_raw_os_error(errno))
        } else {
            Ok(())
        }
    }
}

enum Request {
    Arm(Token),
    Cancel(Token),
    Close(Token, OwnedFd),
}

/// A poll that has not had its last completion.
struct Living {
    token: Token,
    owner: usize,
    events: u16,
    cancelled: bool,
    place: Place,
}

/// What the kernel has told a registration.
#[derive(Clone, Copy, Default)]
struct Told {
    /// What each stream has to report.
    must: [Ready; 2],
    /// What each stream may report.
    may: [Ready; 2],
    /// It may be told that its file cannot be watched.
    refused: bool,
    /// Its file may be polled no more: it has deregistered.
    ended: bool,
    /// The kernel was asked to watch its file.
    watched: bool,
    /// Its descriptor is going to be handed over, and is not yet.
    to_close: bool,
}

struct World {
    bytes: Bytes,
    honest: bool,
    separate_urgent: bool,
    standing: Standing,
    haunted: bool,
    requests: VecDeque<Request>,
    polls: Vec<Living>,
    /// Closes that were taken and have not completed.
    closes: Vec<(Token, usize, OwnedFd)>,
    owners: HashMap<RawFd, usize>,
    told: Vec<Told>,
    used: HashSet<u64>,
    memory: VecDeque<Completion>,
    delivered: u64,
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
                bits &= !events::IN;
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
struct Liar {
    world: std::sync::Arc<Mutex<World>>,
    descriptor: std::sync::Arc<OwnedFd>,
}

impl Liar {
    fn world(&self) -> MutexGuard<'_, World> {
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
        world.told[owner].watched = true;
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
        world.polls.clear();
        world.requests.clear();
        world.closes.clear();
        Ok(())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    fn expose(&self) -> io::Result<()> {
        self.world().bytes.error()
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

#[derive(Default)]
struct Calls(AtomicUsize);

impl Wake for Calls {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One direction of a registration, as its task sees it.
#[derive(Default)]
struct Task {
    calls: std::sync::Arc<Calls>,
    waits: bool,
}

impl Task {
    fn calls(&self) -> usize {
        self.calls.0.load(Ordering::Relaxed)
    }

    /// It was told to wait.
    fn wait(&mut self) {
        if !self.waits {
            self.waits = true;
            self.calls.0.store(0, Ordering::Relaxed);
        }
    }
}

/// A registration and all that is known of it.
struct User {
    id: usize,
    registration: Option<Registration>,
    io: Option<OwnedFd>,
    source: Arc<Source>,
    tasks: [Task; 2],
    ended: bool,
    /// Its file was let go.
    released: bool,
}

struct Bench {
    driver: Option<Driver>,
    kernel: Liar,
    handle: Handle,
    users: Vec<User>,
    ours: UnixStream,
    theirs: UnixStream,
    shuts_down: bool,
}

impl Bench {
    fn new(bytes: &[u8]) -> Bench {
        let mut bytes = Bytes {
            rest: bytes.iter().copied().collect(),
        };
        let traits = bytes.byte();
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let world = World {
            bytes,
            honest: false,
            separate_urgent: traits & 1 != 0,
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
        let kernel = Liar {
            world: std::sync::Arc::new(Mutex::new(world)),
            descriptor: std::sync::Arc::new(theirs.as_fd().try_clone_to_owned().unwrap()),
        };
        let shared = Arc::new(Shared::new(Bell::new().unwrap()));
        Bench {
            driver: Some(Driver::new(
                Box::new(kernel.clone()),
                Arc::clone(&shared),
                Duration::ZERO,
            )),
            kernel,
            handle: Handle::from_shared(shared),
            users: Vec::new(),
            ours,
            theirs,
            shuts_down: traits & 2 != 0,
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.kernel.world()
    }

    fn driver(&mut self) -> &mut Driver {
        self.driver.as_mut().unwrap()
    }

    fn step(&mut self) {
        let (what, which) = {
            let bytes = &mut self.world().bytes;
            (bytes.byte() % 16, usize::from(bytes.byte()))
        };
        if what <= 2 {
            self.register(which);
            return;
        }
        if what <= 8 || self.users.is_empty() {
            self.turn();
            return;
        }
        let which = which % self.users.len();
        match what {
            9 => self.take(which),
            10 => self.poll(which, 0),
            11 => self.poll(which, 1),
            12 => self.end(which, false),
            13 => self.end(which, true),
            14 => {
                let standing = [Standing::Lost, Standing::Inherited][which % 2];
                self.world().standing = standing;
            }
            _ if which.is_multiple_of(8) => {
                self.driver().descriptor();
            }
            _ => self.handle.wake(),
        }
    }

    fn register(&mut self, seed: usize) {
        if self.users.len() >= MOST {
            let which = seed % self.users.len();
            return self.end(which, seed.is_multiple_of(2));
        }
        let interests = [
            Interest::READABLE,
            Interest::WRITABLE,
            Interest::PRIORITY,
            Interest::READABLE | Interest::WRITABLE,
            Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY,
        ];
        let io = self.ours.as_fd().try_clone_to_owned().unwrap();
        let id = {
            let world = &mut *self.world();
            world.told.push(Told::default());
            let id = world.told.len() - 1;
            world.owners.insert(io.as_raw_fd(), id);
            id
        };
        let registration = Registration::new();
        let interest = interests[seed % interests.len()];
        let first = registration.register_interest(&io, interest, &self.handle);
        assert!(first.unwrap());
        let source = Arc::clone(&registration.source().unwrap());
        self.users.push(User {
            id,
            registration: Some(registration),
            io: Some(io),
            source,
            tasks: Default::default(),
            ended: false,
            released: false,
        });
    }

    fn turn(&mut self) {
        let timeout = self.world().bytes.one_in(2).then_some(Duration::ZERO);
        let turned = self.driver().turn(timeout, || true);
        if turned.is_ok() {
            let living = self.users.iter().filter(|user| !user.ended).count();
            assert_eq!(self.driver().shared.registered(), living);
        }
        self.compare();
    }

    /// The driver's view of the polls and the kernel's.
    fn compare(&mut self) {
        let driver = self.driver.as_ref().unwrap();
        let world = self.kernel.world();
        for poll in &world.polls {
            let slot = driver.slots.get(poll.token.slot() as usize);
            let slot = slot.expect("a living poll has no slot");
            let user = self.users.iter().find(|user| user.id == poll.owner);
            assert!(
                user.is_some_and(|user| Arc::ptr_eq(&user.source, &slot.source)),
                "a living poll's slot is another's"
            );
        }
        let mut believed = 0;
        for (index, slot) in &driver.slots {
            for (tag, watch) in [(Tag::Main, &slot.main), (Tag::Urgent, &slot.urgent)] {
                if watch.state == State::Idle {
                    continue;
                }
                believed += 1;
                let token = Token::new(tag, index as u32, watch.generation);
                let poll = world.polls.iter().find(|poll| poll.token == token);
                let poll = poll.expect("a slot believes in a poll that is gone");
                assert_eq!(poll.cancelled, watch.state == State::Cancelling);
            }
        }
        assert_eq!(believed, world.polls.len());
        for (index, live) in driver.live.iter().enumerate() {
            if live.generation != Live::NONE.generation {
                let slot = &driver.slots[index];
                assert_ne!(slot.main.state, State::Idle, "a poll that is gone is live");
                assert_eq!(slot.main.generation, live.generation);
                assert_eq!(Arc::as_ptr(&slot.source), live.source);
            }
        }
        for user in &mut self.users {
            user.check_calls(&world.told[user.id]);
            if user.ended && !user.released && user.is_released() {
                user.released = true;
                assert!(!world.haunted || !world.told[user.id].watched);
                assert!(!world.polls.iter().any(|poll| poll.owner == user.id));
                assert!(!world.closes.iter().any(|(_, owner, _)| *owner == user.id));
            }
        }
        drop(world);
        // A turn that failed half-way may have left some in the intake.
        if driver.shared.intake.is_empty() {
            self.forget_the_released();
        }
    }

    /// Takes leave of users whose files are let go: nobody else may know them.
    fn forget_the_released(&mut self) {
        self.users.retain_mut(|user| {
            if !user.released {
                return true;
            }
            user.leave();
            false
        });
    }

    fn take(&mut self, which: usize) {
        let kernel = self.kernel.clone();
        let mut world = kernel.world();
        let user = &mut self.users[which];
        let told = &mut world.told[user.id];
        let Some(registration) = &user.registration else {
            return;
        };
        let read = registration.take_read_ready();
        let write = registration.take_write_ready();
        user.judge(0, read, told);
        user.judge(1, write, told);
    }

    fn poll(&mut self, which: usize, direction: usize) {
        let kernel = self.kernel.clone();
        let mut world = kernel.world();
        let user = &mut self.users[which];
        let told = &mut world.told[user.id];
        let Some(registration) = &user.registration else {
            return;
        };
        let waker = Waker::from(std::sync::Arc::clone(&user.tasks[direction].calls));
        let mut cx = Context::from_waker(&waker);
        let outcome = if direction == 0 {
            registration.poll_read_ready(&mut cx)
        } else {
            registration.poll_write_ready(&mut cx)
        };
        match outcome {
            Poll::Ready(outcome) => user.judge(direction, outcome.map(Some), told),
            Poll::Pending => {
                user.judge(direction, Ok(None), told);
                user.tasks[direction].wait();
            }
        }
    }

    fn end(&mut self, which: usize, close: bool) {
        let kernel = self.kernel.clone();
        let user = &mut self.users[which];
        let Some(registration) = &mut user.registration else {
            return;
        };
        if !user.ended {
            user.ended = true;
            let waited = [0, 1].map(|direction| {
                let task = &user.tasks[direction];
                (task.waits, task.calls())
            });
            {
                let told = &mut kernel.world().told[user.id];
                told.ended = true;
                told.to_close = close;
            }
            let io = user.io.take().unwrap();
            if close {
                registration.deregister_and_close(io).unwrap();
            } else {
                registration.deregister(&io).unwrap();
            }
            for (task, (waited, calls)) in user.tasks.iter().zip(waited) {
                assert!(!waited || task.calls() == 1, "{} calls", task.calls());
                assert!(waited || task.calls() == calls);
            }
            assert!(registration.take_read_ready().is_err());
        } else {
            user.registration = None;
        }
    }

    /// From here on the kernel is honest, and in the end nothing is left.
    fn come_to_rest(mut self) -> u64 {
        self.world().honest = true;
        for which in 0..self.users.len() {
            self.take(which);
            if !self.users[which].ended {
                self.end(which, which.is_multiple_of(2));
            }
        }
        for _ in 0..TURNS_TO_REST {
            self.turn();
        }
        assert_eq!(self.users.len(), 0, "registrations that are not let go");
        let driver = self.driver.take().unwrap();
        assert_eq!(driver.slots.len(), 0);
        assert!(driver.is_settled());
        assert!(driver.haunted.is_empty());
        driver.shut_down();
        self.finish()
    }

    /// The reactor ends in the middle of it.
    fn shut_down(mut self) -> u64 {
        self.driver.take().unwrap().shut_down();
        for mut user in std::mem::take(&mut self.users) {
            for task in &user.tasks {
                assert!(!task.waits || task.calls() == 1, "{} calls", task.calls());
            }
            if let Some(registration) = &mut user.registration {
                let error = registration.take_read_ready().unwrap_err();
                let reason = error.get_ref().and_then(|inner| inner.downcast_ref());
                let refused = self.world().told[user.id].refused;
                assert!(
                    match reason {
                        Some(Error::ReactorGone) => !user.ended,
                        Some(Error::Deregistered) => user.ended,
                        _ => refused,
                    },
                    "{error:?}"
                );
                if !user.ended {
                    let io = user.io.take().unwrap();
                    registration.deregister_and_close(io).unwrap();
                }
            }
            assert!(user.is_released());
            user.leave();
        }
        self.finish()
    }

    /// Every copy of the descriptor is closed: the peer of the last one sees the end.
    fn finish(self) -> u64 {
        let Bench {
            kernel,
            users,
            ours,
            mut theirs,
            ..
        } = self;
        assert!(users.is_empty());
        let world = &mut *kernel.world();
        assert!(world.requests.is_empty() && world.closes.is_empty());
        drop(ours);
        match theirs.read(&mut [0]) {
            Ok(0) => {}
            other => panic!("a descriptor is left open: {other:?}"),
        }
        world.delivered
    }
}

impl User {
    fn is_released(&self) -> bool {
        self.source.poll_released(Waker::noop()).is_ready()
    }

    /// What a readiness call answered, against what there was to hear.
    fn judge(&mut self, direction: usize, outcome: io::Result<Option<Ready>>, told: &mut Told) {
        let heard = match outcome {
            Ok(heard) => heard.unwrap_or(Ready::EMPTY),
            Err(error) => {
                assert!(self.ended || told.refused, "{error:?}");
                return;
            }
        };
        assert!(!self.ended, "heard {heard:?} after its end");
        let (must, may) = (told.must[direction], told.may[direction]);
        assert!(
            told.refused || heard.contains(must),
            "heard {heard:?}, had to hear {must:?}"
        );
        assert!(may.contains(heard), "heard {heard:?}, could hear {may:?}");
        told.must[direction] = heard & sticky(direction);
        told.may[direction] = heard & sticky(direction);
        let task = &mut self.tasks[direction];
        if !heard.is_empty() {
            assert!(!task.waits || task.calls() == 1, "not called for {heard:?}");
            task.waits = false;
        }
    }

    /// Who waits was called once if there is something to hear, and not if there is nothing.
    fn check_calls(&self, told: &Told) {
        for (direction, task) in self.tasks.iter().enumerate() {
            if !task.waits || self.ended {
                continue;
            }
            let calls = task.calls();
            assert!(calls <= 1, "called {calls} times");
            if !told.refused {
                let (must, may) = (told.must[direction], told.may[direction]);
                assert!(must.is_empty() || calls == 1, "not called for {must:?}");
                assert!(!may.is_empty() || calls == 0, "called for nothing");
            }
        }
    }

    /// Nobody else holds what this user had.
    fn leave(&mut self) {
        self.registration = None;
        assert_eq!(Arc::strong_count(&self.source), 1, "a source is left over");
        for task in &self.tasks {
            let count = std::sync::Arc::strong_count(&task.calls);
            assert_eq!(count, 1, "a waker is left over");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::run;
    use std::env;

    /// How many completions to try; more by hand.
    const COMPLETIONS: &str = "URING_REACTOR_TEST_COMPLETIONS";
    /// Runs one program alone: the seed that a failure has printed.
    const SEED: &str = "URING_REACTOR_TEST_SEED";
    const LENGTH: usize = 600;

    /// A program out of a seed (Vigna's splitmix64).
    fn program(seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        };
        let length = LENGTH / 8 + next() as usize % (LENGTH / 8);
        (0..length).flat_map(|_| next().to_ne_bytes()).collect()
    }

    /// Says which program it was, if it fails.
    struct Running(u64);

    impl Drop for Running {
        fn drop(&mut self) {
            println!("failed with {SEED}={}", self.0);
        }
    }

    #[test]
    fn no_answer_of_the_kernel_breaks_the_driver() {
        if let Ok(seed) = env::var(SEED) {
            run(&program(seed.parse().unwrap()));
            return;
        }
        let most = env::var(COMPLETIONS).map_or(100_000, |most| most.parse().unwrap());
        let (mut completions, mut programs) = (0, 0);
        while completions < most {
            let running = Running(programs);
            completions += run(&program(programs));
            std::mem::forget(running);
            programs += 1;
        }
        println!("{completions} completions in {programs} programs");
    }
}

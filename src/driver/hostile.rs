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

mod kernel;
mod program;
mod users;

use super::slot::State;
use super::*;
use crate::backend::{Bell, Tag, Token};
use crate::error::Error;
use crate::handle::Handle;
use crate::ready::Interest;
use crate::registration::Registration;
use kernel::{Liar, Told, World};
use program::Bytes;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::MutexGuard;
use std::task::{Context, Poll, Waker};
use users::User;

/// Registrations that live at the same time.
const MOST: usize = 12;
/// Turns in which an honest kernel has nothing left to say.
const TURNS_TO_REST: usize = 8;

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
        let mut bytes = Bytes::new(bytes);
        let traits = bytes.byte();
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let descriptor = theirs.as_fd().try_clone_to_owned().unwrap();
        let kernel = Liar::new(bytes, traits & 1 != 0, descriptor);
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
        self.users.push(User::new(id, registration, io));
    }

    fn turn(&mut self) {
        let timeout = self.world().bytes.one_in(2).then_some(Duration::ZERO);
        let turned = self.driver().turn(timeout, || true);
        if turned.is_ok() {
            let living = self.users.iter().filter(|user| user.is_living()).count();
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
                assert!(!world.haunted || !world.told[user.id].left_behind);
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

//! Random programs over the public interface, in step on both backends.
//!
//! What must agree is what a user can rely on: whenever the reactor has come to rest, a registration
//! has reported everything that `poll(2)` says of its descriptor and that its user does not know
//! already. A user forgets what it knew when an operation answers `WouldBlock`, and when its peer
//! writes: what comes then is a new edge, though nothing was drained. Extra events are allowed.
//!
//! `PROPTEST_CASES` says how many programs to try. What fails is shrunk, and kept in
//! `proptest-regressions/`.

mod common;

use common::descriptors::*;
use common::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::cell::Cell;
use std::env;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};
use uring_reactor::{Backend, Interest, Reactor, Ready, Registration};

/// Descriptors that are open at the same time.
const MOST: usize = 6;
/// Steps of a program.
const STEPS: usize = 40;
/// Descriptors of an overflow.
const FLOOD: usize = 300;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Unix,
    Tcp,
    Reader,
    Writer,
    EventFd,
    Datagram,
    Udp,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Open(Kind),
    Register(u8, u8),
    /// The peer writes.
    Send(u8),
    ReadSome(u8),
    /// Reads, or writes, until `WouldBlock`.
    Drain(u8),
    Fill(u8),
    PeerDrain(u8),
    PeerHalfClose(u8),
    HalfClose(u8),
    PeerClose(u8),
    PeerReset(u8),
    Urgent(u8),
    Take(u8, bool),
    Poll(u8, bool),
    Deregister(u8),
    Close(u8),
    /// The descriptor goes first, which it should not.
    CloseTooEarly(u8),
    /// A close, and at once another file under the same number.
    Reuse(u8, Kind),
    Wake,
    Turn,
    Move,
    Flood,
    Nest,
    Settle,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Unix),
        3 => Just(Kind::Tcp),
        1 => Just(Kind::Reader),
        1 => Just(Kind::Writer),
        1 => Just(Kind::EventFd),
        1 => Just(Kind::Datagram),
        1 => Just(Kind::Udp),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let which = || any::<u8>();
    prop_oneof![
        4 => kind().prop_map(Step::Open),
        6 => (which(), any::<u8>()).prop_map(|(which, interest)| Step::Register(which, interest)),
        6 => which().prop_map(Step::Send),
        2 => which().prop_map(Step::ReadSome),
        4 => which().prop_map(Step::Drain),
        4 => which().prop_map(Step::Fill),
        4 => which().prop_map(Step::PeerDrain),
        1 => which().prop_map(Step::PeerHalfClose),
        1 => which().prop_map(Step::HalfClose),
        1 => which().prop_map(Step::PeerClose),
        1 => which().prop_map(Step::PeerReset),
        1 => which().prop_map(Step::Urgent),
        4 => (which(), any::<bool>()).prop_map(|(which, read)| Step::Take(which, read)),
        6 => (which(), any::<bool>()).prop_map(|(which, read)| Step::Poll(which, read)),
        2 => which().prop_map(Step::Deregister),
        2 => which().prop_map(Step::Close),
        1 => which().prop_map(Step::CloseTooEarly),
        2 => (which(), kind()).prop_map(|(which, kind)| Step::Reuse(which, kind)),
        1 => Just(Step::Wake),
        8 => Just(Step::Turn),
        1 => Just(Step::Move),
        1 => Just(Step::Flood),
        1 => Just(Step::Nest),
        8 => Just(Step::Settle),
    ]
}

/// One registration, and what its user knows.
struct User {
    registration: Registration,
    interest: Interest,
    knows: Ready,
    /// By direction: the call that a waiting task is owed.
    waits: [Option<(Arc<Count>, Waker)>; 2],
    ended: bool,
    /// Its descriptor was closed too early: the number may name another file by now.
    astray: bool,
}

impl User {
    /// Hears what a stream has to report.
    fn take(&mut self, direction: usize) -> Ready {
        let answer = if direction == 0 {
            self.registration.take_read_ready()
        } else {
            self.registration.take_write_ready()
        };
        self.hear(direction, answer.unwrap())
    }

    fn hear(&mut self, direction: usize, heard: Option<Ready>) -> Ready {
        let heard = heard.unwrap_or(Ready::EMPTY);
        if !heard.is_empty()
            && let Some((count, _)) = self.waits[direction].take()
        {
            assert_eq!(count.get(), 1, "calls of a waiter, for {heard:?}");
        }
        self.knows |= heard;
        heard
    }

    fn poll(&mut self, direction: usize) {
        if self.astray {
            return;
        }
        let (count, waker) = self.waits[direction].get_or_insert_with(counting_waker);
        let waker = waker.clone();
        // A waiter that was called and has not come back yet is a new one now.
        let called = count.get() > 0;
        let (answer, added) = if direction == 0 {
            (poll_read(&self.registration, &waker), Interest::READABLE)
        } else {
            (poll_write(&self.registration, &waker), Interest::WRITABLE)
        };
        match answer {
            std::task::Poll::Ready(answer) => {
                if !called {
                    self.waits[direction] = None;
                }
                self.hear(direction, Some(answer.unwrap()));
            }
            std::task::Poll::Pending => {
                assert!(!called, "a waiter was called for nothing");
                if direction == 1 || !self.interest.is_priority() {
                    self.interest |= added;
                }
            }
        }
    }

    /// It was deregistered.
    fn end(&mut self) {
        self.ended = true;
        for (count, _) in self.waits.iter_mut().filter_map(Option::take) {
            assert_eq!(count.get(), 1, "calls of a waiter at the end");
        }
        assert!(self.registration.take_read_ready().is_err());
        assert!(self.registration.take_write_ready().is_err());
    }

    /// Of what `poll(2)` says, that which concerns it.
    fn concern(&self, says: PollFlags) -> Ready {
        let mut ready = Ready::EMPTY;
        for (flag, bit, asked) in [
            (PollFlags::IN, Ready::READABLE, self.interest.is_readable()),
            (PollFlags::OUT, Ready::WRITABLE, self.interest.is_writable()),
            (PollFlags::PRI, Ready::PRIORITY, self.interest.is_priority()),
            (
                PollFlags::RDHUP,
                Ready::READ_CLOSED,
                self.interest.is_readable(),
            ),
            (PollFlags::HUP, Ready::HUP, true),
            (PollFlags::ERR, Ready::ERROR, true),
        ] {
            if asked && says.contains(flag) {
                ready |= bit;
            }
        }
        ready
    }
}

/// A descriptor, its peer and its registrations.
struct Thing {
    kind: Kind,
    ours: Option<OwnedFd>,
    theirs: Option<OwnedFd>,
    users: Vec<User>,
}

impl Thing {
    fn open(kind: Kind) -> Thing {
        let (ours, theirs): (OwnedFd, OwnedFd) = match kind {
            Kind::Unix => owned(unix_pair()),
            Kind::Tcp => owned(tcp_pair()),
            Kind::Reader => owned(pipe_pair()),
            Kind::Writer => {
                let (reader, writer) = owned(pipe_pair());
                (writer, reader)
            }
            Kind::EventFd => {
                let event = event_fd();
                (event.try_clone().unwrap(), event)
            }
            Kind::Datagram => owned(datagram_pair()),
            Kind::Udp => owned(udp_pair()),
        };
        Thing {
            kind,
            ours: Some(ours),
            theirs: Some(theirs),
            users: Vec::new(),
        }
    }

    /// What every user believed of this is to be heard again.
    fn forget_if(&mut self, condition: bool, bits: Ready) {
        if !condition {
            return;
        }
        for user in &mut self.users {
            user.knows -= bits;
        }
    }

    fn living(&mut self) -> impl Iterator<Item = &mut User> {
        self.users.iter_mut().filter(|user| !user.ended)
    }

    /// The descriptor is deregistered everywhere. Then it may be closed.
    fn deregister(&mut self) {
        if let Some(ours) = &self.ours {
            for user in self.users.iter_mut().filter(|user| !user.ended) {
                user.registration.deregister(ours).unwrap();
                user.end();
            }
        }
        self.users.clear();
    }

    fn missing(&mut self) -> Option<(Ready, Ready)> {
        let says = says(self.ours.as_ref()?.as_fd());
        let mut missing = None;
        for user in self.living() {
            for direction in [0, 1] {
                user.take(direction);
            }
            let concern = user.concern(says);
            if !user.knows.contains(concern) {
                missing = Some((concern, user.knows));
            }
        }
        missing
    }
}

fn owned<A: Into<OwnedFd>, B: Into<OwnedFd>>((ours, theirs): (A, B)) -> (OwnedFd, OwnedFd) {
    (ours.into(), theirs.into())
}

fn says(fd: BorrowedFd<'_>) -> PollFlags {
    let asked = PollFlags::IN | PollFlags::OUT | PollFlags::PRI | PollFlags::RDHUP;
    let mut watched = [PollFd::new(&fd, asked)];
    poll(&mut watched, Some(&Timespec::default())).unwrap();
    watched[0].revents()
}

/// Reads to the end, or until `WouldBlock`: then true.
fn read_all(fd: &OwnedFd, at_most: usize) -> bool {
    let mut buffer = [0; 4096];
    let mut total = 0;
    while total < at_most {
        let length = buffer.len().min(at_most - total).max(8);
        match rustix::io::read(fd, &mut buffer[..length]) {
            Ok(0) => return false,
            Ok(n) => total += n,
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => {}
            // An error, of which there is one a cause.
            Err(_) => return false,
        }
    }
    false
}

/// Writes until not even the least finds room: then true.
fn write_all(kind: Kind, fd: &OwnedFd) -> bool {
    if let Kind::EventFd = kind {
        // What it takes depends on the number that is written.
        for shift in (0..64).rev() {
            while rustix::io::write(fd, &(1_u64 << shift).to_ne_bytes()).is_ok() {}
        }
        return true;
    }
    // UDP takes any amount.
    for _ in 0..10_000 {
        match rustix::io::write(fd, &[0x55; 2048]) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
    false
}

/// A reactor on one backend and what it watches.
struct World {
    backend: Backend,
    reactor: Reactor,
    things: Vec<Thing>,
    may_move: bool,
}

impl World {
    fn new(backend: Backend, may_move: bool) -> World {
        World {
            backend,
            reactor: reactor(backend),
            things: Vec::new(),
            may_move,
        }
    }

    fn thing(&mut self, which: u8) -> Option<&mut Thing> {
        let count = self.things.len();
        self.things.get_mut(usize::from(which).checked_rem(count)?)
    }

    fn user(&mut self, which: u8) -> Option<&mut User> {
        let mut users: Vec<_> = self.things.iter_mut().flat_map(Thing::living).collect();
        let which = usize::from(which).checked_rem(users.len())?;
        Some(users.swap_remove(which))
    }

    fn is_astray(&self) -> bool {
        let mut users = self.things.iter().flat_map(|thing| &thing.users);
        users.any(|user| user.astray)
    }

    fn open(&mut self, kind: Kind) {
        if self.things.len() < MOST {
            self.things.push(Thing::open(kind));
        }
    }

    /// Takes the step, if it makes sense here.
    fn take(&mut self, step: Step) {
        match step {
            Step::Open(kind) => self.open(kind),
            Step::Register(which, interest) => {
                self.register(which, interest);
            }
            Step::Take(which, read) => {
                if let Some(user) = self.user(which) {
                    user.take(usize::from(!read));
                }
            }
            Step::Poll(which, read) => {
                if let Some(user) = self.user(which) {
                    user.poll(usize::from(!read));
                }
            }
            Step::Wake => self.reactor.handle().wake(),
            Step::Turn => {
                self.reactor.turn(Some(Duration::ZERO)).unwrap();
            }
            // What arms everything anew would arm a number that names another file by now.
            Step::Move | Step::Flood | Step::Nest if self.is_astray() => {}
            Step::Move if self.may_move => {
                let reactor = &mut self.reactor;
                thread::scope(|scope| {
                    scope.spawn(|| reactor.turn(Some(Duration::ZERO)).unwrap());
                });
            }
            Step::Move => {}
            Step::Flood => self.flood(),
            Step::Nest => {
                self.reactor.as_fd();
            }
            Step::Settle => self.settle(),
            Step::Deregister(which) => {
                if let Some(thing) = self.thing(which) {
                    thing.deregister();
                }
            }
            Step::Close(which) => self.close(which),
            Step::Reuse(which, kind) => {
                self.close(which);
                self.open(kind);
            }
            Step::CloseTooEarly(which) => {
                // The number has to be armed while it is the right one, also where an interest was
                // widened: that takes the end of one poll and the arming of another.
                self.settle();
                for _ in 0..4 {
                    self.reactor.turn(Some(Duration::ZERO)).unwrap();
                }
                if let Some(thing) = self.thing(which) {
                    thing.ours = None;
                    thing.users.iter_mut().for_each(|user| user.astray = true);
                }
            }
            _ => {
                self.io(step);
            }
        }
    }

    /// Steps of I/O.
    fn io(&mut self, step: Step) -> Option<()> {
        let which = match step {
            Step::Send(which)
            | Step::ReadSome(which)
            | Step::Drain(which)
            | Step::Fill(which)
            | Step::PeerDrain(which)
            | Step::PeerHalfClose(which)
            | Step::HalfClose(which)
            | Step::PeerClose(which)
            | Step::PeerReset(which)
            | Step::Urgent(which) => which,
            _ => unreachable!("{step:?} is not I/O"),
        };
        let thing = self.thing(which)?;
        let kind = thing.kind;
        let (ours, theirs) = (thing.ours.as_ref(), thing.theirs.as_ref());
        match step {
            Step::Send(_) => {
                let sent = rustix::io::write(theirs?, &1_u64.to_ne_bytes()).is_ok();
                thing.forget_if(sent, Ready::READABLE);
            }
            Step::ReadSome(_) => drop(read_all(ours?, 8)),
            Step::Drain(_) => {
                let drained = read_all(ours?, usize::MAX);
                thing.forget_if(drained, Ready::READABLE);
            }
            Step::Fill(_) => {
                let full = write_all(kind, ours?);
                thing.forget_if(full, Ready::WRITABLE);
            }
            Step::PeerDrain(_) => drop(read_all(theirs?, usize::MAX)),
            Step::PeerHalfClose(_) => {
                let _ = rustix::net::shutdown(theirs?, rustix::net::Shutdown::Write);
            }
            Step::HalfClose(_) => {
                let _ = rustix::net::shutdown(ours?, rustix::net::Shutdown::Write);
            }
            Step::PeerClose(_) => thing.theirs = None,
            Step::PeerReset(_) => {
                if let Kind::Tcp = kind {
                    rustix::net::sockopt::set_socket_linger(theirs?, Some(Duration::ZERO)).unwrap();
                }
                thing.theirs = None;
            }
            Step::Urgent(_) => {
                if let Kind::Tcp = kind {
                    // Not after a half-close.
                    let sent = rustix::net::send(theirs?, b"!", rustix::net::SendFlags::OOB);
                    thing.forget_if(sent.is_ok(), Ready::PRIORITY);
                }
            }
            _ => {}
        }
        Some(())
    }

    fn register(&mut self, which: u8, interest: u8) -> Option<()> {
        let handle = self.reactor.handle();
        let thing = self.thing(which)?;
        if thing.users.len() >= 2 {
            return None;
        }
        let interests = [
            Interest::READABLE | Interest::WRITABLE,
            Interest::READABLE,
            Interest::WRITABLE,
            Interest::PRIORITY,
            Interest::READABLE | Interest::PRIORITY,
        ];
        let interest = interests[usize::from(interest) % interests.len()];
        let registration = Registration::new();
        let first = registration.register_interest(thing.ours.as_ref()?, interest, &handle);
        assert!(first.unwrap());
        thing.users.push(User {
            registration,
            interest,
            knows: Ready::EMPTY,
            waits: [None, None],
            ended: false,
            astray: false,
        });
        Some(())
    }

    /// Ends the registrations, closes the descriptor, and expects that its peer sees that.
    fn close(&mut self, which: u8) {
        if self.things.is_empty() {
            return;
        }
        let mut thing = self.things.remove(usize::from(which) % self.things.len());
        let last = thing.users.pop();
        thing.deregister();
        if let (Some(mut last), Some(ours)) = (last, thing.ours.take()) {
            if which.is_multiple_of(2) && !last.ended {
                last.registration.deregister_and_close(ours).unwrap();
                last.end();
            } else {
                last.registration.deregister(&ours).unwrap();
                last.end();
            }
        }
        let Some(theirs) = thing.theirs.take() else {
            return;
        };
        let expected = match thing.kind {
            Kind::Unix | Kind::Reader | Kind::Writer => {
                PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR
            }
            // Ours may have been closed before, with data unread: a reset.
            Kind::Tcp => PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR,
            Kind::EventFd | Kind::Datagram | Kind::Udp => return,
        };
        let start = Instant::now();
        while !says(theirs.as_fd()).intersects(expected) {
            self.reactor.turn(Some(Duration::ZERO)).unwrap();
            // The end comes behind what is on its way.
            read_all(&theirs, usize::MAX);
            assert!(
                start.elapsed() < BOUND / 2,
                "{:?}: the peer of a closed {:?} sees {:?}",
                self.backend,
                thing.kind,
                says(theirs.as_fd())
            );
        }
    }

    /// Turns until everybody knows what there is to know.
    fn settle(&mut self) {
        let start = Instant::now();
        loop {
            let mut turns = 0;
            while self.reactor.turn(Some(Duration::ZERO)).unwrap().events() > 0 {
                turns += 1;
                assert!(turns < 10_000, "{:?}: no rest", self.backend);
            }
            let missing = self
                .things
                .iter_mut()
                .find_map(|thing| Some((thing.kind, thing.missing()?)));
            let Some((kind, (concern, knows))) = missing else {
                return;
            };
            assert!(
                start.elapsed() < BOUND / 2,
                "{:?}: a {kind:?} is ready for {concern:?}, and its user knows of {knows:?}",
                self.backend
            );
        }
    }

    /// More at once than a small ring has room for: that a descriptor was closed is posted at once, for
    /// any number of them, and polls that become ready then find no room.
    fn flood(&mut self) {
        let handle = self.reactor.handle();
        let register = |interest| {
            let event = event_fd();
            let registration = Registration::new();
            let first = registration.register_interest(&event, interest, &handle);
            assert!(first.unwrap());
            (event, registration)
        };
        let mut flood: Vec<_> = (0..FLOOD).map(|_| register(Interest::READABLE)).collect();
        // For urgent data, which the ring is not asked for, so that no cancel goes before the close.
        let closing: Vec<_> = (0..2 * FLOOD)
            .map(|_| register(Interest::PRIORITY))
            .collect();
        self.reactor.turn(Some(Duration::ZERO)).unwrap();
        for (event, mut registration) in closing {
            registration.deregister_and_close(event).unwrap();
        }
        for (event, _) in &flood {
            signal(event);
        }
        turn_until(&mut self.reactor, || {
            flood.retain(|(_, registration)| {
                let ready = registration.take_read_ready().unwrap();
                !ready.is_some_and(|ready| ready.is_readable())
            });
            flood.is_empty()
        });
    }

    /// Returns how often its ring overflew.
    fn end(mut self) -> u64 {
        self.settle();
        while !self.things.is_empty() {
            self.close(1);
        }
        let reactor = &mut self.reactor;
        let start = Instant::now();
        while !reactor.is_idle() {
            reactor.turn(Some(Duration::ZERO)).unwrap();
            assert!(start.elapsed() < BOUND, "{:?}: not idle", self.backend);
        }
        reactor.metrics().overflows
    }
}

/// Returns how often a ring overflew.
fn check(programs: u32, may_move: bool) -> u64 {
    let mut config = Config {
        cases: programs,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "proptest-regressions/differential.txt",
        ))),
        max_shrink_time: 60_000,
        ..Config::default()
    };
    if let Ok(cases) = env::var("PROPTEST_CASES") {
        config.cases = cases.parse().unwrap();
    }
    let program = prop::collection::vec(step(), 1..STEPS);
    let overflows = Cell::new(0);
    let outcome = TestRunner::new(config).run(&program, |program| {
        overflows.set(overflows.get() + run(&program, may_move));
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    overflows.get()
}

/// Takes the steps on both backends. Returns how often a ring overflew.
fn run(program: &[Step], may_move: bool) -> u64 {
    let mut worlds = [Backend::Uring, Backend::Epoll].map(|backend| World::new(backend, may_move));
    for step in program {
        for world in &mut worlds {
            world.take(*step);
        }
    }
    worlds.into_iter().map(World::end).sum()
}

#[test]
fn both_backends_tell_what_a_user_can_rely_on() {
    check(150, true);
}

#[test]
fn so_they_do_when_the_queues_overflow() {
    in_child(&[], || {
        // The ring comes out as small as it can be. Another one, for a move, would not fit.
        limit_locked_memory(32 * 1024);
        descriptors_to_spare(4_000);
        let overflows = check(50, false);
        println!("{overflows} overflows");
        assert!(overflows > 0);
    });
}

/// Programs that found something once, as they were left by the shrinking.
mod found {
    use super::*;
    use Kind::*;
    use Step::*;

    /// The entry of another registration's duplicate went with a descriptor that was closed early.
    #[test]
    fn a_number_that_a_duplicate_took() {
        let program = [
            Open(Tcp),
            Register(0, 2),
            Open(Unix),
            CloseTooEarly(0),
            Register(1, 3),
            Register(1, 4),
            Register(0, 4),
            Send(0),
            Fill(1),
            Fill(1),
            Poll(1, true),
            Deregister(0),
            Send(1),
            Settle,
            Urgent(0),
            Settle,
            Settle,
            ReadSome(0),
            Send(0),
            Urgent(0),
            PeerDrain(1),
            Turn,
        ];
        run(&program, false);
    }

    /// A widened interest was armed under a number that named nothing any more, which is the
    /// program's fault.
    #[test]
    fn an_interest_that_was_widened_too_late() {
        let program = [
            Open(Unix),
            Register(0, 1),
            Fill(0),
            Turn,
            Poll(0, false),
            CloseTooEarly(0),
            Turn,
            Take(0, false),
        ];
        run(&program, false);
    }

    /// The peer had half-closed, and what it could not send was waited for.
    #[test]
    fn an_urgent_byte_that_was_not_sent() {
        let program = [
            Open(Tcp),
            Send(0),
            Register(0, 1),
            Urgent(0),
            PeerHalfClose(0),
            Register(0, 3),
            Settle,
            Urgent(0),
            Poll(1, true),
            Fill(0),
        ];
        run(&program, false);
    }

    /// The end of a connection came behind what was on its way.
    #[test]
    fn an_end_behind_unread_data() {
        let program = [
            Open(Tcp),
            PeerDrain(0),
            Send(0),
            Flood,
            Turn,
            Settle,
            Open(Udp),
            PeerDrain(1),
            Poll(1, false),
            Open(Unix),
            PeerDrain(1),
            Send(2),
            PeerDrain(2),
            Send(1),
            Take(1, false),
            Drain(0),
            Poll(1, true),
            Settle,
            Turn,
            Turn,
            Settle,
            Fill(0),
            Register(1, 1),
            Take(0, false),
        ];
        run(&program, false);
    }
}

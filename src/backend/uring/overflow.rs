//! More to say than the queue has room for, on a real ring of the smallest size.

use super::*;
use crate::backend::Bell;
use crate::backend::bell::{new_eventfd, signal};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// Polls that become ready at once, of which the queue has room for a few hundred.
const POLLS: u32 = 2000;
const LONG: Duration = Duration::from_secs(10);
/// One that is in no ring.
const FAR_POLL: Token = Token::new(Tag::Main, POLLS, 1);

/// Eight polls a descriptor, and what is known of each.
struct Polls {
    fds: Vec<OwnedFd>,
    /// What is written to, to make the descriptor ready: the descriptor, or the other end.
    ends: Vec<OwnedFd>,
    /// By slot: the generation of the poll that is armed, and what it has reported.
    generations: Vec<u32>,
    reports: Vec<u32>,
    ended: u32,
}

fn on_the_smallest_ring() -> Uring {
    let shared = Arc::new(Shared::new(Bell::new().unwrap()));
    let mut uring = Uring::new(shared).unwrap();
    uring.instance = Instance::of(Ring::smallest().unwrap());
    uring.start().unwrap();
    uring
}

/// It has a child for everything, and that is the smallest ring.
fn with_the_smallest_child() -> Uring {
    let shared = Arc::new(Shared::new(Bell::new().unwrap()));
    let limits = Limits {
        main: 0,
        child: POLLS,
        children: 1,
        ring: Ring::smallest,
    };
    let mut uring = Uring::with_limits(shared, limits).unwrap();
    uring.start().unwrap();
    uring
}

fn child(uring: &mut Uring) -> &mut Instance {
    uring.children.get(1).expect("something was armed")
}

impl Polls {
    fn arm(uring: &mut Uring, count: u32) -> Polls {
        let event_fds = || (0..count.div_ceil(8)).map(|_| new_eventfd().unwrap());
        let fds: Vec<_> = event_fds().collect();
        let ends = fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
        Polls::arm_all(uring, count, fds, ends)
    }

    fn arm_sockets(uring: &mut Uring, count: u32) -> Polls {
        let pairs = (0..count.div_ceil(8)).map(|_| UnixStream::pair().unwrap());
        let (fds, ends) = pairs.map(|(one, other)| (one.into(), other.into())).unzip();
        Polls::arm_all(uring, count, fds, ends)
    }

    fn arm_all(uring: &mut Uring, count: u32, fds: Vec<OwnedFd>, ends: Vec<OwnedFd>) -> Polls {
        let mut polls = Polls {
            fds,
            ends,
            generations: vec![0; count as usize],
            reports: vec![0; count as usize],
            ended: 0,
        };
        for slot in 0..count {
            polls.rearm(uring, slot);
        }
        uring.wait(NOW, &mut Vec::new()).unwrap();
        polls
    }

    fn rearm(&mut self, uring: &mut Uring, slot: u32) {
        let generation = &mut self.generations[slot as usize];
        *generation += 1;
        let token = Token::new(Tag::Main, slot, *generation);
        let fd = self.fds[slot as usize / 8].as_raw_fd();
        uring.arm(token, fd, events::IN, Tier::Near);
    }

    fn signal(&self) {
        self.ends.iter().for_each(|fd| signal(fd.as_fd()));
    }

    /// Takes note of one of ours, and arms again what has ended.
    fn note(&mut self, uring: &mut Uring, completion: Completion) {
        let slot = completion.token.slot();
        assert_eq!(
            completion.token.generation(),
            self.generations[slot as usize]
        );
        assert_eq!(completion.result, i32::from(events::IN));
        self.reports[slot as usize] += 1;
        if !completion.more {
            self.ended += 1;
            self.rearm(uring, slot);
        }
    }

    fn have_all_reported(&self) -> bool {
        self.reports.iter().all(|reports| *reports > 0)
    }
}

/// Has the kernel say all it has to, and takes nothing.
fn overflow(instance: &mut Instance) {
    // Each call does the work of twenty polls at least.
    for _ in 0..POLLS / 20 {
        instance.enter(0, None).unwrap();
    }
    assert!(
        instance.ring.has_overflowed(),
        "there is room for everything"
    );
}

/// Waits until the condition holds. Returns what was not of `polls`.
fn wait_until(
    uring: &mut Uring,
    polls: &mut Polls,
    mut condition: impl FnMut(&Polls, &[Completion]) -> bool,
) -> Vec<Completion> {
    let mut others = Vec::new();
    let start = Instant::now();
    while !condition(polls, &others) {
        assert!(start.elapsed() < LONG, "{} polls have ended", polls.ended);
        let mut batch = Vec::new();
        uring.wait(NOW, &mut batch).unwrap();
        let mut next = 0;
        while let Some(&completion) = batch.get(next) {
            next += 1;
            let internal = completion.token.tag() == Some(Tag::Internal);
            if internal || completion.token == FAR_POLL {
                others.push(completion);
            } else {
                polls.note(uring, completion);
            }
            if internal {
                uring.own(completion, &mut batch);
            }
        }
    }
    others
}

#[test]
fn all_of_thousands_are_reported() {
    let mut uring = on_the_smallest_ring();
    let polls = Polls::arm(&mut uring, POLLS);
    are_all_reported(uring, polls, |uring| &mut uring.instance);
}

#[test]
fn all_of_thousands_in_a_child_are_reported() {
    let mut uring = with_the_smallest_child();
    let polls = Polls::arm_sockets(&mut uring, POLLS);
    assert_eq!(child(&mut uring).polls, POLLS);
    are_all_reported(uring, polls, child);
}

fn are_all_reported(
    mut uring: Uring,
    mut polls: Polls,
    instance: impl Fn(&mut Uring) -> &mut Instance,
) {
    for _ in 0..3 {
        polls.reports.fill(0);
        polls.ended = 0;
        polls.signal();
        overflow(instance(&mut uring));
        wait_until(&mut uring, &mut polls, |polls, _| polls.have_all_reported());
        assert!(polls.ended > 0, "no poll met the full queue");
        // What was armed again reports once more. Then there is rest.
        let mut quiet = 0;
        while quiet < 3 {
            let mut batch = Vec::new();
            uring.wait(NOW, &mut batch).unwrap();
            quiet = if batch.is_empty() { quiet + 1 } else { 0 };
            for completion in batch {
                if completion.token.tag() == Some(Tag::Internal) {
                    uring.own(completion, &mut Vec::new());
                } else {
                    polls.note(&mut uring, completion);
                }
            }
        }
    }
    assert_eq!(instance(&mut uring).polls, POLLS);
    assert!(uring.shared.metrics().overflows > 0);
}

#[test]
fn what_becomes_ready_once_the_full_queue_is_emptied_is_reported() {
    let mut uring = on_the_smallest_ring();
    let mut early = Polls::arm(&mut uring, POLLS);
    let late_ones = new_eventfd().unwrap();
    let late = |generation| Token::new(Tag::Main, POLLS, generation);
    uring.arm(late(1), late_ones.as_raw_fd(), events::IN, Tier::Near);
    early.signal();
    overflow(&mut uring.instance);
    let mut batch = Vec::new();
    uring.instance.reap(&mut batch);
    assert!(!uring.instance.ring.has_completions() && uring.instance.ring.has_overflowed());
    // There is room now, and yet this poll ends: others wait for that room.
    signal(late_ones.as_fd());
    let (mut reported, mut ended) = (0, false);
    let start = Instant::now();
    while !early.have_all_reported() || reported == 0 || (ended && reported < 2) {
        assert!(start.elapsed() < LONG);
        for completion in batch.drain(..) {
            if completion.token.slot() == POLLS {
                reported += 1;
                if !completion.more {
                    ended = true;
                    uring.arm(late(2), late_ones.as_raw_fd(), events::IN, Tier::Near);
                }
            } else {
                early.note(&mut uring, completion);
            }
        }
        uring.wait(NOW, &mut batch).unwrap();
    }
    assert!(ended, "the kernel had room for it");
}

/// What the reactor watches for itself meets a full queue, and is heard of after that.
fn is_watched_again(
    uring: &mut Uring,
    polls: &mut Polls,
    own: Token,
    report: Token,
    ring: impl Fn(),
) {
    let reported = |completions: &[Completion]| {
        let mut completions = completions.iter();
        completions.any(|completion| completion.token == report)
    };
    for _ in 0..3 {
        polls.reports.fill(0);
        polls.signal();
        overflow(&mut uring.instance);
        ring();
        let heard = wait_until(uring, polls, |polls, others| {
            polls.have_all_reported() && reported(others)
        });
        let ended = |completion: &Completion| completion.token == own && !completion.more;
        assert!(heard.iter().any(ended), "its poll was not ended");
        // The one that was armed for it may report what the last one did.
        let mut quiet = 0;
        while quiet < 3 {
            let mut turns = 0;
            let heard = wait_until(uring, polls, |_, _| {
                turns += 1;
                turns > 1
            });
            quiet = if heard.is_empty() { quiet + 1 } else { 0 };
        }
        ring();
        wait_until(uring, polls, |_, others| reported(others));
    }
}

#[test]
fn the_bell_is_watched_again_after_it_met_a_full_queue() {
    let mut uring = on_the_smallest_ring();
    let mut polls = Polls::arm(&mut uring, POLLS);
    let shared = Arc::clone(&uring.shared);
    is_watched_again(&mut uring, &mut polls, BELL, BELL, || shared.bell.ring());
}

#[test]
fn the_scout_is_watched_again_after_it_met_a_full_queue() {
    let mut uring = on_the_smallest_ring();
    let mut polls = Polls::arm(&mut uring, POLLS);
    let event = new_eventfd().unwrap();
    assert!(uring.shared.bell.scout.add(event.as_fd()));
    is_watched_again(&mut uring, &mut polls, SCOUT, SCOUT, || {
        signal(event.as_fd())
    });
}

#[test]
fn the_far_tier_is_watched_again_after_it_met_a_full_queue() {
    let mut uring = on_the_smallest_ring();
    let mut polls = Polls::arm(&mut uring, POLLS);
    let event = new_eventfd().unwrap();
    uring.arm(FAR_POLL, event.as_raw_fd(), events::IN, Tier::Far);
    uring.wait(NOW, &mut Vec::new()).unwrap();
    is_watched_again(&mut uring, &mut polls, FAR, FAR_POLL, || {
        signal(event.as_fd())
    });
}

//! The edge word: everything that a completion changes and a poll reads, in one `u64`.
//!
//! | bits | name | set by, when | cleared by, when |
//! | --- | --- | --- | --- |
//! | 0 | `READABLE` | dispatch, on `POLLIN` | the reader that takes it, or a guard that met `WouldBlock` |
//! | 1 | `PRIORITY` | dispatch, on `POLLPRI` | as above |
//! | 2 | `WRITABLE` | dispatch, on `POLLOUT` | the writer that takes it, or a guard |
//! | 3 | `READ_ERROR` | dispatch, on `POLLERR` | the reader, or a guard |
//! | 4 | `HUP` | dispatch, on `POLLHUP` | nobody |
//! | 5 | `READ_CLOSED` | dispatch, on `POLLRDHUP` | nobody |
//! | 6 | `WRITE_ERROR` | dispatch, on `POLLERR` | the writer, or a guard |
//! | 8, 9 | `WAITS` | a poll that leaves its waker in the direction's cell | whoever takes that waker, or a poll that found an edge after all |
//! | 10, 11 | `BUSY` | whoever is about to touch the direction's cell | the same, right after |
//! | 12, 13 | `LISTED` | a waiter that entered the list of the direction | the dispatch that is about to wake the list |
//! | 14 | `DEREGISTERED` | `deregister`, or drop of the registration | nobody |
//! | 15 | `GONE` | the end of the reactor | nobody |
//! | 16 | `FAILED` | the driver, with the kernel's error number | nobody |
//! | 17 | `RELEASED` | the driver, when the kernel holds the file no more | nobody |
//! | 20-31 | errno | with `FAILED` | nobody |
//! | 32-63 | tick | dispatch adds one | wraps |
//!
//! `ERROR` has one bit a direction because the streams consume it independently. `WRITE_CLOSED` has
//! none: it is `HUP` under another name.
//!
//! The tick is for guards, which look at an edge without taking it and clear it afterwards: a guard
//! clears only while no newer edge has come in, so that an edge that arrives between the user's
//! `WouldBlock` and the clearing survives.

use crate::ready::{Interest, Ready};

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read = 0,
    Write = 1,
}

impl Direction {
    pub(crate) const BOTH: [Direction; 2] = [Direction::Read, Direction::Write];

    /// What is reported to those who have asked for this direction, and to no others.
    pub(crate) fn asked(self) -> Ready {
        match self {
            Direction::Read => Ready::READABLE | Ready::PRIORITY,
            Direction::Write => Ready::WRITABLE,
        }
    }

    /// True if it is one of these, which are given as bits.
    pub(crate) const fn is_in(self, directions: u64) -> bool {
        directions & (1 << self as u32) != 0
    }

    /// True if a waiter with this interest listens to this direction.
    pub(crate) const fn serves(self, interest: Interest) -> bool {
        match self {
            Direction::Read => interest.is_readable() || interest.is_priority(),
            Direction::Write => interest.is_writable(),
        }
    }
}

/// Why a registration answers with an error from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Deregistered,
    Gone,
    /// The kernel refused the file, with this error number.
    Failed(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

const READABLE: u64 = Ready::READABLE.bits() as u64;
const PRIORITY: u64 = Ready::PRIORITY.bits() as u64;
const WRITABLE: u64 = Ready::WRITABLE.bits() as u64;
const READ_ERROR: u64 = Ready::ERROR.bits() as u64;
const HUP: u64 = Ready::HUP.bits() as u64;
const READ_CLOSED: u64 = Ready::READ_CLOSED.bits() as u64;
const WRITE_ERROR: u64 = 1 << 6;
const WAITS: u64 = 1 << 8;
const BUSY: u64 = 1 << 10;
const LISTED: u64 = 1 << 12;
const DEREGISTERED: u64 = 1 << 14;
const GONE: u64 = 1 << 15;
const FAILED: u64 = 1 << 16;
const RELEASED: u64 = 1 << 17;
const ERRNO_SHIFT: u32 = 20;
const ERRNO_MASK: u64 = 0xfff;
const TICK: u64 = 1 << 32;

const ENDS: u64 = DEREGISTERED | GONE | FAILED;
const READ_BITS: u64 = READABLE | PRIORITY | READ_ERROR | HUP | READ_CLOSED;
const READ_STICKY: u64 = HUP | READ_CLOSED;
const WRITE_BITS: u64 = WRITABLE | WRITE_ERROR | HUP;
const WRITE_STICKY: u64 = HUP;

/// What a call waits for: bits of the word, any of which answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct News(u64);

impl News {
    /// The kernel holds the file no more.
    pub(crate) const RELEASE: News = News(RELEASED);

    /// For whoever takes what the stream of this direction reports.
    pub(crate) const fn of(direction: Direction) -> News {
        match direction {
            Direction::Read => News(READ_BITS | ENDS),
            Direction::Write => News(WRITE_BITS | ENDS),
        }
    }

    /// For whoever waits with this interest.
    pub(crate) const fn for_interest(interest: Interest) -> News {
        let mut bits = ENDS | HUP;
        if Direction::Read.serves(interest) {
            bits |= READ_ERROR | READ_CLOSED;
        }
        if interest.is_readable() {
            bits |= READABLE;
        }
        if interest.is_priority() {
            bits |= PRIORITY;
        }
        if Direction::Write.serves(interest) {
            bits |= WRITABLE | WRITE_ERROR;
        }
        News(bits)
    }

    /// For whoever may be in the cell of this direction.
    pub(crate) const fn for_any(direction: Direction) -> News {
        News(News::of(direction).0 | RELEASED)
    }
}

impl Word {
    pub(crate) const EMPTY: Word = Word(0);

    const fn with(self, bits: u64) -> Word {
        Word(self.0 | bits)
    }

    const fn without(self, bits: u64) -> Word {
        Word(self.0 & !bits)
    }

    const fn contains_any(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// There is something in it for whoever waits for that.
    pub(crate) const fn has(self, news: News) -> bool {
        self.contains_any(news.0)
    }

    /// The word after these edges came in.
    pub(crate) const fn with_edges(self, ready: Ready) -> Word {
        let mut bits = ready.bits() as u64 & (READ_BITS | WRITE_BITS) & !WRITE_ERROR;
        if ready.is_error() {
            bits |= WRITE_ERROR;
        }
        Word((self.0 | bits).wrapping_add(TICK))
    }

    /// All of these edges came in already, and were not taken.
    pub(crate) const fn has_edges(self, ready: Ready) -> bool {
        (self.with_edges(ready).0 ^ self.0) & (TICK - 1) == 0
    }

    /// The directions, as bits, whose streams these edges are news for.
    pub(crate) const fn concerned(ready: Ready) -> u64 {
        let bits = ready.bits() as u64;
        (bits & READ_BITS != 0) as u64 | ((bits & (WRITABLE | HUP | READ_ERROR) != 0) as u64) << 1
    }

    /// The directions, as bits, of those that are given whose cell has a waker and nobody at it.
    pub(crate) const fn idle_waiters(self, directions: u64) -> u64 {
        (self.0 / WAITS) & !(self.0 / BUSY) & directions
    }

    /// The directions, as bits, of those that are given which have a list to be woken.
    pub(crate) const fn lists(self, directions: u64) -> u64 {
        (self.0 / LISTED) & directions
    }

    /// The word after whoever changes it has taken on the cells and the lists of these directions.
    pub(crate) const fn claimed(self, cells: u64, lists: u64) -> Word {
        Word((self.0 & !(cells * WAITS) & !(lists * LISTED)) | (cells * BUSY))
    }

    /// What the stream of this direction has to report.
    pub(crate) fn edges(self, direction: Direction) -> Ready {
        let mut ready = match direction {
            Direction::Read => Ready::from_bits((self.0 & READ_BITS) as u8),
            Direction::Write => {
                let mut ready = Ready::from_bits((self.0 & (WRITABLE | HUP)) as u8);
                if self.contains_any(WRITE_ERROR) {
                    ready |= Ready::ERROR;
                }
                ready
            }
        };
        if self.contains_any(HUP) {
            ready |= Ready::WRITE_CLOSED;
            if direction == Direction::Read {
                ready |= Ready::READ_CLOSED;
            }
        }
        ready
    }

    /// The word after the stream of this direction has reported.
    pub(crate) const fn consumed(self, direction: Direction) -> Word {
        match direction {
            Direction::Read => self.without(READ_BITS & !READ_STICKY),
            Direction::Write => self.without(WRITE_BITS & !WRITE_STICKY),
        }
    }

    /// What answers a waiter with this interest.
    pub(crate) fn answers(self, interest: Interest) -> Ready {
        let mut ready = Ready::EMPTY;
        for direction in Direction::BOTH {
            if direction.serves(interest) {
                ready |= self.edges(direction);
            }
        }
        ready & interest.answers()
    }

    /// The word after a guard that saw `ready` for `interest` has cleared it.
    pub(crate) fn cleared(self, ready: Ready, interest: Interest) -> Word {
        let mut bits = u64::from(ready.bits()) & (READABLE | PRIORITY | WRITABLE);
        if ready.is_error() {
            for direction in Direction::BOTH {
                if direction.serves(interest) {
                    bits |= match direction {
                        Direction::Read => READ_ERROR,
                        Direction::Write => WRITE_ERROR,
                    };
                }
            }
        }
        self.without(bits)
    }

    pub(crate) const fn tick(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) const fn waits(self, direction: Direction) -> bool {
        self.contains_any(WAITS << direction as u32)
    }

    pub(crate) const fn with_waits(self, direction: Direction) -> Word {
        self.with(WAITS << direction as u32)
    }

    pub(crate) const fn without_waits(self, direction: Direction) -> Word {
        self.without(WAITS << direction as u32)
    }

    pub(crate) const fn busy(self, direction: Direction) -> bool {
        self.contains_any(BUSY << direction as u32)
    }

    pub(crate) const fn with_busy(self, direction: Direction) -> Word {
        self.with(BUSY << direction as u32)
    }

    pub(crate) const fn without_busy(self, direction: Direction) -> Word {
        self.without(BUSY << direction as u32)
    }

    pub(crate) const fn with_listed(self, direction: Direction) -> Word {
        self.with(LISTED << direction as u32)
    }

    /// The word after this end. An end that came before stays.
    pub(crate) const fn with_end(self, end: End) -> Word {
        match end {
            End::Deregistered => self.with(DEREGISTERED),
            End::Gone => self.with(GONE),
            End::Failed(_) if self.contains_any(FAILED) => self,
            End::Failed(errno) => self.with(FAILED | ((errno as u64 & ERRNO_MASK) << ERRNO_SHIFT)),
        }
    }

    /// The end that a call is answered with. What the user did outranks what the kernel said, and
    /// that outranks the end of the reactor, so that an answer once given stays.
    pub(crate) const fn end(self) -> Option<End> {
        if !self.contains_any(ENDS) {
            None
        } else if self.contains_any(DEREGISTERED) {
            Some(End::Deregistered)
        } else if self.contains_any(FAILED) {
            Some(End::Failed(((self.0 >> ERRNO_SHIFT) & ERRNO_MASK) as i32))
        } else {
            Some(End::Gone)
        }
    }

    pub(crate) const fn with_released(self) -> Word {
        self.with(RELEASED)
    }
}

#[cfg(all(test, not(uring_reactor_loom)))]
mod tests {
    use super::*;
    use Direction::{Read, Write};
    use std::ops::BitOr;

    #[test]
    fn every_field_round_trips_and_leaves_the_others_alone() {
        for direction in Direction::BOTH {
            let other = if direction == Read { Write } else { Read };
            let word = Word::EMPTY.with_waits(direction);
            assert!(word.waits(direction) && !word.waits(other));
            assert_eq!(word.without_waits(direction), Word::EMPTY);
            let word = Word::EMPTY.with_busy(direction);
            assert!(word.busy(direction) && !word.busy(other));
            assert_eq!(word.without_busy(direction), Word::EMPTY);
            let word = Word::EMPTY.with_listed(direction);
            let bit = 1 << direction as u32;
            assert_eq!(word.lists(0b11), bit);
            assert_eq!(word.claimed(0, bit), Word::EMPTY);
            let word = Word::EMPTY.with_waits(direction).with_listed(other);
            assert_eq!(word.idle_waiters(0b11), bit);
            assert_eq!(word.idle_waiters(0b11 & !bit), 0);
            assert_eq!(
                word.claimed(bit, 0),
                Word::EMPTY.with_busy(direction).with_listed(other)
            );
            assert_eq!(word.with_busy(direction).idle_waiters(0b11), 0);
        }
        assert!(Word::EMPTY.with_released().has(News::RELEASE));
        assert_eq!(Word::EMPTY.with_released().end(), None);
        for errno in [1, 9, 22, 4095] {
            let word = Word::EMPTY.with_end(End::Failed(errno));
            assert_eq!(word.end(), Some(End::Failed(errno)));
            assert_eq!(
                word.with_end(End::Failed(7)).end(),
                Some(End::Failed(errno))
            );
            assert_eq!(word.edges(Read) | word.edges(Write), Ready::EMPTY);
            assert_eq!(word.tick(), 0);
        }
    }

    #[test]
    fn ends_outrank_each_other_so_that_an_answer_stays() {
        let gone = Word::EMPTY.with_end(End::Gone);
        assert_eq!(gone.end(), Some(End::Gone));
        assert_eq!(
            gone.with_end(End::Deregistered).end(),
            Some(End::Deregistered)
        );
        let failed = Word::EMPTY.with_end(End::Failed(1));
        assert_eq!(failed.with_end(End::Gone).end(), Some(End::Failed(1)));
    }

    #[test]
    fn each_stream_sees_its_own_bits() {
        let word = Word::EMPTY.with_edges(Ready::ALL);
        assert_eq!(word.edges(Read), Ready::ALL - Ready::WRITABLE);
        assert_eq!(
            word.edges(Write),
            Ready::WRITABLE | Ready::WRITE_CLOSED | Ready::HUP | Ready::ERROR
        );
        assert_eq!(
            Word::EMPTY.with_edges(Ready::READ_CLOSED).edges(Write),
            Ready::EMPTY
        );
    }

    #[test]
    fn edges_concern_the_streams_that_report_them() {
        for bits in 0..=Ready::ALL.bits() {
            let ready = Ready::from_bits(bits);
            let word = Word::EMPTY.with_edges(ready);
            for direction in Direction::BOTH {
                assert_eq!(
                    direction.is_in(Word::concerned(ready)),
                    !word.edges(direction).is_empty(),
                    "{ready:?} {direction:?}"
                );
            }
        }
    }

    #[test]
    fn there_is_news_exactly_where_there_is_an_answer() {
        let interests = [Interest::READABLE, Interest::WRITABLE, Interest::PRIORITY];
        for bits in 0..=u64::from(u8::MAX) {
            let word = Word(bits);
            for direction in Direction::BOTH {
                let reports = !word.edges(direction).is_empty();
                assert_eq!(word.has(News::of(direction)), reports, "{bits:#x}");
            }
            for which in 1..8 {
                let chosen = (0..3).filter(|index| which & (1 << index) != 0);
                let interest = chosen.map(|index| interests[index]).reduce(BitOr::bitor);
                let interest = interest.expect("one at least");
                let answers = !word.answers(interest).is_empty();
                let news = word.has(News::for_interest(interest));
                assert_eq!(news, answers, "{bits:#x} {interest:?}");
            }
        }
        for end in [End::Deregistered, End::Gone, End::Failed(1)] {
            let word = Word::EMPTY.with_end(end);
            for direction in Direction::BOTH {
                assert!(word.has(News::of(direction)));
            }
            assert!(
                interests
                    .iter()
                    .all(|&interest| word.has(News::for_interest(interest)))
            );
            assert!(!word.has(News::RELEASE));
        }
    }

    #[test]
    fn hang_ups_stay_and_errors_are_consumed_once_a_stream() {
        let word = Word::EMPTY.with_edges(Ready::HUP | Ready::ERROR | Ready::READABLE);
        let read = word.consumed(Read);
        assert_eq!(
            read.edges(Read),
            Ready::HUP | Ready::READ_CLOSED | Ready::WRITE_CLOSED
        );
        assert!(read.edges(Write).is_error());
        assert!(!read.consumed(Write).edges(Write).is_error());
        assert!(read.consumed(Write).edges(Write).is_hup());
    }

    #[test]
    fn the_tick_wraps_without_touching_anything_else() {
        let word = Word(!(RELEASED | ERRNO_MASK << ERRNO_SHIFT));
        assert_eq!(word.tick(), u32::MAX);
        let next = word.with_edges(Ready::EMPTY);
        assert_eq!(next.tick(), 0);
        assert_eq!(next.0, word.0 & u64::from(u32::MAX));
    }

    #[test]
    fn a_guard_clears_what_it_saw_and_no_hang_up() {
        let word = Word::EMPTY.with_edges(Ready::ALL);
        let seen = word.answers(Interest::READABLE);
        assert!(!seen.is_writable() && !seen.is_priority());
        let word = word.cleared(seen, Interest::READABLE);
        assert_eq!(
            word.answers(Interest::READABLE),
            Ready::HUP | Ready::READ_CLOSED
        );
        assert!(word.answers(Interest::PRIORITY).is_priority());
        assert!(
            word.answers(Interest::WRITABLE)
                .contains(Ready::WRITABLE | Ready::ERROR)
        );
    }
}

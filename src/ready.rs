//! [`Ready`] and [`Interest`]: what a descriptor is ready for, and what a user wants to hear of.

use crate::backend::events;
use std::fmt;
use std::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Sub, SubAssign};

/// A set of readiness bits.
///
/// | bit | meaning | `poll(2)` |
/// | --- | --- | --- |
/// | [`READABLE`](Ready::READABLE) | a read, `accept` or `recv` may make progress | `POLLIN` |
/// | [`WRITABLE`](Ready::WRITABLE) | a write or `send` may make progress, or a connect has ended | `POLLOUT` |
/// | [`PRIORITY`](Ready::PRIORITY) | urgent data, or an exceptional condition such as a pressure-stall event | `POLLPRI` |
/// | [`READ_CLOSED`](Ready::READ_CLOSED) | the peer will send no more | `POLLRDHUP` or `POLLHUP` |
/// | [`WRITE_CLOSED`](Ready::WRITE_CLOSED) | nothing that is written can arrive any more | `POLLHUP` |
/// | [`HUP`](Ready::HUP) | both directions are closed | `POLLHUP` |
/// | [`ERROR`](Ready::ERROR) | an error is pending; for the write end of a pipe: its reader is gone | `POLLERR` |
///
/// ```
/// use uring_reactor::Ready;
///
/// let ready = Ready::READABLE | Ready::READ_CLOSED;
/// assert!(ready.is_readable() && ready.contains(Ready::READ_CLOSED));
/// assert_eq!(ready - Ready::READ_CLOSED, Ready::READABLE);
/// assert_eq!(format!("{ready:?}"), "READABLE | READ_CLOSED");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ready(u8);

impl Ready {
    /// No bit.
    pub const EMPTY: Ready = Ready(0);
    /// Reading may make progress.
    pub const READABLE: Ready = Ready(0x01);
    /// There is urgent data (TCP's out-of-band byte) or another exceptional condition.
    pub const PRIORITY: Ready = Ready(0x02);
    /// Writing may make progress.
    pub const WRITABLE: Ready = Ready(0x04);
    /// An error condition.
    pub const ERROR: Ready = Ready(0x08);
    /// Both directions are closed. Once reported it stays.
    pub const HUP: Ready = Ready(0x10);
    /// The peer will send no more. Once reported it stays in the read stream.
    pub const READ_CLOSED: Ready = Ready(0x20);
    /// Nothing that is written can arrive any more.
    pub const WRITE_CLOSED: Ready = Ready(0x40);
    /// Every bit.
    pub const ALL: Ready = Ready(0x7f);

    pub(crate) const fn from_bits(bits: u8) -> Ready {
        Ready(bits & Ready::ALL.0)
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// What the bits of `poll(2)` mean. All but `POLLRDHUP` have the same place here.
    pub(crate) const fn from_poll(bits: u16) -> Ready {
        const SAME: u16 = events::IN | events::PRI | events::OUT | events::ERR | events::HUP;
        const {
            assert!(events::IN == Ready::READABLE.0 as u16);
            assert!(events::PRI == Ready::PRIORITY.0 as u16);
            assert!(events::OUT == Ready::WRITABLE.0 as u16);
            assert!(events::ERR == Ready::ERROR.0 as u16);
            assert!(events::HUP == Ready::HUP.0 as u16);
        }
        let mut ready = (bits & SAME) as u8;
        if bits & events::RDHUP != 0 {
            ready |= Ready::READ_CLOSED.0;
        }
        Ready(ready)
    }

    /// True if no bit is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True if [`READABLE`](Ready::READABLE) is set.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.contains(Ready::READABLE)
    }

    /// True if [`WRITABLE`](Ready::WRITABLE) is set.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.contains(Ready::WRITABLE)
    }

    /// True if [`PRIORITY`](Ready::PRIORITY) is set.
    #[must_use]
    pub const fn is_priority(self) -> bool {
        self.contains(Ready::PRIORITY)
    }

    /// True if [`READ_CLOSED`](Ready::READ_CLOSED) is set.
    #[must_use]
    pub const fn is_read_closed(self) -> bool {
        self.contains(Ready::READ_CLOSED)
    }

    /// True if [`WRITE_CLOSED`](Ready::WRITE_CLOSED) is set.
    #[must_use]
    pub const fn is_write_closed(self) -> bool {
        self.contains(Ready::WRITE_CLOSED)
    }

    /// True if [`HUP`](Ready::HUP) is set.
    #[must_use]
    pub const fn is_hup(self) -> bool {
        self.contains(Ready::HUP)
    }

    /// True if [`ERROR`](Ready::ERROR) is set.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.contains(Ready::ERROR)
    }

    /// True if every bit of `other` is set. The empty set is contained in every set.
    #[must_use]
    pub const fn contains(self, other: Ready) -> bool {
        self.0 & other.0 == other.0
    }

    /// True if at least one bit of `other` is set.
    #[must_use]
    pub const fn intersects(self, other: Ready) -> bool {
        self.0 & other.0 != 0
    }

    /// What either set has: `self | other`, also for constants.
    #[must_use]
    pub const fn union(self, other: Ready) -> Ready {
        Ready(self.0 | other.0)
    }
}

impl BitOr for Ready {
    type Output = Ready;
    fn bitor(self, other: Ready) -> Ready {
        self.union(other)
    }
}

impl BitOrAssign for Ready {
    fn bitor_assign(&mut self, other: Ready) {
        *self = *self | other;
    }
}

impl BitAnd for Ready {
    type Output = Ready;
    fn bitand(self, other: Ready) -> Ready {
        Ready(self.0 & other.0)
    }
}

impl BitAndAssign for Ready {
    fn bitand_assign(&mut self, other: Ready) {
        *self = *self & other;
    }
}

impl Sub for Ready {
    type Output = Ready;
    fn sub(self, other: Ready) -> Ready {
        Ready(self.0 & !other.0)
    }
}

impl SubAssign for Ready {
    fn sub_assign(&mut self, other: Ready) {
        *self = *self - other;
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Ready::READABLE, "READABLE"),
            (Ready::WRITABLE, "WRITABLE"),
            (Ready::PRIORITY, "PRIORITY"),
            (Ready::READ_CLOSED, "READ_CLOSED"),
            (Ready::WRITE_CLOSED, "WRITE_CLOSED"),
            (Ready::HUP, "HUP"),
            (Ready::ERROR, "ERROR"),
        ];
        list_names(
            f,
            names
                .iter()
                .filter(|(bit, _)| self.contains(*bit))
                .map(|(_, name)| *name),
        )
    }
}

/// What a registration wants to hear of: a non-empty set of [`READABLE`](Interest::READABLE),
/// [`WRITABLE`](Interest::WRITABLE) and [`PRIORITY`](Interest::PRIORITY).
///
/// Errors and hang-ups are reported whatever the interest.
///
/// ```
/// use uring_reactor::Interest;
///
/// let both = Interest::READABLE | Interest::WRITABLE;
/// assert!(both.is_readable() && both.is_writable() && !both.is_priority());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interest(u8);

impl Interest {
    /// Readable events, and the peer's half-close.
    pub const READABLE: Interest = Interest(Ready::READABLE.0);
    /// Writable events.
    pub const WRITABLE: Interest = Interest(Ready::WRITABLE.0);
    /// Priority events. On a ring it costs a poll of its own in the kernel.
    pub const PRIORITY: Interest = Interest(Ready::PRIORITY.0);

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// True if the set has [`READABLE`](Interest::READABLE).
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.contains(Interest::READABLE)
    }

    /// True if the set has [`WRITABLE`](Interest::WRITABLE).
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.contains(Interest::WRITABLE)
    }

    /// True if the set has [`PRIORITY`](Interest::PRIORITY).
    #[must_use]
    pub const fn is_priority(self) -> bool {
        self.contains(Interest::PRIORITY)
    }

    /// True if the set has everything that `other` has.
    #[must_use]
    pub const fn contains(self, other: Interest) -> bool {
        self.0 & other.0 == other.0
    }

    /// What either set has: `self | other`, also for constants.
    ///
    /// ```
    /// use uring_reactor::Interest;
    ///
    /// const BOTH: Interest = Interest::READABLE.union(Interest::WRITABLE);
    /// assert_eq!(BOTH, Interest::READABLE | Interest::WRITABLE);
    /// ```
    #[must_use]
    pub const fn union(self, other: Interest) -> Interest {
        Interest(self.0 | other.0)
    }

    /// The bits that a waiter with this interest is woken for: what it asked for, and whatever
    /// means that waiting for it is over.
    pub(crate) const fn answers(self) -> Ready {
        let mut bits = self.0 | Ready::HUP.0 | Ready::ERROR.0;
        if self.is_readable() || self.is_priority() {
            bits |= Ready::READ_CLOSED.0;
        }
        if self.is_writable() {
            bits |= Ready::WRITE_CLOSED.0;
        }
        Ready(bits)
    }
}

impl BitOr for Interest {
    type Output = Interest;
    fn bitor(self, other: Interest) -> Interest {
        self.union(other)
    }
}

impl BitOrAssign for Interest {
    fn bitor_assign(&mut self, other: Interest) {
        *self = *self | other;
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&Ready(self.0), f)
    }
}

fn list_names<'a>(f: &mut fmt::Formatter<'_>, names: impl Iterator<Item = &'a str>) -> fmt::Result {
    let mut empty = true;
    for name in names {
        if !empty {
            f.write_str(" | ")?;
        }
        f.write_str(name)?;
        empty = false;
    }
    if empty { f.write_str("EMPTY") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_names_the_bits() {
        assert_eq!(format!("{:?}", Ready::EMPTY), "EMPTY");
        assert_eq!(
            format!("{:?}", Ready::ALL),
            "READABLE | WRITABLE | PRIORITY | READ_CLOSED | WRITE_CLOSED | HUP | ERROR"
        );
        assert_eq!(
            format!("{:?}", Interest::READABLE | Interest::PRIORITY),
            "READABLE | PRIORITY"
        );
    }

    #[test]
    fn poll_bits_are_mapped_and_unknown_ones_ignored() {
        assert_eq!(
            Ready::from_poll(events::RDHUP | events::IN),
            Ready::READABLE | Ready::READ_CLOSED
        );
        assert_eq!(Ready::from_poll(!0), Ready::ALL - Ready::WRITE_CLOSED);
        assert_eq!(Ready::from_poll(libc::POLLNVAL as u16), Ready::EMPTY);
    }

    #[test]
    fn every_interest_is_answered_by_errors_and_hang_ups() {
        for interest in [Interest::READABLE, Interest::WRITABLE, Interest::PRIORITY] {
            assert!(interest.answers().contains(Ready::HUP | Ready::ERROR));
        }
        assert!(!Interest::WRITABLE.answers().contains(Ready::READ_CLOSED));
        assert!(!Interest::READABLE.answers().contains(Ready::WRITABLE));
    }
}

//! The intent word: what the user wants of a source, and whether the driver has been told to look.
//!
//! | bit | name | set by, when | cleared by, when |
//! | --- | --- | --- | --- |
//! | 0-2 | interest | `register`; a poll of a direction that was not asked for | nobody |
//! | 3 | `CLOSING` | `deregister`, or drop of the registration | nobody |
//! | 4 | `CLOSE_FD` | a deregistration that hands its descriptor over | nobody |
//! | 5 | `QUEUED` | whoever pushes the source to the intake | the driver, with the same operation that reads the rest |
//! | 6 | `ANNOUNCED` | the first push | nobody |
//! | 7 | `ORPHANED` | whoever finds that no driver will come any more | nobody |
//! | 8 | `TAKEN` | whoever is about to close the descriptor that was handed over | nobody |
//! | 9 | `SCOUTED` | the `register` that has put the descriptor into the scout, while the rest says [`UNHEARD`](Intent::UNHEARD) | whoever takes it out again: the driver, together with `QUEUED`, or `deregister` |
//!
//! One word, so that the driver's "clear `QUEUED`, then read what is wanted" is a single step: a
//! change that it does not see finds `QUEUED` clear and queues the source again.
//!
//! `CLOSE_FD` and `ORPHANED` meet here for the same reason: whoever sets the second of the two
//! learns so from the operation's result, and sees to the descriptor where the driver no longer does.
//!
//! There may be more than one who sees to it. A user that hands a descriptor over can be held up
//! before its push; the driver, which looks at a source for other reasons too, closes the descriptor
//! meanwhile, and ends; then the push fails, and its user finds a descriptor and nobody to close it.
//! So the first to set `TAKEN` closes, and that one only. (`the_end_against_a_descriptor_*` in the
//! models.)

use crate::ready::Interest;
use crate::source::word::Direction;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Intent(pub(crate) u32);

impl Intent {
    const INTEREST: u32 = 0b111;
    pub(crate) const CLOSING: Intent = Intent(1 << 3);
    pub(crate) const CLOSE_FD: Intent = Intent(1 << 4);
    pub(crate) const QUEUED: Intent = Intent(1 << 5);
    pub(crate) const ANNOUNCED: Intent = Intent(1 << 6);
    pub(crate) const ORPHANED: Intent = Intent(1 << 7);
    pub(crate) const TAKEN: Intent = Intent(1 << 8);
    pub(crate) const SCOUTED: Intent = Intent(1 << 9);
    /// What is wanted of a registration for reading that the driver has not looked at. Nothing else
    /// may be left to the scout.
    pub(crate) const UNHEARD: Intent = Intent::of(Interest::READABLE)
        .or(Intent::QUEUED)
        .or(Intent::ANNOUNCED);

    pub(crate) const fn of(interest: Interest) -> Intent {
        Intent(interest.bits() as u32)
    }

    pub(crate) const fn or(self, other: Intent) -> Intent {
        Intent(self.0 | other.0)
    }

    pub(crate) const fn contains(self, other: Intent) -> bool {
        self.0 & other.0 == other.0
    }

    /// What has to be added for a task that asks for this direction.
    pub(crate) const fn missing(self, direction: Direction) -> Intent {
        let (asked, added) = match direction {
            // Somebody who registered for priority events alone has a read stream.
            Direction::Read => (
                Intent::of(Interest::READABLE).or(Intent::of(Interest::PRIORITY)),
                Interest::READABLE,
            ),
            Direction::Write => (Intent::of(Interest::WRITABLE), Interest::WRITABLE),
        };
        if self.0 & asked.0 == 0 {
            Intent::of(added)
        } else {
            Intent(0)
        }
    }

    /// The interest as `Ready`-style bits.
    pub(crate) const fn interest_bits(self) -> u8 {
        (self.0 & Intent::INTEREST) as u8
    }
}

#[cfg(all(test, not(uring_reactor_loom)))]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        let all = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let fields = [
            Intent::of(all),
            Intent::CLOSING,
            Intent::CLOSE_FD,
            Intent::QUEUED,
            Intent::ANNOUNCED,
            Intent::ORPHANED,
            Intent::TAKEN,
            Intent::SCOUTED,
        ];
        let mut union = Intent(0);
        for field in fields {
            assert_eq!(union.0 & field.0, 0);
            union = union.or(field);
            assert!(union.contains(field));
        }
        assert_eq!(union.interest_bits(), all.bits());
    }
}

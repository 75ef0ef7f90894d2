//! In which list of its ring a poll is.
//!
//! A ring has up to 256 of them (`io_poll_req_insert` in Linux 6.18), and the one that a poll is in is the
//! top byte of the product of its `user_data` and a constant. So the top byte of `user_data`, which is not
//! needed for anything else, can choose it.

use crate::backend::Token;

/// `GOLDEN_RATIO_64` of the kernel's `hash_64`.
const MULTIPLIER: u64 = 0x61C8_8646_80B5_83EB;
/// What the last byte of that times this is 1, in a byte.
const INVERSE: u8 = 0xC3;

/// Polls that are armed one after the other and share a list. A removal walks past all younger polls of
/// its list (`io_poll_find` in Linux 6.18). So a server that ends its oldest connections first walks the
/// same list again and again, through the processor's cache instead of through memory. More of them would
/// leave lists unused in a ring that has few polls. Given as the power of two.
pub(super) const RUN: u32 = 4;
/// The same for a child, which has as many lists for a fifth of the polls.
pub(super) const RUN_OF_CHILD: u32 = 3;

impl Token {
    /// The same request, for a poll that is to be in that list.
    pub(super) const fn in_list(self, list: u8) -> Token {
        let bits = self.0 & (u64::MAX >> 8);
        let unsteered = (bits.wrapping_mul(MULTIPLIER) >> 56) as u8;
        let steer = list.wrapping_sub(unsteered).wrapping_mul(INVERSE);
        Token(bits | (steer as u64) << 56)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Tag;

    #[test]
    fn a_token_is_in_the_list_that_was_chosen_and_still_the_same() {
        for list in [0, 1, 100, 255] {
            for (slot, generation) in [(0, 0), (7, 1), (100_000, 15), (u32::MAX, 31)] {
                let token = Token::new(Tag::Main, slot, generation);
                let listed = token.in_list(list);
                assert_eq!(listed.0.wrapping_mul(MULTIPLIER) >> 56, u64::from(list));
                assert_eq!(listed.tagged(Tag::Main), token);
                assert_eq!(listed.in_list(list.wrapping_add(1)).in_list(list), listed);
            }
        }
    }
}

//! A program: the bytes that say what happens next.

use crate::backend::events;
use std::collections::VecDeque;
use std::io;

/// What a program has left to say. Zeros when it has nothing.
pub(super) struct Bytes {
    rest: VecDeque<u8>,
}

impl Bytes {
    pub(super) fn new(bytes: &[u8]) -> Bytes {
        Bytes {
            rest: bytes.iter().copied().collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.rest.pop_front().unwrap_or(0)
    }

    /// One in `n`, as long as there are bytes.
    pub(super) fn one_in(&mut self, n: u8) -> bool {
        !self.is_empty() && self.byte().is_multiple_of(n)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    pub(super) fn word(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.fill_with(|| self.byte());
        u64::from_ne_bytes(bytes)
    }

    /// A result of a poll: mostly bits, some of which no poll has.
    pub(super) fn result(&mut self) -> i32 {
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
    pub(super) fn failure(&mut self) -> i32 {
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
    pub(super) fn error(&mut self) -> io::Result<()> {
        if self.one_in(5) {
            let errno = 1 + i32::from(self.byte() % 133);
            Err(io::Error::from_raw_os_error(errno))
        } else {
            Ok(())
        }
    }
}

//! The seam to the kernel: the few things that a driver asks of it.
//!
//! Three stand behind it: `uring`, `epoll`, and a fake for the model checker. A backend knows
//! neither registrations nor wakers. It takes requests that carry a [`Token`] and answers with
//! [`Completion`]s that carry it back, in the terms of io_uring: a poll, once armed, reports any
//! number of times and then ends, exactly once, with a completion that is not followed by `more`.

#[cfg(uring_reactor_loom)]
pub(crate) mod fake;
#[cfg(uring_reactor_loom)]
pub(crate) use fake::{Bell, choice, process};

#[cfg(not(uring_reactor_loom))]
pub(crate) mod bell;
#[cfg(not(uring_reactor_loom))]
pub(crate) mod choice;
#[cfg(not(uring_reactor_loom))]
pub(crate) mod epoll;
#[cfg(not(uring_reactor_loom))]
pub(crate) mod process;
#[cfg(not(uring_reactor_loom))]
pub(crate) mod scout;
#[cfg(not(uring_reactor_loom))]
pub(crate) mod uring;

#[cfg(not(uring_reactor_loom))]
pub(crate) use bell::Bell;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// The bits of `poll(2)`, which are those of `epoll(7)` and of `IORING_OP_POLL_ADD`.
pub(crate) mod events {
    pub(crate) const IN: u16 = libc::POLLIN as u16;
    pub(crate) const PRI: u16 = libc::POLLPRI as u16;
    pub(crate) const OUT: u16 = libc::POLLOUT as u16;
    pub(crate) const ERR: u16 = libc::POLLERR as u16;
    pub(crate) const HUP: u16 = libc::POLLHUP as u16;
    pub(crate) const RDHUP: u16 = libc::POLLRDHUP as u16;
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    /// The poll that both streams share.
    Main = 1,
    /// The poll for urgent data alone.
    Urgent = 2,
    /// The removal of a poll. Only its failure is reported.
    Cancel = 3,
    /// The closing of a descriptor.
    Close = 4,
    /// The backend's own business.
    Internal = 5,
}

/// Names a request: 32 bits of slot, 21 of generation, 3 of tag, and 8 that are the backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub(crate) u64);

impl Token {
    pub(crate) const MAX_GENERATION: u32 = (1 << 21) - 1;

    pub(crate) const fn new(tag: Tag, slot: u32, generation: u32) -> Token {
        let generation = generation & Token::MAX_GENERATION;
        Token(slot as u64 | (generation as u64) << 32 | (tag as u64) << 53)
    }

    pub(crate) const fn slot(self) -> u32 {
        self.0 as u32
    }

    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & Token::MAX_GENERATION
    }

    pub(crate) const fn tag(self) -> Option<Tag> {
        match (self.0 >> 53) & 0b111 {
            1 => Some(Tag::Main),
            2 => Some(Tag::Urgent),
            3 => Some(Tag::Cancel),
            4 => Some(Tag::Close),
            5 => Some(Tag::Internal),
            _ => None,
        }
    }

    /// The same request under another tag.
    pub(crate) const fn tagged(self, tag: Tag) -> Token {
        Token::new(tag, self.slot(), self.generation())
    }
}

/// What the kernel says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) token: Token,
    /// Poll bits, or a negated error number.
    pub(crate) result: i32,
    /// The poll lives on.
    pub(crate) more: bool,
}

impl Completion {
    /// The last completion of a request that ended with that error.
    pub(crate) fn end(token: Token, errno: i32) -> Completion {
        Completion {
            token,
            result: -errno,
            more: false,
        }
    }
}

/// Where a poll is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Where the backend keeps polls.
    Near,
    /// Where it keeps those that the near tier cannot serve.
    Far,
}

/// Where a poll is in the backend: the answer to [`Kernel::arm`], to be given back with whatever concerns
/// that poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// In which of its rings, if it has several.
    pub(crate) ring: u8,
    /// In which of the ring's lists.
    pub(crate) list: u8,
}

impl Place {
    /// Where every poll of the far tier is.
    pub(crate) const FAR: Place = Place {
        ring: u8::MAX,
        list: 0,
    };
}

/// A kernel that can be asked to watch descriptors.
///
/// Requests may be kept back until the next [`wait`](Kernel::wait). They cannot fail: what goes
/// wrong comes as a completion.
pub(crate) trait Kernel: Send + Sync {
    /// Whether urgent data needs a poll of its own, in the far tier.
    fn separate_urgent(&self) -> bool;

    /// Arms a poll that reports edges. What is ready now is reported too.
    fn arm(&mut self, token: Token, fd: RawFd, events: u16, tier: Tier) -> Place;

    /// Ends the poll of that token, which is in that place.
    fn cancel(&mut self, token: Token, fd: RawFd, place: Place);

    /// Ends a near poll whose removal was answered with `EALREADY`: it was just being woken.
    fn insist(&mut self, token: Token, place: Place);

    /// Closes a descriptor, whose last poll was in that place.
    fn close(&mut self, token: Token, fd: OwnedFd, place: Place);

    /// A descriptor was not closed, for that reason.
    fn not_closed(&mut self, _fd: RawFd, _errno: i32) {}

    /// Hands over all requests and waits until there is a completion, but not longer than that.
    /// Adds to `batch` what has completed. An error does not mean that nothing was added.
    fn wait(&mut self, timeout: Option<Duration>, batch: &mut Vec<Completion>) -> io::Result<()>;

    /// Whether a turn on this thread that must not sleep would find nothing to do, as far as that is
    /// known without a system call.
    fn is_quiet(&self) -> bool {
        false
    }

    /// Whether there are requests that were kept back.
    fn has_requests(&self) -> bool {
        false
    }

    /// Whether a wait would end at once, as far as that is known without a system call. Work that was
    /// announced may come to nothing.
    fn has_news(&self) -> bool;

    /// As [`has_news`](Kernel::has_news), for a turn that spins, and so may make a system call.
    fn look(&self) -> bool {
        self.has_news()
    }

    /// A poll that has ended has reported something.
    fn stray(&mut self) {}

    /// Acts on a completion of the backend's own ([`Tag::Internal`]), which may bring more.
    fn own(&mut self, completion: Completion, batch: &mut Vec<Completion>);

    /// The scout has an entry that nobody can take out: puts another in its place.
    fn renew_scout(&mut self) {}

    /// Whether that file can be polled at all.
    fn is_pollable(&mut self, fd: BorrowedFd<'_>) -> bool;

    /// What this thread must do before anything else.
    fn standing(&self) -> Standing;

    /// Starts, on this thread: before the first wait.
    fn start(&mut self) -> io::Result<()>;

    /// Takes what an instance that can serve no more has still to say.
    fn salvage(&mut self, batch: &mut Vec<Completion>);

    /// Starts over on this thread and in this process. Every poll is gone, without a completion.
    fn rebuild(&mut self) -> io::Result<()>;

    /// The descriptor that another event loop can wait for: readable when a poll of the tier that
    /// [`nest`](Kernel::nest) names has something to say, and when the bell is rung.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Somebody is about to get the descriptor: it shows the bell, at least, from here on. True if it
    /// shows the news of these polls, which are all that are armed, until the next turn.
    fn expose(&self, _polls: &[(RawFd, u16)]) -> io::Result<bool> {
        Ok(true)
    }

    /// From now on the descriptor counts. The tier in which every poll has to be for that.
    fn nest(&mut self) -> io::Result<Tier>;

    /// Hands over all requests. False if there is something to say that the descriptor does not
    /// show.
    fn settle(&mut self) -> io::Result<bool>;

    /// Expects many waits on this thread until [`unpin`](Kernel::unpin). False if it did before, or if it
    /// makes no difference.
    fn pin(&mut self) -> bool {
        false
    }

    /// The reactor may move to another thread.
    fn unpin(&mut self) {}

    /// Whether an instance that was replaced may still hold files of polls that are gone.
    fn is_haunted(&self) -> bool {
        false
    }

    /// The end. Returns when no file is held any more, or after a bound. `clean` says that every
    /// poll has ended.
    fn shut_down(self: Box<Self>, clean: bool);
}

/// How a backend relates to the thread and process that is about to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Ready.
    Ready,
    /// Made, but not started.
    New,
    /// It was started by another thread, or is beyond repair. [`Kernel::salvage`], then
    /// [`Kernel::rebuild`].
    Lost,
    /// It is another process's. Only [`Kernel::rebuild`].
    Inherited,
}

#[cfg(all(test, not(uring_reactor_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_token_round_trips() {
        for tag in [
            Tag::Main,
            Tag::Urgent,
            Tag::Cancel,
            Tag::Close,
            Tag::Internal,
        ] {
            for slot in [0, 1, u32::MAX] {
                for generation in [0, 1, Token::MAX_GENERATION] {
                    let token = Token::new(tag, slot, generation);
                    assert_eq!(token.tag(), Some(tag));
                    assert_eq!(token.slot(), slot);
                    assert_eq!(token.generation(), generation);
                    assert_eq!(token.tagged(Tag::Main).tagged(tag), token);
                }
            }
        }
        assert_eq!(Token(0).tag(), None);
        assert_eq!(Token(u64::MAX).tag(), None);
    }
}

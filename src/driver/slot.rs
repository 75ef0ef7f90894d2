//! A slot: what the driver knows of one registration.

use crate::backend::{Place, Tag, Tier, Token, events};
use crate::ready::{Interest, Ready};
use crate::source::Source;
use crate::source::intent::Intent;
use crate::source::word::End;
use crate::sync::Arc;
use std::io;
use std::os::fd::OwnedFd;

/// Shortages of the kernel's memory that a registration is carried over.
pub(super) const PATIENCE: u8 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    Armed,
    Cancelling,
}

/// One poll of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    pub(super) generation: u32,
    pub(super) events: u16,
    pub(super) state: State,
    /// It has not reported since it was armed.
    pub(super) fresh: bool,
}

impl Watch {
    pub(super) const fn idle(generation: u32) -> Watch {
        Watch {
            generation,
            events: 0,
            state: State::Idle,
            fresh: false,
        }
    }

    /// Reading was asked for, and what is reported of it counts. See `wanted`.
    pub(super) const fn reads(&self) -> bool {
        self.events & events::RDHUP != 0
    }
}

/// How far a registration has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Living,
    /// The end has been seen.
    Ending,
    /// The descriptor was handed over, and the kernel has been asked to close it.
    Closing,
    Closed,
}

/// A registration, as the kernel knows it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) source: Arc<Source>,
    /// The share that came with the end of the registration.
    pub(super) returned: Option<Arc<Source>>,
    pub(super) main: Watch,
    pub(super) urgent: Watch,
    pub(super) stage: Stage,
    /// Of the main poll. The urgent one is always far.
    pub(super) tier: Tier,
    /// The main poll, if it is armed, is in another tier than that.
    pub(super) misplaced: bool,
    /// Where the main poll is, or was.
    pub(super) place: Place,
    /// Known to have a wait queue, so that an early end means an overflow.
    pub(super) pollable: bool,
    /// The kernel's verdict was final.
    pub(super) failed: bool,
    /// It was armed on a ring that was replaced since, and that may hold its file still.
    pub(super) in_old_ring: bool,
    pub(super) shortages: u8,
}

impl Slot {
    pub(super) fn watch(&mut self, tag: Tag) -> &mut Watch {
        if tag == Tag::Urgent {
            &mut self.urgent
        } else {
            &mut self.main
        }
    }

    /// The poll of that token has not ended.
    pub(super) fn is_watching(&self, tag: Tag, token: Token) -> bool {
        let watch = if tag == Tag::Urgent {
            &self.urgent
        } else {
            &self.main
        };
        watch.state != State::Idle && watch.generation == token.generation()
    }

    /// Where a poll is that is armed.
    pub(super) fn place(&self, tag: Tag) -> Place {
        if tag == Tag::Urgent {
            Place::FAR
        } else {
            self.place
        }
    }

    /// No completion is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        self.main.state == State::Idle
            && self.urgent.state == State::Idle
            && self.stage != Stage::Closing
    }

    /// The descriptor, if it was handed over and is to be closed now, and the token for that.
    pub(super) fn close(&mut self, index: u32) -> Option<(Token, OwnedFd)> {
        let fd = self.source.take_fd()?;
        self.stage = Stage::Closing;
        Some((self.close_token(index), fd))
    }

    /// Names the closing of the descriptor. Nothing is armed any more when it is asked for, so the
    /// generation stays.
    pub(super) fn close_token(&self, index: u32) -> Token {
        Token::new(Tag::Close, index, self.main.generation)
    }

    /// The kernel's verdict on the file is final.
    pub(super) fn fail(&mut self, errno: i32) {
        self.failed = true;
        tracing::debug!(
            fd = self.source.fd(),
            error = %io::Error::from_raw_os_error(errno),
            "the kernel cannot watch this descriptor"
        );
        self.source.end(End::Failed(errno));
    }

    /// A poll ended that nobody had cancelled.
    pub(super) fn ended_early(&mut self, result: i32) {
        match result.saturating_neg() {
            // An overflow, or the exit of the thread that submitted it.
            ..=0 | libc::ECANCELED => self.shortages = 0,
            // More wait queues than a ring can watch, of which it has two a poll.
            libc::EINVAL if self.tier == Tier::Near => self.tier = Tier::Far,
            libc::ENOMEM | libc::EAGAIN | libc::EINTR | libc::EBUSY
                if self.shortages < PATIENCE =>
            {
                self.shortages += 1;
            }
            errno => self.fail(errno),
        }
    }

    /// What poll bits mean for this registration.
    pub(super) fn ready(&mut self, tag: Tag, mut bits: u16) -> Ready {
        if !self.watch(tag).reads() {
            // The kernel's poll reports it unasked.
            bits &= !(events::IN | events::RDHUP);
        }
        if tag == Tag::Urgent && self.main.state != State::Idle {
            // The other poll reports the rest.
            bits &= events::PRI;
        }
        Ready::from_poll(bits)
    }
}

/// The events of the main and of the urgent poll.
///
/// `RDHUP` is there if and only if reading is wanted. `IN` goes with `PRI` all the same: some files
/// announce an urgent event with a wake-up for `IN` alone (a pseudo-terminal in packet mode), of which
/// a poll for `PRI` alone would not hear.
pub(super) fn wanted(intent: Intent, separate_urgent: bool) -> (u16, u16) {
    let wants = |interest: Interest| intent.interest_bits() & interest.bits() != 0;
    let mut main = 0;
    if wants(Interest::READABLE) {
        main |= events::IN | events::RDHUP;
    }
    if wants(Interest::WRITABLE) {
        main |= events::OUT;
    }
    let urgent = events::PRI | events::IN;
    match (wants(Interest::PRIORITY), separate_urgent) {
        (false, _) => (main, 0),
        (true, true) => (main, urgent),
        (true, false) => (main | urgent, 0),
    }
}

//! The user's side of a source.

use super::intent::Intent;
use super::word::{Direction, End, News, Word};
use super::{Contention, Event, Parked, Source};
use crate::ready::{Interest, Ready};
use crate::sync::{Arc, Ordering};
use std::io;
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::ops::Deref;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Poll, Waker};

/// A published source, as its registration sees it. It has the strong count that a push to the
/// intake needs, borrowed from the registration.
pub(crate) struct Published<'a> {
    source: ManuallyDrop<Arc<Source>>,
    registration: PhantomData<&'a ()>,
}

impl Deref for Published<'_> {
    type Target = Arc<Source>;

    fn deref(&self) -> &Arc<Source> {
        &self.source
    }
}

impl Published<'_> {
    /// # Safety
    ///
    /// `source` came from `Arc::into_raw`, and its strong count outlives the result.
    pub(crate) unsafe fn from_raw<'a>(source: *const Source) -> Published<'a> {
        // SAFETY: the caller's promise; that count is not given back by us.
        let source = ManuallyDrop::new(unsafe { Arc::from_raw(source) });
        Published {
            source,
            registration: PhantomData,
        }
    }

    /// Takes what the stream has to report, or leaves the waker.
    pub(crate) fn poll(&self, direction: Direction, waker: &Waker) -> Poll<io::Result<Ready>> {
        let answer = self.poll_by(direction, News::of(direction), waker, || {
            self.take(direction)
        });
        if let Poll::Ready(Ok(ready)) = &answer
            && !ready.intersects(direction.asked())
        {
            // A hang-up, of which one hears unasked. What was asked for has to be armed all the same.
            self.add(direction);
        }
        answer
    }

    /// Looks at what answers `interest`, which is of one direction, or leaves the waker in that
    /// direction's cell.
    pub(crate) fn poll_event(
        &self,
        direction: Direction,
        interest: Interest,
        waker: &Waker,
    ) -> Poll<io::Result<Event>> {
        self.poll_by(direction, News::for_interest(interest), waker, || {
            self.peek(interest)
        })
    }

    /// What `answer` says, or the waker into the direction's cell. There is an answer if and only if
    /// there is `news`.
    #[inline]
    fn poll_by<R>(
        &self,
        direction: Direction,
        news: News,
        waker: &Waker,
        answer: impl Fn() -> Option<R>,
    ) -> Poll<R> {
        loop {
            match self.park(direction, waker, Contention::Replace, news) {
                Parked::News => {
                    // Unless somebody else took it first.
                    if let Some(answer) = answer() {
                        return Poll::Ready(answer);
                    }
                }
                Parked::Waiting | Parked::Occupied => {
                    self.want(direction);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Looks at what answers `interest`, or waits beside any number of others: in the cell if it is
    /// free, else in the list. `key` is the waiter's place there; it goes to
    /// [`leave`](Source::leave) when the waiter gives up.
    pub(crate) fn poll_shared(
        &self,
        interest: Interest,
        key: &mut Option<usize>,
        waker: &Waker,
    ) -> Poll<io::Result<Event>> {
        let news = News::for_interest(interest);
        let directions = || {
            let both = Direction::BOTH.into_iter();
            both.filter(|direction| direction.serves(interest))
        };
        let alone = match (directions().next(), directions().nth(1)) {
            (Some(direction), None) => Some(direction),
            _ => None,
        };
        // As often as a guard of somebody else clears the news first.
        loop {
            if let Some(event) = self.peek(interest) {
                self.leave(key);
                return Poll::Ready(event);
            }
            if key.is_none()
                && let Some(direction) = alone
            {
                match self.park(direction, waker, Contention::Yield, news) {
                    Parked::News => continue,
                    Parked::Waiting => break,
                    Parked::Occupied => {}
                }
            }
            let (place, replaced) = self.waiters().enter(*key, interest, waker.clone());
            *key = Some(place);
            drop(replaced);
            // In the list first, `LISTED` second: whoever sees the bit finds the waiter.
            let listed = self.step(|word| {
                let listed = directions().fold(word, Word::with_listed);
                (!word.has(news)).then_some((listed, ()))
            });
            if listed.is_ok() {
                break;
            }
        }
        directions().for_each(|direction| self.want(direction));
        Poll::Pending
    }

    /// A task waits for this direction: sees to it that it is armed.
    fn want(&self, direction: Direction) {
        let intent = Intent(self.intent.load(Ordering::Relaxed));
        let missing = intent.missing(direction);
        if missing != Intent(0) || !intent.contains(Intent::ANNOUNCED) {
            self.request(missing);
        } else if self.shared.bell.is_orphaned() {
            self.orphan();
        } else if intent == Intent::UNHEARD {
            // Whoever means to leave it to the scout may not have come to that.
            self.shared.nudge();
        }
    }

    /// Adds a direction to the interest.
    #[cold]
    fn add(&self, direction: Direction) {
        let missing = Intent(self.intent.load(Ordering::Relaxed)).missing(direction);
        if missing != Intent(0) {
            self.request(missing);
        }
    }

    /// True if that is armed, or about to be.
    #[cfg(any(feature = "futures-io", feature = "tokio"))]
    pub(crate) fn has_interest(&self, interest: Interest) -> bool {
        Intent(self.intent.load(Ordering::Relaxed)).contains(Intent::of(interest))
    }

    /// Adds an interest to what is armed.
    pub(crate) fn add_interest(&self, interest: Interest) {
        let wanted = Intent::of(interest);
        if !Intent(self.intent.load(Ordering::Relaxed)).contains(wanted) {
            self.request(wanted);
        }
    }

    fn is_announced(&self) -> bool {
        Intent(self.intent.load(Ordering::Relaxed)).contains(Intent::ANNOUNCED)
    }

    /// First push of a published source, by whoever meets one that is not announced, so that nobody
    /// depends on the publisher being scheduled again.
    pub(crate) fn announce(&self) {
        if !self.is_announced() {
            self.request(Intent(0));
        }
    }

    /// As [`announce`](Published::announce), by the publisher, who has the reactor's share of the source
    /// and whose descriptor is open.
    pub(crate) fn announce_open(&self, share: Arc<Source>, descriptor: BorrowedFd<'_>) {
        if !self.is_announced() {
            self.request_for(Intent(0), Some(descriptor), || share);
        }
    }

    /// The descriptor is open, and may not be for long: takes it out of the scout. To be called before
    /// [`deregister`](Published::deregister), which rings.
    pub(crate) fn withdraw(&self, descriptor: BorrowedFd<'_>) {
        // Relaxed: whoever deregisters knows what the `register` that set the bit has done.
        let scouted = |intent| Intent(intent).contains(Intent::SCOUTED);
        if scouted(self.intent.load(Ordering::Relaxed))
            && scouted(self.intent.fetch_and(!Intent::SCOUTED.0, Ordering::Relaxed))
        {
            self.shared.bell.scout.remove(descriptor);
        }
    }

    /// Ends the registration from the user's side. With `close`, the descriptor goes to the driver,
    /// which closes it once the kernel's poll is off.
    pub(crate) fn deregister(&self, close: Option<OwnedFd>) {
        tracing::debug!(fd = self.fd, close = close.is_some(), "deregistered");
        let mut bits = Intent::CLOSING;
        if let Some(fd) = close {
            debug_assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&fd), self.fd);
            mem::forget(fd);
            bits = bits.or(Intent::CLOSE_FD);
        }
        // The end first: who waits need not wait for the bell, and a turn that is under way finds that
        // nobody is to be told any more.
        self.end(End::Deregistered);
        self.request(bits);
        self.shared.hold_up();
    }

    /// Adds to the intent and makes the driver look, unless it is about to look anyway.
    fn request(&self, bits: Intent) {
        self.request_for(bits, None, || Arc::clone(&self.source));
    }

    /// As `request`. `descriptor` is the source's, if it is known to be open.
    #[inline]
    fn request_for(
        &self,
        bits: Intent,
        descriptor: Option<BorrowedFd<'_>>,
        share: impl FnOnce() -> Arc<Source>,
    ) {
        let bits = bits.or(Intent::QUEUED).or(Intent::ANNOUNCED);
        // Release: the driver knows what came before. Acquire: `next` is ours when `QUEUED` was clear.
        let before = Intent(self.intent.fetch_or(bits.0, Ordering::AcqRel));
        if before.contains(Intent::ORPHANED) {
            drop(self.take_fd());
        } else if self.shared.bell.is_orphaned() {
            // Its thread is the parent's, and nobody here will ever look at it.
            self.orphan();
        } else if before.contains(Intent::QUEUED) {
            // The reactor may be asleep over it.
            self.shared.nudge();
        } else {
            let scouted = descriptor.filter(|_| before.or(bits) == Intent::UNHEARD);
            if let Err(source) = self.shared.attend(self, share(), scouted) {
                source.abandon();
            }
        }
    }
}

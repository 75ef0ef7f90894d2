//! The intake: a lock-free list of the sources that need the driver's attention.
//!
//! Any thread pushes, only the reactor's thread drains. A source is in the list at most once, which
//! its `QUEUED` bit sees to, so the link can live in the source and a push allocates nothing.
//!
//! The list is a stack that is emptied whole. Nothing is ever unlinked from its middle, so the
//! classic trouble of such stacks (a node that is popped, freed and pushed again between another
//! thread's look and its exchange) cannot come up: a push compares the head only to know what to
//! link to, and the only removal swaps the whole list away. (`two_pushes_against_drain`)
//!
//! A source that was drained may be pushed again at once, while the driver walks on through what it
//! drained with it. So its link is read before its `QUEUED` bit is cleared; and clearing the bit
//! releases what the drain wrote to the link, which whoever sets it next acquires. Without that the
//! next push's link could lie before the last drain's in the order of writes, and the next drain
//! follow the older of the two. (`a_second_push_against_the_drain_of_the_first`)
//!
//! A push may meet the end of the reactor. It is drained with the rest, or finds the list closed and
//! is given back, and then knows what the reactor did before that: no file is held any more.
//! (`a_push_against_close`, `the_end_against_register`)
//!
//! Several threads can register and deregister faster than one drains. The list would grow, each drain
//! be longer than the last, and the memory be used up in minutes: with what has ended, for what lives is
//! the user's to keep. So while a drain of [`MANY`] goes on, whoever ends a registration is held up for a
//! moment; and so, for some moments more, until a drain finds fewer. That is a brake, not a lock: nobody
//! waits for anybody, and before the first turn, on the reactor's own thread and with a reactor that
//! takes no turns there is none.

use crate::source::Source;
use crate::sync::{Arc, AtomicPtr, Ordering, fence, thread};
use std::ptr;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

/// A drain of that many falls behind, as far as one can tell.
const MANY: usize = 8192;
/// How long an end is held up then.
const PAUSE: Duration = Duration::from_millis(1);
/// How many are held up between two drains.
const PAUSES: usize = 256;

#[derive(Debug)]
pub(crate) struct Intake {
    head: AtomicPtr<Source>,
    behind: std::sync::Arc<Behind>,
}

/// Whether the drains have fallen behind. Relaxed, all of it, and none of loom's business: nothing is told
/// by this.
#[derive(Debug)]
struct Behind {
    /// The thread that drains.
    thread: AtomicUsize,
    /// How many ends are to be held up: any number while a drain is under way.
    pauses: AtomicUsize,
}

/// Another number on each thread, as long as that lives.
fn this_thread() -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    HERE.with(|here| ptr::from_ref(here).addr())
}

/// The head after [`Intake::close`]. No source lives there.
fn closed() -> *mut Source {
    ptr::without_provenance_mut(1)
}

impl Intake {
    pub(crate) fn new() -> Intake {
        Intake {
            head: AtomicPtr::new(ptr::null_mut()),
            behind: std::sync::Arc::new(Behind {
                thread: AtomicUsize::new(0),
                pauses: AtomicUsize::new(0),
            }),
        }
    }

    /// The drains have fallen behind, and that is not this thread's doing.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind.pauses.load(Ordering::Relaxed) > 0
            && self.behind.thread.load(Ordering::Relaxed) != this_thread()
    }

    /// Holds the caller up, on account of that.
    #[cold]
    pub(crate) fn pause(&self) {
        let pauses = &self.behind.pauses;
        let left = pauses.load(Ordering::Relaxed);
        if (1..=PAUSES).contains(&left) {
            // Lost updates make it one pause more.
            pauses.store(left - 1, Ordering::Relaxed);
        }
        thread::sleep(PAUSE);
    }

    /// Adds a source. The caller has just set its `QUEUED` bit, and so is the only one to push it.
    /// Gives the source back if no driver will ever drain this intake again.
    pub(crate) fn push(&self, source: Arc<Source>) -> Result<(), Arc<Source>> {
        let node = Arc::into_raw(source).cast_mut();
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == closed() {
                // Pairs with `close`: who hears that nobody will drain knows what came before that.
                fence(Ordering::Acquire);
                // SAFETY: `node` came from `into_raw` above and was not published.
                return Err(unsafe { Arc::from_raw(node) });
            }
            // SAFETY: the list's strong count, which `node` carries, keeps it alive; only the
            // pusher touches the link of a source that is not in the list yet.
            unsafe { &*node }.next.store(head, Ordering::Relaxed);
            // Release: the drainer must see the link, and what the pusher wrote before.
            match self
                .head
                .compare_exchange_weak(head, node, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(actual) => head = actual,
            }
        }
    }

    /// True if a drain would find nothing. A closed intake is empty.
    pub(crate) fn is_empty(&self) -> bool {
        let head = self.head.load(Ordering::Relaxed);
        head.is_null() || head == closed()
    }

    /// True once [`close`](Intake::close) was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.head.load(Ordering::Acquire) == closed()
    }

    /// Takes everything, in the order of the pushes.
    pub(crate) fn drain(&self) -> Drain {
        // A turn with nothing to drain pays for a load, not for an exchange.
        if self.is_empty() {
            return Drain {
                node: ptr::null_mut(),
                behind: None,
            };
        }
        // Only the reactor's thread drains and closes, so the list cannot be closed meanwhile.
        // Acquire: pairs with the pushes.
        self.take(ptr::null_mut(), Ordering::Acquire)
    }

    /// Takes everything and refuses pushes from now on.
    pub(crate) fn close(&self) -> Drain {
        // Release: whoever finds it closed may count on what the reactor did before.
        self.take(closed(), Ordering::AcqRel)
    }

    fn take(&self, replacement: *mut Source, order: Ordering) -> Drain {
        let mut node = self.head.swap(replacement, order);
        if node == closed() {
            node = ptr::null_mut();
        }
        // The stack has the newest push on top. The oldest goes first: registrations are armed,
        // and so reported, in the order in which they were made.
        let mut reversed = ptr::null_mut();
        let mut count = 0_usize;
        while !node.is_null() {
            // SAFETY: every node in the list carries a strong count, and the list is now ours.
            let link = unsafe { &(*node).next };
            let next = link.load(Ordering::Relaxed);
            link.store(reversed, Ordering::Relaxed);
            reversed = node;
            node = next;
            count += 1;
        }
        let behind = (count >= MANY).then(|| std::sync::Arc::clone(&self.behind));
        if let Some(behind) = &behind {
            behind.thread.store(this_thread(), Ordering::Relaxed);
            behind.pauses.store(usize::MAX, Ordering::Relaxed);
        } else if self.behind.pauses.load(Ordering::Relaxed) > 0 {
            self.behind.pauses.store(0, Ordering::Relaxed);
        }
        Drain {
            node: reversed,
            behind,
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        drop(self.close());
    }
}

/// What one drain took.
pub(crate) struct Drain {
    node: *mut Source,
    /// Where it says that it is not done yet.
    behind: Option<std::sync::Arc<Behind>>,
}

impl Drain {
    /// The next few, which stay where they are.
    pub(crate) fn ahead(&self) -> impl Iterator<Item = &Source> {
        let mut node = self.node;
        std::iter::from_fn(move || {
            // SAFETY: null, or a node that carries the list's strong count, which is given away by `next`
            // alone: not while we are borrowed.
            let source = unsafe { node.as_ref() }?;
            node = source.next.load(Ordering::Relaxed);
            Some(source)
        })
    }
}

impl Iterator for Drain {
    type Item = Arc<Source>;

    fn next(&mut self) -> Option<Arc<Source>> {
        if self.node.is_null() {
            return None;
        }
        // SAFETY: the node carries the list's strong count, which goes to the caller here. The link
        // is read before that: once `QUEUED` is cleared, another thread may push the source again.
        let source = unsafe { Arc::from_raw(self.node) };
        self.node = source.next.load(Ordering::Relaxed);
        Some(source)
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.by_ref().for_each(drop);
        if let Some(behind) = &self.behind {
            behind.pauses.store(PAUSES, Ordering::Relaxed);
        }
    }
}

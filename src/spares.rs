//! Spares: sources whose registrations have ended, for registrations to come.
//!
//! A thread that registers with a reactor on another thread would allocate what that one frees. For
//! a general allocator this is the worst case, and it was half the cost of such a call. So a
//! source that nobody has any more goes back here, with its share of the reactor.
//!
//! Only the driver puts, any thread takes. A cell belongs to whoever empties it by an exchange, so two
//! that take never get the same, and a source that was taken, used, and put again is no trouble for
//! somebody who looked before. (`spares::two_registers_after_an_end`,
//! `spares::a_register_against_an_end`)
//!
//! `next` only says where to look, and may be off: then a few looks find nothing, or the driver finds
//! no room. So it is none of loom's business.

use crate::ready::Interest;
use crate::source::Source;
use crate::sync::{Arc, AtomicPtr, Ordering, fence};
use crossbeam_utils::CachePadded;
use std::array;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::AtomicUsize;

/// Enough for what comes and goes in a turn, and little enough to stay in the processor's cache.
const CELLS: usize = 64;

#[derive(Debug)]
pub(crate) struct Spares {
    /// The cell that was filled the longest ago.
    next: AtomicUsize,
    cells: Box<CachePadded<[AtomicPtr<Source>; CELLS]>>,
}

impl Spares {
    pub(crate) fn new() -> Spares {
        let cells = array::from_fn(|_| AtomicPtr::new(ptr::null_mut()));
        Spares {
            next: AtomicUsize::new(0),
            cells: Box::new(CachePadded::new(cells)),
        }
    }

    /// A source for another registration, as [`Source::obtain`].
    pub(crate) fn take(&self, fd: RawFd, interest: Interest) -> Option<[Arc<Source>; 2]> {
        let next = self.next.load(Ordering::Relaxed);
        let cell = &self.cells[next % CELLS];
        if cell.load(Ordering::Relaxed).is_null() {
            return None;
        }
        // Two threads may do this as one, and then one of them finds nothing.
        self.next.store(next.wrapping_add(1), Ordering::Relaxed);
        // It was last used on the reactor's processor, and will be wanted soon.
        Source::fetch(self.cells[next.wrapping_add(1) % CELLS].load(Ordering::Relaxed));
        let source = Spares::empty(cell)?;
        // SAFETY: `put` found its two strong counts to be the only ones, and they are ours now.
        unsafe { (*source).renew(fd, interest) };
        // SAFETY: from the cell.
        Some(unsafe { Spares::shares(source) })
    }

    /// Keeps a source if there is room. Gives it back if somebody else has a share of it, too. Only for
    /// the reactor's thread, which remembers where it was.
    pub(crate) fn put(&self, at: &mut usize, shares: [Arc<Source>; 2]) -> Result<(), Arc<Source>> {
        let [source, other] = shares;
        debug_assert!(Arc::ptr_eq(&source, &other));
        if Arc::strong_count(&source) > 2 {
            return Err(source);
        }
        // Whoever had a share has released it.
        fence(Ordering::Acquire);
        let source = Arc::into_raw(source).cast_mut();
        let _ = Arc::into_raw(other);
        // In any case: what its tasks have left behind is not to be dropped without care.
        // SAFETY: there are no weak counts of sources, and both strong ones are ours.
        unsafe { (*source).reset() };
        let cell = &self.cells[*at % CELLS];
        // On in any case: where it and the takers have lost each other, this is how they meet again.
        *at = at.wrapping_add(1);
        // Nobody else fills it.
        if cell.load(Ordering::Relaxed).is_null() {
            // Release: whoever takes it has it after us.
            cell.store(source, Ordering::Release);
        } else {
            // SAFETY: from `into_raw` above, and in no cell.
            drop(unsafe { Spares::shares(source) });
        }
        Ok(())
    }

    /// What `put` was given.
    ///
    /// # Safety
    ///
    /// The source is as `put` would leave it in a cell, and in none.
    unsafe fn shares(source: *const Source) -> [Arc<Source>; 2] {
        // SAFETY: both strong counts are from `into_raw` in `put`, and the caller's.
        [(); 2].map(|()| unsafe { Arc::from_raw(source) })
    }

    /// Drops them all. Each holds the reactor's shared part, and so this: only the end of the reactor,
    /// which calls it, makes an end of that.
    pub(crate) fn clear(&self) {
        for source in self.cells.iter().filter_map(Spares::empty) {
            // SAFETY: from the cell.
            drop(unsafe { Spares::shares(source) });
        }
    }

    /// What was in the cell, for whoever empties it.
    fn empty(cell: &AtomicPtr<Source>) -> Option<*mut Source> {
        // Acquire: pairs with `put`.
        let source = cell.swap(ptr::null_mut(), Ordering::Acquire);
        (!source.is_null()).then_some(source)
    }
}

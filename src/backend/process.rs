//! Which process and which thread this is, without a system call; and the process's descriptors.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::cell::Cell;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The latest number that a process gave itself: this one, or one from which it was forked.
static LATEST: AtomicU32 = AtomicU32::new(0);

/// A page with the process's number, which a fork leaves zeroed in the child. Null before the first look.
static CANARY: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// What there is in its place if there can be no such page: no process was ever forked.
static STUFFED: AtomicU32 = AtomicU32::new(1);

#[inline]
fn canary() -> &'static AtomicU32 {
    // Acquire: pairs with `hatch`.
    let canary = CANARY.load(Ordering::Acquire);
    if canary.is_null() {
        return hatch();
    }
    // SAFETY: from `hatch`, of which see there.
    unsafe { &*canary }
}

/// The first look at the canary.
#[cold]
fn hatch() -> &'static AtomicU32 {
    let canary = new_page().unwrap_or(ptr::from_ref(&STUFFED).cast_mut());
    // Two threads may come here at once. The page of the second stays behind.
    let none = ptr::null_mut();
    let first = CANARY.compare_exchange(none, canary, Ordering::AcqRel, Ordering::Acquire);
    // SAFETY: a page was zeroed, is aligned, and is never unmapped. So it is valid as an atomic as long as
    // the process lives, which `STUFFED` is, too.
    unsafe { &*first.map_or_else(|theirs| theirs, |_| canary) }
}

fn new_page() -> Option<*mut AtomicU32> {
    // Both calls round it up to a page. To ask for the size of one reads the auxiliary vector, of which
    // valgrind shows a program an incomplete one.
    let length = size_of::<AtomicU32>();
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice, of which nothing else knows.
    unsafe {
        let page = mmap_anonymous(ptr::null_mut(), length, protection, MapFlags::PRIVATE).ok()?;
        madvise(page, length, Advice::LinuxWipeOnFork).ok()?;
        Some(page.cast())
    }
}

/// A number that is another one after a fork, in the child.
///
/// `MADV_WIPEONFORK` (Linux 4.14, `madvise(2)`) tells a child by a load, however it was forked.
#[inline]
pub(crate) fn generation() -> u32 {
    let canary = canary();
    match canary.load(Ordering::Relaxed) {
        0 => renumber(canary),
        generation => generation,
    }
}

/// The first look at the canary in this process.
#[cold]
fn renumber(canary: &AtomicU32) -> u32 {
    let fresh = LATEST.fetch_add(1, Ordering::Relaxed) + 1;
    // Two threads may come here at once. The first gives the number.
    match canary.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => fresh,
        Err(theirs) => theirs,
    }
}

/// The descriptor of this number, which its owner has given away for good. Under the model checker
/// this is where its fate is recorded.
///
/// # Safety
///
/// As of [`OwnedFd::from_raw_fd`].
pub(crate) unsafe fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A number that no two threads of this process share, nor two at different times.
#[inline]
pub(crate) fn thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static THREAD: Cell<u64> = const { Cell::new(0) };
    }
    // Also while the thread ends: what has no destructor is there to the last.
    THREAD.with(|thread| {
        if thread.get() == 0 {
            thread.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        thread.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_differ_and_a_thread_stays_itself() {
        let here = thread();
        assert_eq!(here, thread());
        let there = std::thread::spawn(thread).join().unwrap();
        assert_ne!(here, there);
    }

    #[test]
    fn the_process_stays_itself() {
        assert_eq!(generation(), generation());
    }
}

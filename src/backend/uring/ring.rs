//! One ring: creation, submission, and a view of its completion queue.
//!
//! The `io-uring` crate makes the ring and writes the submissions. The completion queue is read
//! through a mapping of our own, because we publish another head than the crate would.
//!
//! # The lagged head
//!
//! Under `DEFER_TASKRUN` an `io_uring_enter` runs the work of at most `max(20, min_complete)`
//! completions before it returns. Asking for more than is there would block; so `LAG` no-ops are
//! completed before anything else, and the head that the kernel sees stays that far behind what we
//! have consumed. It then counts `LAG` completions as still unread, and one call that asks for
//! `LAG + 1` blocks for one event and harvests `LAG + 1`.

use crate::backend::{Completion, Tag, Token, process};
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use rustix::io_uring::{
    IoringEnterFlags as Flags, io_uring_enter, io_uring_enter_arg, io_uring_getevents_arg,
    io_uring_params, io_uring_ptr,
};
use rustix::time::Timespec;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Entries of a submission queue. A batch larger than that takes more than one call.
const SUBMISSIONS: u32 = 1024;
/// There may be many children, and locked memory is scarce.
const SUBMISSIONS_OF_CHILD: u32 = 256;
/// Entries of a completion queue. The kernel sizes its table of armed polls from it, and 8192 give
/// the largest (`io_ring_ctx_alloc` in Linux 6.18).
const COMPLETIONS: u32 = 8192;
/// The smallest queue that is worth having.
const LEAST_COMPLETIONS: u32 = 256;
/// See the module's documentation.
const LAG: u32 = 1024;

/// What was taken from a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Harvest {
    pub(crate) count: u32,
    /// The last completions of polls among them.
    pub(crate) ended: u32,
}

pub(crate) struct Ring {
    ring: ManuallyDrop<IoUring>,
    view: View,
    /// Completions before this one have been taken.
    consumed: u32,
    /// How far the published head is behind `consumed`.
    lag: u32,
    /// Entries in the submission queue. The kernel takes them during a system call only.
    queued: u32,
    submissions: u32,
    /// What a call that looks for completions is told.
    looks: Flags,
    /// Of the ring's descriptor in the thread's table of registered rings.
    registered: Option<u32>,
    process: u32,
    ended: bool,
}

impl Ring {
    /// A ring that no thread owns yet, as large as the limit of locked memory allows.
    pub(crate) fn new() -> io::Result<Ring> {
        let mut completions = COMPLETIONS;
        loop {
            match Ring::with_sizes(SUBMISSIONS.min(completions / 2), completions) {
                Err(error)
                    if error.raw_os_error() == Some(libc::ENOMEM)
                        && completions > LEAST_COMPLETIONS =>
                {
                    completions /= 2;
                }
                result => return result,
            }
        }
    }

    /// A ring with the largest table of polls, or none.
    pub(crate) fn child() -> io::Result<Ring> {
        Ring::with_sizes(SUBMISSIONS_OF_CHILD, COMPLETIONS)
    }

    /// The smallest ring, to try things out with. The memory of a ring counts against the limit until
    /// the kernel has taken it down, which is some time after its end.
    pub(crate) fn smallest() -> io::Result<Ring> {
        Ring::with_sizes(LEAST_COMPLETIONS / 2, LEAST_COMPLETIONS)
    }

    fn with_sizes(submissions: u32, completions: u32) -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_cqsize(completions)
            .setup_clamp()
            .dontfork();
        // `NO_SQARRAY` came with Linux 6.6.
        let ring = match builder.clone().setup_no_sqarray().build(submissions) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                builder.build(submissions)?
            }
            result => result?,
        };
        let view = View::new(&ring)?;
        let mut looks = Flags::GETEVENTS;
        // Since Linux 6.15. Before that whoever sleeps here with a poll armed counts as waiting for a disk
        // (`io_cqring_wait`), and so an idle server as one that is short of I/O.
        if ring.params().is_feature_no_iowait() {
            looks |= Flags::from_bits_retain(EnterFlags::NO_IOWAIT.bits());
        }
        Ok(Ring {
            looks,
            queued: 0,
            submissions: ring.params().sq_entries(),
            ring: ManuallyDrop::new(ring),
            view,
            consumed: 0,
            lag: 0,
            registered: None,
            process: process::generation(),
            ended: false,
        })
    }

    fn fd(&self) -> i32 {
        self.ring.as_raw_fd()
    }

    /// Makes this thread the ring's owner, for good.
    pub(crate) fn enable(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        let wanted = LAG.min(self.view.entries / 8);
        let mut left = wanted;
        while left > 0 {
            let chunk = left.min(self.free());
            for _ in 0..chunk {
                // SAFETY: a no-op refers to nothing.
                unsafe { self.push(&opcode::Nop::new().build()) };
            }
            if self.enter(0, Some(Duration::ZERO))? == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            left -= chunk;
        }
        // Whatever is there now has been consumed, and lags behind.
        self.consumed = self.view.tail().load(Ordering::Acquire);
        self.lag = self.consumed;
        Ok(())
    }

    /// Room in the submission queue.
    pub(crate) fn free(&self) -> u32 {
        self.submissions - self.queued
    }

    /// Entries that wait for submission.
    pub(crate) fn queued(&self) -> u32 {
        self.queued
    }

    /// Queues an entry. There must be room.
    ///
    /// # Safety
    ///
    /// What the entry refers to must live until it has completed.
    #[inline(always)]
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.ring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "the caller made room");
        self.queued += 1;
    }

    /// Submits what is queued without looking for completions.
    pub(crate) fn submit(&mut self) -> io::Result<u32> {
        self.syscall(0, Flags::empty(), None)
    }

    /// Submits what is queued, runs deferred work, and waits for `want` new completions. Returns how
    /// many entries were submitted.
    #[inline(always)]
    pub(crate) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<u32> {
        let least = self.lag + want;
        // A timeout costs the kernel a timer, so it is given only where one can expire.
        let timeout = timeout.filter(|timeout| want > 0 && timeout.as_secs() < i32::MAX as u64);
        self.syscall(least, self.looks, timeout)
    }

    // Inlined, as all between it and the wait of a turn. The kernel's defence against speculation on
    // returns ("Safe RET", AMD) leaves the processor with none of ours to predict, so that after a system
    // call each return from a frame that was there before it costs some twenty cycles.
    #[inline(always)]
    fn syscall(
        &mut self,
        least: u32,
        mut flags: Flags,
        timeout: Option<Duration>,
    ) -> io::Result<u32> {
        let fd = match self.registered {
            Some(index) => {
                flags |= Flags::REGISTERED_RING;
                index as i32
            }
            None => self.fd(),
        };
        // SAFETY: our ring, which is open, or its index in this thread's table, which is used as such.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let timespec;
        // SAFETY: the argument and its timespec outlive the call, and what the queued entries refer to
        // is the promise of `push`.
        let result = unsafe {
            match timeout {
                None => io_uring_enter(fd, self.queued, least, flags),
                Some(timeout) => {
                    timespec = Timespec::try_from(timeout).unwrap_or_default();
                    let argument = io_uring_getevents_arg {
                        ts: io_uring_ptr::new((&raw const timespec).cast_mut().cast()),
                        ..io_uring_getevents_arg::default()
                    };
                    flags |= Flags::EXT_ARG;
                    io_uring_enter_arg(fd, self.queued, least, flags, Some(&argument))
                }
            }
        };
        let submitted = result?;
        self.queued -= submitted;
        Ok(submitted)
    }

    /// True if a completion can be taken without a system call.
    pub(crate) fn has_completions(&self) -> bool {
        self.view.tail().load(Ordering::Acquire) != self.consumed
    }

    /// True if an `enter` would bring more: deferred work, or completions that found no room.
    pub(crate) fn has_work(&self) -> bool {
        self.view.flags().load(Ordering::Acquire) & (SQ_TASKRUN | SQ_CQ_OVERFLOW) != 0
    }

    pub(crate) fn has_overflowed(&self) -> bool {
        self.view.flags().load(Ordering::Acquire) & SQ_CQ_OVERFLOW != 0
    }

    /// How many completions one `enter` can bring. It may bring a few more.
    pub(crate) fn harvest_limit(&self) -> u32 {
        self.lag.max(20)
    }

    /// Takes all completions. They are copied and given back to the kernel before anybody acts on
    /// them.
    #[inline]
    pub(crate) fn reap(&mut self, batch: &mut Vec<Completion>) -> Harvest {
        let tail = self.view.tail().load(Ordering::Acquire);
        let count = tail.wrapping_sub(self.consumed);
        let mut ended = 0;
        batch.reserve(count as usize);
        for offset in 0..count {
            let completion = self.view.completion(self.consumed.wrapping_add(offset));
            ended += u32::from(ends_poll(completion));
            batch.push(completion);
        }
        if count > 0 {
            self.consumed = tail;
            // Release: the entries have been read.
            let head = tail.wrapping_sub(self.lag);
            self.view.head().store(head, Ordering::Release);
        }
        Harvest { count, ended }
    }

    /// From now on the first work item that comes up is announced by that eventfd, unless the ring is
    /// muted.
    pub(crate) fn announce_by(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.ring.submitter().register_eventfd(eventfd.as_raw_fd())
    }

    /// Whether work items are not to be announced. Relaxed: whoever unmutes has to look for what came
    /// before, behind a fence.
    pub(crate) fn mute(&self, muted: bool) {
        let flags = if muted { CQ_EVENTFD_DISABLED } else { 0 };
        self.view.announcements().store(flags, Ordering::Relaxed);
    }

    /// The ring holds a reference to that file until the last of its requests is gone.
    pub(crate) fn register_file(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.ring.submitter().register_files(&[file.as_raw_fd()])
    }

    /// The end, ahead of the drop: the memory is free for another ring some time after.
    ///
    /// # Safety
    ///
    /// Nothing but the drop may come after it, and [`unregister`](Ring::unregister) before.
    pub(crate) unsafe fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if self.process == process::generation() {
            // SAFETY: dropped here only, and not used after.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
            self.view.unmap();
        } else {
            // The mappings were not inherited (`MADV_DONTFORK`), and what is at their addresses now
            // is somebody else's: they must not be unmapped. The descriptor was inherited, and keeps
            // the parent's ring alive as long as it is open here.
            let fd = self.fd();
            // SAFETY: the ring's descriptor, which nothing closes any more.
            drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
            self.view.forget();
        }
    }

    /// Spares the kernel the look-up of the ring's descriptor, on this thread alone. The ring cannot
    /// be freed before [`unregister`](Ring::unregister), which only this thread can call. Since
    /// Linux 5.18; where it fails, nothing is lost.
    #[cold]
    pub(crate) fn register(&mut self) {
        if self.registered.is_none() {
            let mut update = RingUpdate {
                offset: u32::MAX,
                reserved: 0,
                data: self.fd() as u64,
            };
            if self.update(REGISTER_RING_FDS, &mut update) {
                self.registered = Some(update.offset);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn is_registered(&self) -> bool {
        self.registered.is_some()
    }

    pub(crate) fn unregister(&mut self) {
        if let Some(offset) = self.registered.take() {
            let mut update = RingUpdate {
                offset,
                reserved: 0,
                data: 0,
            };
            self.update(UNREGISTER_RING_FDS, &mut update);
        }
    }

    fn update(&self, operation: u32, update: &mut RingUpdate) -> bool {
        // SAFETY: `update` has the layout of `io_uring_rsrc_update`, of which there is one, and the
        // kernel writes its `offset` during the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.fd(),
                operation,
                std::ptr::from_mut(update),
                1,
            )
        };
        result == 1
    }
}

/// Whether it is the last one of a poll.
fn ends_poll(completion: Completion) -> bool {
    !completion.more && matches!(completion.token.tag(), Some(Tag::Main | Tag::Urgent))
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: nothing is called after a drop.
        unsafe { self.end() };
    }
}

/// `struct io_uring_rsrc_update` of `linux/io_uring.h`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;
const SQ_CQ_OVERFLOW: u32 = 1 << 1;
const SQ_TASKRUN: u32 = 1 << 2;
const CQE_F_MORE: u32 = 1 << 1;
const CQ_EVENTFD_DISABLED: u32 = 1 << 0;
/// Both queues, since Linux 5.4.
const OFF_RINGS: u64 = 0;

/// `struct io_uring_cqe`.
#[repr(C)]
struct Entry {
    user_data: u64,
    result: i32,
    flags: u32,
}

/// The queues' memory, mapped once more.
struct View {
    memory: NonNull<u8>,
    length: usize,
    head: u32,
    tail: u32,
    flags: u32,
    announcements: u32,
    entries_at: u32,
    entries: u32,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for View {}
// SAFETY: a shared view gives access to atomics, and to the entries between head and tail. Those are
// read by `Ring::reap` alone, which is also what lets the kernel overwrite them, and has the ring
// for itself (`&mut`).
unsafe impl Sync for View {}

impl View {
    fn new(ring: &IoUring) -> io::Result<View> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};

        const { assert!(size_of::<io_uring::Parameters>() == size_of::<io_uring_params>()) };
        // SAFETY: `Parameters` is documented to be a transparent wrapper of `io_uring_params`.
        let params = unsafe { &*std::ptr::from_ref(ring.params()).cast::<io_uring_params>() };
        let entries_end =
            params.cq_off.cqes as usize + params.cq_entries as usize * size_of::<Entry>();
        let (protection, flags) = (
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::POPULATE,
        );
        // SAFETY: the ring's descriptor is open as long as `ring` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        // SAFETY: a new mapping of the rings, at an address of the kernel's choice, as long as the
        // kernel said they are. Nothing but atomics and reads of entries that the kernel has
        // published goes through it. It is not to be inherited: a child would write to our rings.
        let memory = unsafe {
            let memory = mmap(
                std::ptr::null_mut(),
                entries_end,
                protection,
                flags,
                fd,
                OFF_RINGS,
            )?;
            if let Err(error) = madvise(memory, entries_end, Advice::LinuxDontFork) {
                let _ = rustix::mm::munmap(memory, entries_end);
                return Err(error.into());
            }
            memory
        };
        Ok(View {
            memory: NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            length: entries_end,
            head: params.cq_off.head,
            tail: params.cq_off.tail,
            flags: params.sq_off.flags,
            announcements: params.cq_off.flags,
            entries_at: params.cq_off.cqes,
            entries: params.cq_entries,
        })
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the offsets are the kernel's, lie within the mapping, and name aligned `u32`s that
        // it accesses atomically; the mapping lives as long as `self`.
        unsafe {
            self.memory
                .add(offset as usize)
                .cast::<AtomicU32>()
                .as_ref()
        }
    }

    fn head(&self) -> &AtomicU32 {
        self.word(self.head)
    }

    fn tail(&self) -> &AtomicU32 {
        self.word(self.tail)
    }

    fn flags(&self) -> &AtomicU32 {
        self.word(self.flags)
    }

    /// The flags of the completion queue, of which we are the writer.
    fn announcements(&self) -> &AtomicU32 {
        self.word(self.announcements)
    }

    /// The completion at that position, which must be between the head and the tail.
    fn completion(&self, position: u32) -> Completion {
        let index = (position & (self.entries - 1)) as usize;
        // SAFETY: the index is within the array, whose length is a power of two, and the kernel does
        // not write an entry between its publication by the tail and our publication of the head.
        let entry = unsafe {
            self.memory
                .add(self.entries_at as usize)
                .cast::<Entry>()
                .add(index)
                .as_ref()
        };
        Completion {
            token: Token(entry.user_data),
            result: entry.result,
            more: entry.flags & CQE_F_MORE != 0,
        }
    }

    /// Nothing but the drop comes after it.
    fn unmap(&mut self) {
        let length = std::mem::take(&mut self.length);
        if length > 0 {
            // SAFETY: our mapping, to which no reference is left.
            let _ = unsafe { rustix::mm::munmap(self.memory.as_ptr().cast(), length) };
        }
    }

    /// The mapping is not there any more.
    fn forget(&mut self) {
        self.length = 0;
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.unmap();
    }
}

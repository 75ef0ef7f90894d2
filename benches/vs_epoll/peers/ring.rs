//! Multishot polls on a ring with nothing around them: the limit of what ours can reach.
//!
//! The ring is set up as ours is, and its descriptor is registered. `user_data` is the key; there is
//! no state for a descriptor, no waker, and no care for polls that the kernel ends.
//!
//! Completions are read through a mapping of their own, so that the head can lag behind: a call then
//! harvests a thousand completions instead of twenty. (Why: `src/backend/uring/ring.rs`.)

use super::{Want, Watcher};
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::io_uring::{IoringEnterFlags, io_uring_params};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 8192;
const LAG: u32 = 1024;
/// In the `user_data` of what is not a poll.
const OTHER: u64 = 1 << 63;
const SQ_TASKRUN: u32 = 1 << 2;
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;

/// Which head the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Exact,
    Lagged,
}

pub(crate) struct Ring {
    ring: IoUring,
    /// Where `ring` is in the table of registered rings. It can be used on this thread only.
    index: Option<u32>,
    queue: CompletionQueue,
    lag: u32,
    head: Head,
    enters: u64,
    /// Polls and closes that will say so when they have ended.
    ending: u64,
    /// Polls that were being woken when they were to be removed, and have to be cancelled.
    insistent: Vec<u64>,
    enabled: bool,
}

impl Ring {
    pub(crate) fn new(head: Head) -> Ring {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_no_sqarray()
            .setup_cqsize(COMPLETIONS);
        let ring: IoUring = builder.build(SUBMISSIONS).expect("a ring can be made");
        Ring {
            queue: CompletionQueue::of(&ring),
            ring,
            index: None,
            lag: 0,
            head,
            enters: 0,
            ending: 0,
            insistent: Vec::new(),
            enabled: false,
        }
    }

    /// The thread that does this owns the ring.
    fn enable(&mut self) {
        self.enabled = true;
        let submitter = self.ring.submitter();
        submitter.register_enable_rings().expect("it was disabled");
        // Spares the kernel a look-up with every call. Where it fails nothing is lost.
        let ring = self.ring.as_raw_fd();
        self.index = update_descriptors(ring, REGISTER_RING_FDS, u32::MAX, ring as u64);
        if self.head == Head::Lagged {
            for _ in 0..LAG {
                self.push(opcode::Nop::new().build().user_data(OTHER));
            }
            self.enter(0);
            let tail = self.queue.tail().load(Ordering::Acquire);
            assert_eq!(tail, LAG, "every no-op has completed");
            self.queue.consumed = tail;
            self.lag = LAG;
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.enabled {
            self.enable();
        }
        if self.ring.submission().is_full() {
            self.enter(0);
        }
        // SAFETY: the entries refer to descriptors only.
        unsafe { self.ring.submission().push(&entry) }.expect("there is room");
    }

    fn enter(&mut self, least: u32) {
        self.enters += 1;
        let queued = self.ring.submission().len() as u32;
        let mut flags = IoringEnterFlags::GETEVENTS;
        let ring = match self.index {
            Some(index) => {
                flags |= IoringEnterFlags::REGISTERED_RING;
                index as i32
            }
            None => self.ring.as_raw_fd(),
        };
        // SAFETY: `ring` is our ring, or its index in this thread's table; no argument is a pointer.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                ring,
                queued,
                self.lag + least,
                flags.bits(),
                std::ptr::null::<libc::c_void>(),
                0,
            )
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}");
        }
    }

    /// One call at most, and none if there is nothing to do.
    fn harvest(&mut self, sleep: bool, mut each: impl FnMut(usize)) -> usize {
        if !self.enabled {
            self.enable();
        }
        let ready = self.queue.has_completions();
        let work = self.queue.flags().load(Ordering::Acquire) & SQ_TASKRUN != 0;
        if sleep && !ready {
            self.enter(1);
        } else if work || !self.ring.submission().is_empty() {
            self.enter(0);
        }
        let mut seen = 0;
        let mut ended = 0;
        self.queue.consume(self.lag, |user_data, result| {
            if user_data & OTHER == 0 && result >= 0 {
                seen += 1;
                each(user_data as usize);
            } else if user_data & OTHER == 0 || result >= 0 {
                ended += 1;
            } else if result == -libc::EALREADY {
                self.insistent.push(user_data & !OTHER);
            }
        });
        self.ending = self.ending.saturating_sub(ended);
        while let Some(key) = self.insistent.pop() {
            let entry = opcode::AsyncCancel::new(key).build();
            self.push(entry.flags(Flags::SKIP_SUCCESS).user_data(OTHER | key));
        }
        seen
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The table would keep the ring, and the files that it watches.
        if let Some(index) = self.index {
            update_descriptors(self.ring.as_raw_fd(), UNREGISTER_RING_FDS, index, 0);
        }
    }
}

impl Watcher for Ring {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want) {
        let events = match want {
            Want::Read => libc::POLLIN | libc::POLLRDHUP,
            Want::Both => libc::POLLIN | libc::POLLRDHUP | libc::POLLOUT,
        };
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events as u32)
            .multi(true)
            .build();
        self.push(entry.user_data(key as u64));
    }

    fn remove(&mut self, key: usize, _: BorrowedFd<'_>) {
        self.ending += 1;
        let entry = opcode::PollRemove::new(key as u64).build();
        let entry = entry.flags(Flags::SKIP_SUCCESS);
        self.push(entry.user_data(OTHER | key as u64));
    }

    /// Both in one submission, if there is room, in the order that is the fastest.
    fn close(&mut self, key: usize, fd: OwnedFd) {
        self.remove(key, fd.as_fd());
        self.ending += 1;
        let close = opcode::Close::new(types::Fd(fd.into_raw_fd())).build();
        self.push(close.user_data(OTHER));
    }

    fn wait(&mut self) -> usize {
        self.harvest(true, |key| {
            black_box(key);
        })
    }

    fn look(&mut self) -> usize {
        self.harvest(false, |key| {
            black_box(key);
        })
    }

    fn wait_for_keys(&mut self, ready: &mut Vec<usize>) {
        self.harvest(true, |key| ready.push(key));
    }

    fn settle(&mut self) {
        loop {
            self.look();
            if self.ending == 0 {
                return;
            }
        }
    }

    fn shares_descriptors(&self) -> bool {
        true
    }

    fn system_calls(&self) -> Option<u64> {
        Some(self.enters)
    }
}

/// Changes this thread's table of registered rings, and returns the index that was changed.
fn update_descriptors(ring: i32, operation: u32, offset: u32, data: u64) -> Option<u32> {
    /// `struct io_uring_rsrc_update`.
    #[repr(C)]
    struct Update {
        offset: u32,
        reserved: u32,
        data: u64,
    }
    let mut update = Update {
        offset,
        reserved: 0,
        data,
    };
    // SAFETY: the kernel reads and writes the one `update` that there is, during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            operation,
            &raw mut update,
            1,
        )
    };
    (result == 1).then_some(update.offset)
}

/// `struct io_uring_cqe`.
#[repr(C)]
struct Entry {
    user_data: u64,
    result: i32,
    flags: u32,
}

/// A view of a ring's completion queue.
struct CompletionQueue {
    memory: NonNull<u8>,
    length: usize,
    params: io_uring_params,
    /// Completions before this one have been seen.
    consumed: u32,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for CompletionQueue {}

impl CompletionQueue {
    fn of(ring: &IoUring) -> CompletionQueue {
        const { assert!(size_of::<io_uring::Parameters>() == size_of::<io_uring_params>()) };
        // SAFETY: `Parameters` is documented to be a transparent wrapper of `io_uring_params`, which
        // is plain numbers.
        let params = unsafe {
            std::ptr::from_ref(ring.params())
                .cast::<io_uring_params>()
                .read()
        };
        let length = params.cq_off.cqes as usize + params.cq_entries as usize * size_of::<Entry>();
        // SAFETY: the descriptor is open while `ring` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        // SAFETY: a new mapping, at an address of the kernel's choice, as long as the kernel said.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                fd,
                rustix::io_uring::IORING_OFF_SQ_RING,
            )
        };
        let memory = memory.expect("a ring can be mapped twice").cast();
        CompletionQueue {
            memory: NonNull::new(memory).expect("a mapping is not at null"),
            length,
            params,
            consumed: 0,
        }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the offsets are the kernel's and name aligned words within the mapping, which
        // lives as long as `self`; the kernel accesses them atomically.
        unsafe { self.memory.byte_add(offset as usize).cast().as_ref() }
    }

    fn tail(&self) -> &AtomicU32 {
        self.word(self.params.cq_off.tail)
    }

    fn flags(&self) -> &AtomicU32 {
        self.word(self.params.sq_off.flags)
    }

    fn has_completions(&self) -> bool {
        self.tail().load(Ordering::Acquire) != self.consumed
    }

    /// Hands out what is new: `user_data` and result. The kernel believes that `lag` completions
    /// fewer have been seen.
    fn consume(&mut self, lag: u32, mut each: impl FnMut(u64, i32)) {
        let tail = self.tail().load(Ordering::Acquire);
        if tail == self.consumed {
            return;
        }
        let mask = self.params.cq_entries - 1;
        let entries = self.params.cq_off.cqes as usize;
        while self.consumed != tail {
            let index = (self.consumed & mask) as usize;
            // SAFETY: within the array, and between head and tail the kernel does not write.
            let entry = unsafe {
                self.memory
                    .byte_add(entries)
                    .cast::<Entry>()
                    .add(index)
                    .as_ref()
            };
            each(entry.user_data, entry.result);
            self.consumed = self.consumed.wrapping_add(1);
        }
        let head = tail.wrapping_sub(lag);
        self.word(self.params.cq_off.head)
            .store(head, Ordering::Release);
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: our mapping, to which no reference is left.
        let unmapped = unsafe { munmap(self.memory.as_ptr().cast(), self.length) };
        unmapped.expect("it was mapped");
    }
}

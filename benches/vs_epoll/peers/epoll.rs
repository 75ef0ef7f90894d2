//! `epoll_wait` in a loop: what everybody else is made of.

use super::{Remote, Shared, Want, Watcher};
use crate::system::{event_fd, signal};
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

const CAPACITY: usize = 1024;
/// The key of the eventfd that stands for a wake.
const WAKE: u64 = u64::MAX;

/// An epoll instance. `epoll_ctl` may be called on any thread.
pub(crate) struct Instance {
    epoll: OwnedFd,
    wake: OwnedFd,
}

impl Instance {
    fn new() -> Instance {
        // SAFETY: takes no pointer.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(epoll >= 0, "{}", io::Error::last_os_error());
        // SAFETY: a new descriptor, which is ours.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let instance = Instance {
            epoll,
            wake: event_fd(),
        };
        instance.enter(WAKE, instance.wake.as_fd(), libc::EPOLLIN);
        instance
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, mut event: libc::epoll_event) {
        // SAFETY: both descriptors are open, and `event` is read during the call only.
        let result = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                operation,
                fd.as_raw_fd(),
                &mut event,
            )
        };
        assert!(result == 0, "{}", io::Error::last_os_error());
    }

    fn enter(&self, key: u64, fd: BorrowedFd<'_>, events: i32) {
        let events = (events | libc::EPOLLET) as u32;
        self.control(
            libc::EPOLL_CTL_ADD,
            fd,
            libc::epoll_event { events, u64: key },
        );
    }

    fn leave(&self, fd: BorrowedFd<'_>) {
        self.control(
            libc::EPOLL_CTL_DEL,
            fd,
            libc::epoll_event { events: 0, u64: 0 },
        );
    }
}

pub(crate) struct Epoll {
    instance: Arc<Instance>,
    events: Vec<libc::epoll_event>,
    calls: u64,
}

impl Epoll {
    pub(crate) fn new() -> Epoll {
        Epoll {
            instance: Arc::new(Instance::new()),
            events: Vec::with_capacity(CAPACITY),
            calls: 0,
        }
    }

    fn harvest(&mut self, timeout: i32, mut each: impl FnMut(usize)) -> usize {
        self.calls += 1;
        // SAFETY: there is room for `CAPACITY` events.
        let count = unsafe {
            libc::epoll_wait(
                self.instance.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                CAPACITY as i32,
                timeout,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
            return 0;
        };
        // SAFETY: the kernel has written so many.
        unsafe { self.events.set_len(count) };
        let mut seen = 0;
        for event in &self.events {
            let key = event.u64;
            if key != WAKE {
                seen += 1;
                each(key as usize);
            }
        }
        seen
    }
}

fn events(want: Want) -> i32 {
    match want {
        Want::Read => libc::EPOLLIN | libc::EPOLLRDHUP,
        Want::Both => libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLOUT,
    }
}

impl Watcher for Epoll {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want) {
        self.calls += 1;
        self.instance.enter(key as u64, fd, events(want));
    }

    fn remove(&mut self, _: usize, fd: BorrowedFd<'_>) {
        self.calls += 1;
        self.instance.leave(fd);
    }

    /// The entry goes with the last descriptor of the file.
    fn close(&mut self, _: usize, fd: OwnedFd) {
        self.calls += 1;
        drop(fd);
    }

    fn wait(&mut self) -> usize {
        self.harvest(-1, |key| {
            black_box(key);
        })
    }

    fn look(&mut self) -> usize {
        self.harvest(0, |key| {
            black_box(key);
        })
    }

    fn wait_for_keys(&mut self, ready: &mut Vec<usize>) {
        self.harvest(-1, |key| ready.push(key));
    }

    fn system_calls(&self) -> Option<u64> {
        Some(self.calls)
    }
}

impl Shared for Epoll {
    type Remote = Arc<Instance>;

    fn remote(&self) -> Arc<Instance> {
        Arc::clone(&self.instance)
    }
}

impl Remote for Arc<Instance> {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want) {
        self.enter(key as u64, fd, events(want));
    }

    fn remove(&mut self, _: usize, fd: BorrowedFd<'_>) {
        self.leave(fd);
    }

    fn wake(&self) {
        signal(&self.wake);
    }
}

//! polling, in its edge-triggered mode.

use super::{Remote, Shared, Want, Watcher};
use polling::{Event, Events, PollMode, Poller};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Polling {
    poller: Arc<Poller>,
    events: Events,
}

impl Polling {
    pub(crate) fn new() -> Polling {
        Polling {
            poller: Arc::new(Poller::new().expect("an epoll instance can be made")),
            events: Events::with_capacity(NonZeroUsize::new(1024).expect("it is not zero")),
        }
    }

    fn harvest(&mut self, timeout: Option<Duration>, mut each: impl FnMut(usize)) -> usize {
        self.events.clear();
        let result = self.poller.wait(&mut self.events, timeout);
        result.expect("an epoll instance can be waited for");
        let mut seen = 0;
        for event in self.events.iter() {
            seen += 1;
            each(event.key);
        }
        seen
    }
}

fn add(poller: &Poller, key: usize, fd: BorrowedFd<'_>, want: Want) {
    let interest = match want {
        Want::Read => Event::readable(key),
        Want::Both => Event::all(key),
    };
    // SAFETY: the workloads close no descriptor that is registered.
    let result = unsafe { poller.add_with_mode(fd.as_raw_fd(), interest, PollMode::Edge) };
    result.expect("the descriptor can be waited for");
}

impl Watcher for Polling {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want) {
        add(&self.poller, key, fd, want);
    }

    fn remove(&mut self, _: usize, fd: BorrowedFd<'_>) {
        self.poller
            .delete(fd)
            .expect("the descriptor is registered");
    }

    /// polling demands that a source is deleted before it is closed.
    fn close(&mut self, key: usize, fd: OwnedFd) {
        self.remove(key, fd.as_fd());
        drop(fd);
    }

    fn wait(&mut self) -> usize {
        self.harvest(None, |key| {
            black_box(key);
        })
    }

    fn look(&mut self) -> usize {
        self.harvest(Some(Duration::ZERO), |key| {
            black_box(key);
        })
    }

    fn wait_for_keys(&mut self, ready: &mut Vec<usize>) {
        self.harvest(None, |key| ready.push(key));
    }
}

impl Shared for Polling {
    type Remote = Arc<Poller>;

    fn remote(&self) -> Arc<Poller> {
        Arc::clone(&self.poller)
    }
}

impl Remote for Arc<Poller> {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want) {
        add(self, key, fd, want);
    }

    fn remove(&mut self, _: usize, fd: BorrowedFd<'_>) {
        self.delete(fd).expect("the descriptor is registered");
    }

    fn wake(&self) {
        self.notify().expect("an eventfd can be written to");
    }
}

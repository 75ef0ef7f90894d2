//! mio, as its documentation shows it.

use super::{Remote, Shared, Want, Watcher};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

const WAKE: Token = Token(usize::MAX);

pub(crate) struct Mio {
    poll: Poll,
    events: Events,
    waker: Arc<mio::Waker>,
    calls: u64,
}

impl Mio {
    pub(crate) fn new() -> Mio {
        let poll = Poll::new().expect("an epoll instance can be made");
        let waker = mio::Waker::new(poll.registry(), WAKE).expect("an eventfd can be made");
        Mio {
            poll,
            events: Events::with_capacity(1024),
            waker: Arc::new(waker),
            calls: 0,
        }
    }

    fn harvest(&mut self, timeout: Option<Duration>, mut each: impl FnMut(usize)) -> usize {
        self.calls += 1;
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return 0,
            result => result.expect("an epoll instance can be waited for"),
        }
        let mut seen = 0;
        for event in &self.events {
            if event.token() != WAKE {
                seen += 1;
                each(event.token().0);
            }
        }
        seen
    }
}

fn add(registry: &Registry, key: usize, fd: BorrowedFd<'_>, want: Want) {
    let interest = match want {
        Want::Read => Interest::READABLE,
        Want::Both => Interest::READABLE | Interest::WRITABLE,
    };
    registry
        .register(&mut SourceFd(&fd.as_raw_fd()), Token(key), interest)
        .expect("the descriptor can be waited for");
}

fn remove(registry: &Registry, fd: BorrowedFd<'_>) {
    registry
        .deregister(&mut SourceFd(&fd.as_raw_fd()))
        .expect("the descriptor is registered");
}

impl Watcher for Mio {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want) {
        self.calls += 1;
        add(self.poll.registry(), key, fd, want);
    }

    fn remove(&mut self, _: usize, fd: BorrowedFd<'_>) {
        self.calls += 1;
        remove(self.poll.registry(), fd);
    }

    /// mio wants a source to be deregistered before it is dropped.
    fn close(&mut self, key: usize, fd: OwnedFd) {
        self.remove(key, fd.as_fd());
        self.calls += 1;
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

    fn system_calls(&self) -> Option<u64> {
        Some(self.calls)
    }
}

/// What another thread needs.
pub(crate) struct Elsewhere {
    registry: Registry,
    waker: Arc<mio::Waker>,
}

impl Shared for Mio {
    type Remote = Elsewhere;

    fn remote(&self) -> Elsewhere {
        let registry = self.poll.registry().try_clone();
        Elsewhere {
            registry: registry.expect("a descriptor can be duplicated"),
            waker: Arc::clone(&self.waker),
        }
    }
}

impl Remote for Elsewhere {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want) {
        add(&self.registry, key, fd, want);
    }

    fn remove(&mut self, _: usize, fd: BorrowedFd<'_>) {
        remove(&self.registry, fd);
    }

    fn wake(&self) {
        self.waker.wake().expect("an eventfd can be written to");
    }
}

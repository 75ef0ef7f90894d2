//! This crate, below tasks: a registration a descriptor, with a waker in each.

use super::{Remote, Shared, Want, Watcher};
use std::cell::RefCell;
use std::io;
use std::ops::Deref;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use std::time::Duration;
use uring_reactor::{Backend, Handle, Interest, LocalReactor, Reactor, Registration, Turn};

/// What the wakers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wakers {
    /// Count.
    Count,
    /// Say which descriptor is ready, as a task's does that goes to a queue.
    Enqueue,
}

/// Whether the reactor is kept where it is.
enum Home {
    Local(LocalReactor),
    Movable(Reactor),
}

impl Home {
    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<Turn> {
        match self {
            Home::Local(reactor) => reactor.turn(timeout),
            Home::Movable(reactor) => reactor.turn(timeout),
        }
    }
}

impl Deref for Home {
    type Target = Reactor;

    fn deref(&self) -> &Reactor {
        match self {
            Home::Local(reactor) => reactor,
            Home::Movable(reactor) => reactor,
        }
    }
}

pub(crate) struct Ours {
    reactor: Home,
    handle: Handle,
    registrations: Registrations,
    kind: Wakers,
    calls: &'static AtomicUsize,
    settled: u64,
    closed: u64,
}

impl Ours {
    pub(crate) fn shared(backend: Backend) -> Ours {
        Ours::new(backend, Wakers::Count, Duration::ZERO)
    }

    pub(crate) fn new(backend: Backend, kind: Wakers, spin: Duration) -> Ours {
        let reactor = Reactor::builder().backend(backend).spin(spin).build();
        let reactor = reactor.expect("this system has the backend").into_local();
        Ours::of(Home::Local(reactor), kind)
    }

    /// One that could be turned by another thread next time.
    pub(crate) fn movable(kind: Wakers) -> Ours {
        let reactor = Reactor::builder().backend(Backend::Uring).build();
        Ours::of(
            Home::Movable(reactor.expect("this system has the backend")),
            kind,
        )
    }

    fn of(reactor: Home, kind: Wakers) -> Ours {
        Ours {
            handle: reactor.handle(),
            reactor,
            registrations: Registrations::default(),
            kind,
            calls: Box::leak(Box::default()),
            settled: 0,
            closed: 0,
        }
    }

    fn turn(&mut self, timeout: Option<Duration>) -> usize {
        self.reactor.turn(timeout).expect("a turn works").events()
    }

    fn waker(&self, key: usize) -> Waker {
        match self.kind {
            Wakers::Count => counts(self.calls),
            Wakers::Enqueue => enqueues(key),
        }
    }
}

impl Watcher for Ours {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want) {
        self.registrations.add(key, fd, want, &self.handle);
    }

    fn remove(&mut self, key: usize, fd: BorrowedFd<'_>) {
        self.registrations.remove(key, fd);
    }

    fn close(&mut self, key: usize, fd: OwnedFd) {
        let mut registration = self.registrations.take(key);
        self.closed += 1;
        let result = registration.deregister_and_close(fd);
        result.expect("it is that descriptor");
    }

    fn wait(&mut self) -> usize {
        self.turn(None)
    }

    fn look(&mut self) -> usize {
        self.turn(Some(Duration::ZERO))
    }

    fn wait_for_keys(&mut self, ready: &mut Vec<usize>) {
        let idle = WOKEN.with_borrow(Vec::is_empty);
        self.turn(if idle { None } else { Some(Duration::ZERO) });
        let begun = ready.len();
        WOKEN.with_borrow_mut(|woken| ready.append(woken));
        for &key in &ready[begun..] {
            // The task runs, and its poll takes the bits. It may be gone.
            if let Some(registration) = self.registrations.get(key) {
                let _ = registration.take_read_ready();
            }
        }
    }

    fn await_again(&mut self, key: usize, want: Want) {
        let Some(registration) = self.registrations.get(key) else {
            return;
        };
        let waker = self.waker(key);
        let mut cx = Context::from_waker(&waker);
        let mut missed = false;
        while let Poll::Ready(ready) = registration.poll_read_ready(&mut cx) {
            ready.expect("it is registered");
            missed = true;
        }
        if want == Want::Both {
            while let Poll::Ready(ready) = registration.poll_write_ready(&mut cx) {
                ready.expect("it is registered");
                missed = true;
            }
        }
        if missed && self.kind == Wakers::Enqueue {
            // The task would go on instead of waiting.
            waker.wake();
        }
    }

    fn settle(&mut self) {
        loop {
            self.look();
            let entered = self.reactor.metrics().enters;
            let before = std::mem::replace(&mut self.settled, entered);
            // A ring is not entered when there is nothing to do; epoll has done everything at once.
            if before == entered || self.reactor.backend() == Backend::Epoll {
                return;
            }
        }
    }

    fn woken(&self) -> Option<usize> {
        (self.kind == Wakers::Count).then(|| self.calls.load(Ordering::Relaxed))
    }

    fn shares_descriptors(&self) -> bool {
        self.reactor.backend() == Backend::Uring
    }

    fn system_calls(&self) -> Option<u64> {
        let metrics = self.reactor.metrics();
        Some(match self.reactor.backend() {
            // There, every entry is a call of its own, and so is every close.
            Backend::Epoll => metrics.enters + metrics.entries + self.closed,
            _ => metrics.enters,
        })
    }
}

/// By key.
#[derive(Default)]
struct Registrations(Vec<Option<Registration>>);

impl Registrations {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want, handle: &Handle) {
        if self.0.len() <= key {
            self.0.resize_with(key + 1, || None);
        }
        let interest = match want {
            Want::Read => Interest::READABLE,
            Want::Both => Interest::READABLE | Interest::WRITABLE,
        };
        // Registered where it stays: moved after that, it would be written narrow and read wide.
        let registration = self.0[key].insert(Registration::new());
        let result = registration.register_interest(&fd, interest, handle);
        assert!(result.expect("the reactor lives"), "it is new");
    }

    fn get(&self, key: usize) -> Option<&Registration> {
        self.0[key].as_ref()
    }

    fn take(&mut self, key: usize) -> Registration {
        let registration = self.0.get_mut(key).and_then(Option::take);
        registration.expect("the key is registered")
    }

    fn remove(&mut self, key: usize, fd: BorrowedFd<'_>) {
        let deregistered = self.take(key).deregister(&fd);
        deregistered.expect("it is that descriptor");
    }
}

/// A handle with the registrations that were made by it.
pub(crate) struct Elsewhere {
    handle: Handle,
    registrations: Registrations,
}

impl Shared for Ours {
    type Remote = Elsewhere;

    fn remote(&self) -> Elsewhere {
        Elsewhere {
            handle: self.handle.clone(),
            registrations: Registrations::default(),
        }
    }
}

impl Remote for Elsewhere {
    fn add(&mut self, key: usize, fd: BorrowedFd<'_>, want: Want) {
        self.registrations.add(key, fd, want, &self.handle);
    }

    fn remove(&mut self, key: usize, fd: BorrowedFd<'_>) {
        self.registrations.remove(key, fd);
    }

    fn wake(&self) {
        self.handle.wake();
    }
}

thread_local! {
    /// The keys of tasks that were woken, where an executor of one thread keeps them. A reactor whose
    /// wakers enqueue has its thread to itself.
    static WOKEN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// What a waker costs is the executor's affair, and not what is measured here. So these are the cheapest
/// there are that do something.
static ENQUEUE: RawWakerVTable = RawWakerVTable::new(
    |key| RawWaker::new(key, &ENQUEUE),
    enqueue,
    enqueue,
    |_key| {},
);

fn enqueue(key: *const ()) {
    WOKEN.with_borrow_mut(|woken| woken.push(key.addr()));
}

/// One that says its key.
fn enqueues(key: usize) -> Waker {
    // SAFETY: the functions may be called on any thread, any number of times: they follow no pointer.
    unsafe { Waker::from_raw(RawWaker::new(ptr::without_provenance(key), &ENQUEUE)) }
}

static COUNT: RawWakerVTable = RawWakerVTable::new(
    |calls| RawWaker::new(calls, &COUNT),
    count,
    count,
    |_calls| {},
);

fn count(calls: *const ()) {
    // SAFETY: `counts` made it of a reference to such a one that lives for ever.
    let calls = unsafe { &*calls.cast::<AtomicUsize>() };
    // The one workload that reads it has its wakers called by one thread. So it needs no locked
    // instruction, which would be a quarter of what is measured there.
    calls.store(calls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// One that counts its calls.
fn counts(calls: &'static AtomicUsize) -> Waker {
    // SAFETY: the functions may be called on any thread, any number of times: what they refer to lives
    // for ever, and is `Sync`.
    unsafe { Waker::from_raw(RawWaker::new(ptr::from_ref(calls).cast(), &COUNT)) }
}

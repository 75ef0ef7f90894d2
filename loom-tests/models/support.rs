//! What every model needs: the explorer, a reactor on a fake kernel, wakers that count.

use crate::backend::events;
use crate::backend::fake::World;
use crate::source::Source;
use crate::source::word::Direction;
use crate::{Error, Handle, Interest, Reactor, Ready, Registration};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

pub(super) use loom::sync::Arc;
pub(super) use loom::thread;

/// A turn that does not sleep.
pub(super) const NOW: Option<Duration> = Some(Duration::ZERO);

pub(super) const IN: u16 = events::IN;
pub(super) const OUT: u16 = events::OUT;

/// How much of a model is explored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// Every interleaving.
    Exhaustive,
    /// Every interleaving with at most so many preemptions: switches away from a thread that could
    /// have gone on. `LOOM_MAX_PREEMPTIONS` overrides it.
    Preemptions(usize),
}

pub(super) use Bound::{Exhaustive, Preemptions};

/// Explores a model, and reports what that took. The model has the name of its test, which libtest
/// gives to the thread.
///
/// With `MODELS_TABLE` in the environment, a line of a table goes to that file as well.
pub(super) fn explore(bound: Bound, model: impl Fn() + Sync + Send + 'static) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or_default();
    let name = name.strip_prefix("models::").unwrap_or(name);
    let mut builder = loom::model::Builder::new();
    // Room for the longest of them. Loom takes a longer one for an endless loop.
    builder.max_branches = builder.max_branches.max(5_000);
    builder.preemption_bound = match bound {
        Exhaustive => None,
        Preemptions(bound) => builder.preemption_bound.or(Some(bound)),
    };
    let bound = match builder.preemption_bound {
        None => "exhaustive".to_owned(),
        Some(bound) => format!("{bound} preemptions"),
    };
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&executions);
    let started = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let executions = executions.load(Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    println!("model {name}: {executions} interleavings, {bound}, {seconds:.1} s");
    if let Some(path) = std::env::var_os("MODELS_TABLE") {
        let row = format!("| `{name}` | {executions} | {bound} | {seconds:.1} |\n");
        let mut table = std::fs::File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        table.write_all(row.as_bytes()).unwrap();
    }
}

/// A waker that counts its calls.
///
/// Loom does not see the count. So a model reads it only when the threads that might call the waker
/// are joined, or where it may be anything.
#[derive(Default)]
pub(super) struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: std::sync::Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Count {
    /// A count and its waker.
    pub(super) fn new() -> (std::sync::Arc<Count>, Waker) {
        let count = std::sync::Arc::new(Count::default());
        (count.clone(), Waker::from(count))
    }

    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// True if nobody holds the waker of this count any more.
pub(super) fn is_forgotten(count: &std::sync::Arc<Count>) -> bool {
    std::sync::Arc::strong_count(count) == 1
}

/// A descriptor that is never used as one.
pub(super) fn fd(number: i32) -> BorrowedFd<'static> {
    // SAFETY: only the fake kernel sees it, which does nothing with it.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// A real descriptor, for models that close it.
pub(super) fn file() -> std::fs::File {
    std::fs::File::open("/dev/null").unwrap()
}

/// A reactor, its handle, and its kernel.
pub(super) fn reactor() -> (Reactor, Handle, Arc<World>) {
    let reactor = Reactor::new().unwrap();
    let handle = reactor.handle();
    let world = Arc::clone(&reactor.shared().bell.world);
    (reactor, handle, world)
}

/// A registration for reading, not yet armed.
pub(super) fn registered(handle: &Handle, number: i32) -> Registration {
    let registration = Registration::new();
    let new = registration.register_interest(&fd(number), Interest::READABLE, handle);
    assert!(new.unwrap());
    registration
}

/// As above, for both directions, which rings for a reactor that sleeps.
pub(super) fn registered_for_both(handle: &Handle, number: i32) -> Registration {
    let registration = Registration::new();
    let new = registration.register_with(&fd(number), handle);
    assert!(new.unwrap());
    registration
}

/// A reactor with a registration for reading that is armed.
pub(super) fn armed(number: i32) -> (Reactor, Handle, Arc<World>, Registration) {
    let (mut reactor, handle, world) = reactor();
    let registration = registered(&handle, number);
    turn(&mut reactor);
    assert_eq!(world.armed(number).len(), 1);
    (reactor, handle, world, registration)
}

/// A registration that has ended, and whose descriptor was handed over to be closed: its source, and
/// the descriptor's number. The kernel has heard of it if it was `armed`.
pub(super) fn handed_over(armed: bool) -> (Reactor, Arc<World>, Arc<Source>, RawFd) {
    let (mut reactor, handle, world) = reactor();
    let io = file();
    let number = io.as_raw_fd();
    let mut registration = Registration::new();
    registration.register_with(&io, &handle).unwrap();
    if armed {
        turn(&mut reactor);
    }
    let source = Arc::clone(&registration.source().unwrap());
    registration.deregister_and_close(io).unwrap();
    (reactor, world, source, number)
}

/// One turn that does not sleep. Returns how many events it dispatched.
pub(super) fn turn(reactor: &mut Reactor) -> usize {
    reactor.turn(NOW).unwrap().events()
}

/// Turns that may sleep, until so many events have come.
pub(super) fn turn_until_events(reactor: &mut Reactor, events: usize) {
    let mut seen = 0;
    while seen < events {
        seen += reactor.turn(None).unwrap().events();
    }
}

/// As many turns as anything takes that is under way.
pub(super) fn settle(reactor: &mut Reactor) {
    for _ in 0..4 {
        turn(reactor);
    }
}

pub(super) fn poll(
    registration: &Registration,
    direction: Direction,
    waker: &Waker,
) -> Poll<io::Result<Ready>> {
    let mut cx = Context::from_waker(waker);
    match direction {
        Direction::Read => registration.poll_read_ready(&mut cx),
        Direction::Write => registration.poll_write_ready(&mut cx),
    }
}

pub(super) fn is_gone<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    let error = result.unwrap_err();
    let reason = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<Error>());
    matches!(reason, Some(Error::ReactorGone))
}

/// The checker is checked: what a load may see of another thread's load and compare-exchange.
#[test]
fn loom_explores_what_our_models_need() {
    use crate::sync::{AtomicU32, Ordering};
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    let seen = std::sync::Arc::new(Mutex::new(BTreeSet::new()));
    let outcomes = std::sync::Arc::clone(&seen);
    explore(Exhaustive, move || {
        let value = Arc::new(AtomicU32::new(0));
        let writer = {
            let value = Arc::clone(&value);
            thread::spawn(move || {
                let old = value.load(Ordering::Relaxed);
                let new = old + 1;
                value.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
            })
        };
        let read = value.load(Ordering::Relaxed);
        assert_eq!(writer.join().unwrap(), Ok(0));
        outcomes.lock().unwrap().insert(read);
    });
    assert_eq!(*seen.lock().unwrap(), BTreeSet::from([0, 1]));
}

//! What every model needs: wakers that count, descriptors that do not exist, and the explorer.

use crate::backend::fake::World;
use crate::{Handle, Reactor, Registration};
use loom::sync::Arc;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

/// Explores `model` with every interleaving of at most `preemptions` preemptions (overridden by
/// `LOOM_MAX_PREEMPTIONS`), and prints how many there were.
pub(crate) fn explore(name: &str, preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    static EXECUTIONS: AtomicUsize = AtomicUsize::new(0);
    let _ = &EXECUTIONS;
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    let bound = builder.preemption_bound;
    let started = std::time::Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!(
        "model {name}: {} interleavings, preemption bound {bound:?}, {:.1} s",
        executions.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64()
    );
}

/// A waker that counts its calls. What it counts is read only after the threads are joined.
#[derive(Default)]
pub(crate) struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    pub(crate) fn new() -> (std::sync::Arc<Count>, Waker) {
        let count = std::sync::Arc::new(Count::default());
        (count.clone(), Waker::from(count))
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A descriptor that is never used as one.
pub(crate) fn fd(number: i32) -> BorrowedFd<'static> {
    // SAFETY: only the fake kernel sees it, which does nothing with it.
    unsafe { BorrowedFd::borrow_raw(number) }
}

pub(crate) fn reactor() -> (Reactor, Handle, Arc<World>) {
    let reactor = Reactor::new().unwrap();
    let handle = reactor.handle();
    let world = Arc::clone(&reactor.shared().bell.world);
    (reactor, handle, world)
}

pub(crate) fn registered(handle: &Handle, number: i32) -> Registration {
    let registration = Registration::new();
    assert!(registration.register_with(&fd(number), handle).unwrap());
    registration
}

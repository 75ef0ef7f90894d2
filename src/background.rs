//! [`Background`]: a reactor on a thread of its own.

use crate::backend::process;
use crate::driver::Driver;
use crate::handle::Handle;
use crate::reactor::Reactor;
use crate::shared::Shared;
use crate::sync::{Arc, AtomicU8, Condvar, Mutex, MutexGuard, Ordering, contain, thread};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A reactor that takes its turns on a thread of its own.
///
/// Dropping it shuts the reactor down and waits for the thread to end. From
/// [`Reactor::background`](crate::Reactor::background). A turn that fails is reported at ERROR, and tried
/// again a tenth of a second later.
///
/// ```
/// use uring_reactor::Reactor;
///
/// # fn main() -> std::io::Result<()> {
/// let background = Reactor::new()?.background()?;
/// let handle = background.handle();
/// // ... register with `handle`, from any thread ...
/// background.shutdown_on_idle().wait();
/// # Ok(())
/// # }
/// ```
#[must_use = "a background reactor that is dropped is shut down"]
pub struct Background {
    /// Taken by whatever ends the `Background`.
    control: Option<Arc<Control>>,
    shared: Arc<Shared>,
}

/// Goes on until it is shut down.
const RUN: u8 = 0;
/// Goes on until there is no registration.
const UNTIL_IDLE: u8 = 1;
/// Ends with the current turn.
const STOP: u8 = 2;

/// How long a failing reactor rests before it tries again.
const REST: Duration = Duration::from_millis(100);

struct Control {
    order: AtomicU8,
    end: Mutex<End>,
    ended: Condvar,
    /// The thread, once it runs, and the process that it is in.
    thread: OnceLock<thread::ThreadId>,
    process: u32,
}

#[derive(Default)]
struct End {
    reached: bool,
    waiting: Option<Waker>,
    /// For whoever waits until the thread has ended, too.
    thread: Option<thread::JoinHandle<()>>,
}

impl Background {
    pub(crate) fn new(reactor: Reactor) -> io::Result<Background> {
        let shared = Arc::clone(reactor.shared());
        let control = Arc::new(Control {
            order: AtomicU8::new(RUN),
            end: Mutex::default(),
            ended: Condvar::new(),
            thread: OnceLock::new(),
            process: process::generation(),
        });
        shared.bell.settle_down();
        let ours = Arc::clone(&control);
        let thread = thread::Builder::new()
            .name("uring-reactor".into())
            .spawn(move || run(reactor, &ours))?;
        control.lock().thread = Some(thread);
        let control = Some(control);
        Ok(Background { control, shared })
    }

    /// A handle of the reactor.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::from_shared(Arc::clone(&self.shared))
    }

    /// Ends the reactor with its current turn. Whoever waits in a registration is woken and told
    /// that the reactor is gone.
    ///
    /// The result completes when that is done. It need not be awaited.
    pub fn shutdown_now(mut self) -> Shutdown {
        self.shut_down(STOP)
    }

    /// Ends the reactor when there is no registration any more, which may be now. One that the kernel has
    /// refused is none.
    ///
    /// The result completes when that is done. It need not be awaited.
    pub fn shutdown_on_idle(mut self) -> Shutdown {
        self.shut_down(UNTIL_IDLE)
    }

    /// Lets the reactor run for as long as the process does.
    pub fn forget(mut self) {
        self.control = None;
    }

    fn shut_down(&mut self, order: u8) -> Shutdown {
        let control = self.control.take();
        if let Some(control) = &control {
            control.order.store(order, Ordering::Release);
            self.shared.wake();
        }
        Shutdown { control }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.control.is_some() {
            self.shut_down(STOP).wait();
        }
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background")
            .field("registered", &self.shared.registered())
            .finish_non_exhaustive()
    }
}

/// The end of a [`Background`]: a future, and something to wait for without an executor.
///
/// In a process that was forked after the reactor was started, where its thread does not exist,
/// there is nothing to wait for: both complete at once.
///
/// Cancel safe; the shutdown goes on, awaited or not.
pub struct Shutdown {
    control: Option<Arc<Control>>,
}

impl Shutdown {
    /// Blocks until the reactor and its thread have ended.
    ///
    /// Returns at once on the reactor's own thread (in a waker, say), which cannot wait for its own
    /// end.
    pub fn wait(self) {
        let Some(control) = &self.control else { return };
        if control.is_elsewhere() {
            let mut end = control.lock();
            while !end.reached {
                end = control
                    .ended
                    .wait(end)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let thread = end.thread.take();
            drop(end);
            if let Some(thread) = thread {
                // A panic in it was reported by the hook, and is not ours.
                let _ = thread.join();
            }
        }
    }
}

impl Future for Shutdown {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(control) = &self.control else {
            return Poll::Ready(());
        };
        if control.is_foreign() {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let mut end = control.lock();
        if end.reached {
            return Poll::Ready(());
        }
        let replaced = end.waiting.replace(waker);
        drop(end);
        drop(replaced);
        Poll::Pending
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reached = self
            .control
            .as_ref()
            .is_none_or(|control| control.is_foreign() || control.lock().reached);
        f.debug_struct("Shutdown")
            .field("reached", &reached)
            .finish()
    }
}

impl Control {
    /// No user code runs under the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread is in another process: that from which this one was forked. It may have had the lock.
    fn is_foreign(&self) -> bool {
        self.process != process::generation()
    }

    /// False on the reactor's own thread, and in a process that does not have that thread.
    fn is_elsewhere(&self) -> bool {
        !self.is_foreign() && self.thread.get() != Some(&thread::current().id())
    }

    fn finish(&self) {
        let waiting = {
            let mut end = self.lock();
            end.reached = true;
            end.waiting.take()
        };
        self.ended.notify_all();
        if let Some(waiting) = waiting {
            contain(|| waiting.wake());
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.is_foreign() {
            // A thread of the parent's, which this process cannot even let go.
            let end = self.end.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(end.thread.take());
        }
    }
}

/// The thread.
fn run(reactor: Reactor, control: &Control) {
    // Also if something unwinds: nobody shall wait for ever.
    struct Finish<'a>(&'a Control);
    impl Drop for Finish<'_> {
        fn drop(&mut self) {
            self.0.finish();
        }
    }
    let _finish = Finish(control);
    // Ends before that.
    let mut reactor = reactor;
    let _ = control.thread.set(thread::current().id());
    let driver = reactor.driver_mut();
    driver.pin();
    while !is_over(control, driver) {
        if let Err(error) = driver.turn(None, || true) {
            tracing::error!(%error, "a background reactor cannot take its turn; trying again");
            thread::sleep(REST);
        }
    }
}

fn is_over(control: &Control, driver: &Driver) -> bool {
    match control.order.load(Ordering::Acquire) {
        STOP => true,
        UNTIL_IDLE => driver.is_settled(),
        _ => false,
    }
}

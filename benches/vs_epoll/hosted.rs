//! A watcher on a thread of its own, for workloads that reach it from here.

use crate::peers::{Make, Remote, Shared};
use crate::system::{PATIENCE, Place, ThreadView, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What the thread does with its watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Sleeps until there is something.
    Parked,
    /// Never sleeps, and has other things to do as well.
    Running,
}

const WORK: Duration = Duration::from_micros(10);

const PAUSED: u32 = 0;
const ACTIVE: u32 = 1;
const ENDED: u32 = 2;

struct State {
    command: AtomicU32,
    /// Waits that have returned.
    waits: AtomicUsize,
    events: AtomicUsize,
}

pub(crate) struct Hosted<W: Shared> {
    pub(crate) remote: W::Remote,
    pub(crate) view: ThreadView,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl<W: Shared> Hosted<W> {
    pub(crate) fn new(watcher: impl Make<W>, mode: Mode) -> Hosted<W> {
        let state = Arc::new(State {
            command: AtomicU32::new(PAUSED),
            waits: AtomicUsize::new(0),
            events: AtomicUsize::new(0),
        });
        let (send, started) = mpsc::channel();
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            pin(Place::Measured);
            let mut watcher = watcher();
            send.send((watcher.remote(), ThreadView::of_this_thread()))
                .expect("the creator waits for it");
            drop(send);
            loop {
                match shared.command.load(Ordering::Acquire) {
                    ENDED => return,
                    // One that runs would disturb the others while they are measured.
                    PAUSED if mode == Mode::Running => thread::park(),
                    _ => {
                        let events = match mode {
                            Mode::Parked => watcher.wait(),
                            Mode::Running => watcher.look(),
                        };
                        add(&shared.events, events);
                        add(&shared.waits, 1);
                        if mode == Mode::Running {
                            work();
                        }
                    }
                }
            }
        });
        let (remote, view) = started.recv().expect("the thread starts");
        Hosted {
            remote,
            view,
            state,
            thread: Some(thread),
        }
    }

    fn command(&self, command: u32) {
        self.state.command.store(command, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    pub(crate) fn start(&self) {
        self.command(ACTIVE);
        let before = self.waits();
        self.remote.wake();
        self.await_waits(before + 1);
    }

    pub(crate) fn pause(&self) {
        self.command(PAUSED);
        self.view.await_sleep();
    }

    /// Waits that have returned so far.
    pub(crate) fn waits(&self) -> usize {
        self.state.waits.load(Ordering::Acquire)
    }

    pub(crate) fn events(&self) -> usize {
        self.state.events.load(Ordering::Acquire)
    }

    pub(crate) fn await_waits(&self, target: usize) {
        spin_until(|| self.waits() >= target);
    }
}

impl<W: Shared> Drop for Hosted<W> {
    fn drop(&mut self) {
        self.command(ENDED);
        self.remote.wake();
        let result = self.thread.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || matches!(result, Some(Ok(()))),
            "the thread panicked"
        );
    }
}

/// What a server does between two turns: a few requests.
fn work() {
    let begun = Instant::now();
    while begun.elapsed() < WORK {
        std::hint::spin_loop();
    }
}

/// There is one writer: no need for a locked instruction in what is measured.
fn add(counter: &AtomicUsize, n: usize) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Release);
}

/// Waits without giving the processor away: what is waited for comes from another one, soon.
pub(crate) fn spin_until(mut done: impl FnMut() -> bool) {
    let mut looks = 0_u32;
    let mut begun = None;
    while !done() {
        std::hint::spin_loop();
        looks += 1;
        if looks.is_multiple_of(1 << 16) {
            let begun = begun.get_or_insert_with(Instant::now);
            assert!(begun.elapsed() < PATIENCE, "what should happen does not");
            // There may be one processor only.
            thread::yield_now();
        }
    }
}

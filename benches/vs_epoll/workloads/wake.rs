//! A parked thread is woken from another: from the call until it says that it is awake.
//!
//! - `wake`: `Handle::wake` against an eventfd in epoll, mio's and polling's ways.
//! - `wake/task`: a task in `block_on`, by its waker; against the `block_on` of tokio and async-io.

use super::Entry;
use crate::hosted::{Hosted, Mode, spin_until};
use crate::measure::{Contest, Side, timed};
use crate::peers::{Make, Peer, Remote, Shared, SharedWorkload};
use crate::runtimes::Runtime;
use crate::system::{Place, ThreadView, pin};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const PEERS: [Peer; 4] = [Peer::Epoll, Peer::Mio, Peer::Polling, Peer::OursOnEpoll];
const RUNTIMES: [Runtime; 2] = [Runtime::Tokio, Runtime::AsyncIo];

pub(super) fn entries() -> Vec<Entry> {
    let wake = Entry::new("wake", true, |name, effort| {
        let contest = Contest {
            workload: name,
            operations: 1,
            peers: &PEERS,
            descriptors: 4,
        };
        contest.run(effort, |peer| peer.shared_side(&Waking))
    });
    let task = Entry::new("wake/task", true, |name, effort| {
        let contest = Contest {
            workload: name,
            operations: 1,
            peers: &RUNTIMES,
            descriptors: 8,
        };
        contest.run(effort, |runtime| Box::new(WakingTask::new(runtime)))
    });
    vec![wake, task]
}

struct Waking;

impl SharedWorkload for Waking {
    fn side<W: Shared>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let host = Hosted::new(watcher, Mode::Parked);
        host.start();
        Box::new(WakingSide { host })
    }
}

struct WakingSide<W: Shared> {
    host: Hosted<W>,
}

impl<W: Shared> Side for WakingSide<W> {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            self.host.view.await_sleep();
            let before = self.host.waits();
            timed(&mut total, || {
                self.host.remote.wake();
                self.host.await_waits(before + 1);
            });
        }
        total
    }
}

/// What the task and its waker's caller share.
#[derive(Default)]
struct Bell {
    waker: Mutex<Option<Waker>>,
    rung: AtomicBool,
    ended: AtomicBool,
    answers: AtomicUsize,
}

impl Bell {
    fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = &*waker {
            waker.wake_by_ref();
        }
    }

    async fn answer_until_ended(&self) {
        while !self.ended.load(Ordering::SeqCst) {
            poll_fn(|cx| {
                let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
                if !waker
                    .as_ref()
                    .is_some_and(|known| known.will_wake(cx.waker()))
                {
                    *waker = Some(cx.waker().clone());
                }
                drop(waker);
                if self.rung.swap(false, Ordering::SeqCst) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            self.answers.fetch_add(1, Ordering::SeqCst);
        }
    }
}

struct WakingTask {
    bell: Arc<Bell>,
    view: ThreadView,
    thread: Option<JoinHandle<()>>,
}

impl WakingTask {
    fn new(runtime: Runtime) -> WakingTask {
        let bell = Arc::new(Bell::default());
        let (send_view, view) = mpsc::channel();
        let shared = Arc::clone(&bell);
        let thread = thread::spawn(move || {
            pin(Place::Measured);
            let view = ThreadView::of_this_thread();
            send_view.send(view).expect("the creator waits for it");
            drop(send_view);
            runtime.block_on(shared.answer_until_ended());
        });
        WakingTask {
            bell,
            view: view.recv().expect("the thread starts"),
            thread: Some(thread),
        }
    }
}

impl Side for WakingTask {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            self.view.await_sleep();
            let before = self.bell.answers.load(Ordering::SeqCst);
            timed(&mut total, || {
                self.bell.ring();
                spin_until(|| self.bell.answers.load(Ordering::SeqCst) > before);
            });
        }
        total
    }
}

impl Drop for WakingTask {
    fn drop(&mut self) {
        self.bell.ended.store(true, Ordering::SeqCst);
        self.bell.ring();
        let result = self.thread.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || matches!(result, Some(Ok(()))),
            "the thread panicked"
        );
    }
}

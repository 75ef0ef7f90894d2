//! Who has registered, what each has heard, and whether that was right.

use super::kernel::Told;
use crate::ready::{Interest, Ready};
use crate::registration::Registration;
use crate::source::Source;
use crate::sync::{Arc, Ordering};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicUsize;
use std::task::{Wake, Waker};

/// What stays in a stream once it was reported.
fn sticky(direction: usize) -> Ready {
    let stays = Ready::HUP | Ready::WRITE_CLOSED;
    [stays | Ready::READ_CLOSED, stays][direction]
}

#[derive(Default)]
pub(super) struct Calls(AtomicUsize);

impl Wake for Calls {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One direction of a registration, as its task sees it.
#[derive(Default)]
pub(super) struct Task {
    pub(super) calls: std::sync::Arc<Calls>,
    pub(super) waits: bool,
}

impl Task {
    pub(super) fn calls(&self) -> usize {
        self.calls.0.load(Ordering::Relaxed)
    }

    /// It was told to wait.
    pub(super) fn wait(&mut self) {
        if !self.waits {
            self.waits = true;
            self.calls.0.store(0, Ordering::Relaxed);
        }
    }
}

/// A registration and all that is known of it.
pub(super) struct User {
    pub(super) id: usize,
    pub(super) registration: Option<Registration>,
    pub(super) io: Option<OwnedFd>,
    pub(super) source: Arc<Source>,
    pub(super) tasks: [Task; 2],
    pub(super) ended: bool,
    /// Its file was let go.
    pub(super) released: bool,
}

impl User {
    pub(super) fn new(id: usize, registration: Registration, io: OwnedFd) -> User {
        User {
            id,
            source: Arc::clone(&registration.source().unwrap()),
            registration: Some(registration),
            io: Some(io),
            tasks: Default::default(),
            ended: false,
            released: false,
        }
    }

    /// It has not ended, and the kernel has not refused it.
    pub(super) fn is_living(&self) -> bool {
        let news = self.source.peek(Interest::READABLE);
        !self.ended && news.is_none_or(|news| news.is_ok())
    }

    pub(super) fn is_released(&self) -> bool {
        self.source.poll_released(Waker::noop()).is_ready()
    }

    /// What a readiness call answered, against what there was to hear.
    pub(super) fn judge(
        &mut self,
        direction: usize,
        outcome: io::Result<Option<Ready>>,
        told: &mut Told,
    ) {
        let heard = match outcome {
            Ok(heard) => heard.unwrap_or(Ready::EMPTY),
            Err(error) => {
                assert!(self.ended || told.refused, "{error:?}");
                return;
            }
        };
        assert!(!self.ended, "heard {heard:?} after its end");
        let (must, may) = (told.must[direction], told.may[direction]);
        assert!(
            told.refused || heard.contains(must),
            "heard {heard:?}, had to hear {must:?}"
        );
        assert!(may.contains(heard), "heard {heard:?}, could hear {may:?}");
        told.must[direction] = heard & sticky(direction);
        told.may[direction] = heard & sticky(direction);
        let task = &mut self.tasks[direction];
        if !heard.is_empty() {
            assert!(!task.waits || task.calls() == 1, "not called for {heard:?}");
            task.waits = false;
        }
    }

    /// Who waits was called once if there is something to hear, and not if there is nothing.
    pub(super) fn check_calls(&self, told: &Told) {
        for (direction, task) in self.tasks.iter().enumerate() {
            if !task.waits || self.ended {
                continue;
            }
            let calls = task.calls();
            assert!(calls <= 1, "called {calls} times");
            if !told.refused {
                let (must, may) = (told.must[direction], told.may[direction]);
                assert!(must.is_empty() || calls == 1, "not called for {must:?}");
                assert!(!may.is_empty() || calls == 0, "called for nothing");
            }
        }
    }

    /// Nobody else holds what this user had.
    pub(super) fn leave(&mut self) {
        self.registration = None;
        assert_eq!(Arc::strong_count(&self.source), 1, "a source is left over");
        for task in &self.tasks {
            let count = std::sync::Arc::strong_count(&task.calls);
            assert_eq!(count, 1, "a waker is left over");
        }
    }
}

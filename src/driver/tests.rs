//! The driver against a kernel that says whatever a test wants it to.

use super::slot::PATIENCE;
use super::*;
use crate::backend::{Bell, Place, Tag, Token, events};
use crate::error::Error;
use crate::handle::Handle;
use crate::ready::{Interest, Ready};
use crate::registration::Registration;
use std::fs::File;
use std::io::Read;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Arm(Token, u16, Tier),
    Cancel(Token),
    Insist(Token),
    Close,
}

#[derive(Default)]
struct State {
    requests: Vec<Request>,
    answers: Vec<Completion>,
    unpollable: bool,
    lost: bool,
}

#[derive(Clone, Default)]
struct Script(std::sync::Arc<Mutex<State>>);

impl Script {
    fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.0.lock().unwrap().requests)
    }

    fn answer(&self, token: Token, result: i32, more: bool) {
        let completion = Completion {
            token,
            result,
            more,
        };
        self.0.lock().unwrap().answers.push(completion);
    }

    fn ask(&self, request: Request) {
        self.0.lock().unwrap().requests.push(request);
    }
}

impl Kernel for Script {
    fn separate_urgent(&self) -> bool {
        true
    }

    fn arm(&mut self, token: Token, _: RawFd, events: u16, tier: Tier) -> Place {
        self.ask(Request::Arm(token, events, tier));
        Place::default()
    }

    fn cancel(&mut self, token: Token, _: RawFd, _: Place) {
        self.ask(Request::Cancel(token));
    }

    fn insist(&mut self, token: Token, _: Place) {
        self.ask(Request::Insist(token));
    }

    fn close(&mut self, _: Token, _: OwnedFd, _: Place) {
        self.ask(Request::Close);
    }

    fn wait(&mut self, _: Option<Duration>, batch: &mut Vec<Completion>) -> io::Result<()> {
        batch.append(&mut self.0.lock().unwrap().answers);
        Ok(())
    }

    fn has_news(&self) -> bool {
        !self.0.lock().unwrap().answers.is_empty()
    }

    fn own(&mut self, _: Completion, _: &mut Vec<Completion>) {}

    fn is_pollable(&mut self, _: BorrowedFd<'_>) -> bool {
        !self.0.lock().unwrap().unpollable
    }

    fn standing(&self) -> Standing {
        if self.0.lock().unwrap().lost {
            Standing::Lost
        } else {
            Standing::Ready
        }
    }

    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn salvage(&mut self, batch: &mut Vec<Completion>) {
        batch.append(&mut self.0.lock().unwrap().answers);
    }

    fn rebuild(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().lost = false;
        Ok(())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        unreachable!("no test nests this reactor")
    }

    fn nest(&mut self) -> io::Result<Tier> {
        Ok(Tier::Far)
    }

    fn settle(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn shut_down(self: Box<Self>, _: bool) {}
}

struct Bench {
    driver: Driver,
    kernel: Script,
    handle: Handle,
    file: File,
}

/// A driver that was not shut down would leave its sources behind.
impl Drop for Bench {
    fn drop(&mut self) {
        self.end();
    }
}

impl Bench {
    fn new() -> Bench {
        let shared = Arc::new(Shared::new(Bell::new().unwrap()));
        let kernel = Script::default();
        Bench {
            driver: Driver::new(
                Box::new(kernel.clone()),
                Arc::clone(&shared),
                Duration::ZERO,
            ),
            kernel,
            handle: Handle::from_shared(shared),
            file: File::open("/dev/zero").unwrap(),
        }
    }

    /// Shuts the driver down. Another takes its place.
    fn end(&mut self) {
        let shared = Arc::new(Shared::new(Bell::new().unwrap()));
        let other = Driver::new(Box::new(Script::default()), shared, Duration::ZERO);
        std::mem::replace(&mut self.driver, other).shut_down();
    }

    fn turn(&mut self) -> usize {
        self.driver.turn(NOW, || true).unwrap()
    }

    /// A registration that is armed, and its token.
    fn armed(&mut self) -> (Registration, Token) {
        let registration = Registration::new();
        assert!(
            registration
                .register_with(&self.file, &self.handle)
                .unwrap()
        );
        self.turn();
        let token = self.arming();
        (registration, token)
    }

    /// The token of the one request, which is to arm.
    fn arming(&mut self) -> Token {
        match self.kernel.requests()[..] {
            [Request::Arm(token, _, _)] => token,
            ref other => panic!("expected one arming, got {other:?}"),
        }
    }

    /// A registration whose poll has ended and whose descriptor is being closed, under this token.
    fn closing(&mut self) -> Token {
        let (ours, _) = UnixStream::pair().unwrap();
        let mut registration = Registration::new();
        registration.register_with(&ours, &self.handle).unwrap();
        self.turn();
        let token = self.arming();
        registration.deregister_and_close(ours).unwrap();
        self.turn();
        assert_eq!(
            self.kernel.requests(),
            [Request::Cancel(token), Request::Close]
        );
        self.answered(token, -libc::ECANCELED, false);
        token.tagged(Tag::Close)
    }

    fn answered(&mut self, token: Token, result: i32, more: bool) -> usize {
        self.kernel.answer(token, result, more);
        self.turn()
    }
}

const IN: i32 = events::IN as i32;

#[test]
fn a_poll_that_the_kernel_ended_is_armed_anew_under_a_new_generation() {
    let mut bench = Bench::new();
    let (registration, first) = bench.armed();
    assert_eq!(bench.answered(first, IN, false), 1);
    let second = bench.arming();
    assert_eq!(second.slot(), first.slot());
    assert_ne!(second.generation(), first.generation());
    assert!(registration.take_read_ready().unwrap().is_some());
    assert_eq!(bench.handle.metrics().rearms, 1);
}

#[test]
fn completions_of_the_past_and_of_strangers_reach_nobody() {
    let mut bench = Bench::new();
    let (registration, first) = bench.armed();
    bench.answered(first, -libc::ECANCELED, false);
    let second = bench.arming();
    for token in [
        first,
        Token::new(Tag::Main, 77, 1),
        second.tagged(Tag::Urgent),
        Token::new(Tag::Cancel, second.slot(), 1),
        Token::new(Tag::Close, second.slot(), 0),
        Token(0),
        Token(u64::MAX),
    ] {
        assert_eq!(bench.answered(token, IN, false), 0, "{token:?}");
        assert_eq!(bench.kernel.requests(), [], "{token:?}");
    }
    assert_eq!(registration.take_read_ready().unwrap(), None);
    assert_eq!(bench.answered(second, IN, true), 1);
}

#[test]
fn what_a_ring_refuses_goes_to_the_far_tier_once() {
    let mut bench = Bench::new();
    let (registration, token) = bench.armed();
    bench.answered(token, -libc::EINVAL, false);
    let token = match bench.kernel.requests()[..] {
        [Request::Arm(token, _, Tier::Far)] => token,
        ref other => panic!("{other:?}"),
    };
    bench.answered(token, -libc::EINVAL, false);
    assert_eq!(bench.kernel.requests(), []);
    let error = registration.take_read_ready().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_shortage_is_waited_out_but_not_for_ever() {
    let mut bench = Bench::new();
    let (registration, mut token) = bench.armed();
    for _ in 0..PATIENCE {
        bench.answered(token, -libc::ENOMEM, false);
        token = bench.arming();
        assert_eq!(registration.take_read_ready().unwrap(), None);
    }
    bench.answered(token, -libc::ENOMEM, false);
    assert_eq!(bench.kernel.requests(), []);
    assert!(registration.take_read_ready().is_err());
}

#[test]
fn a_file_without_a_wait_queue_is_refused_and_never_reported_ready() {
    let mut bench = Bench::new();
    bench.kernel.0.lock().unwrap().unpollable = true;
    let (registration, token) = bench.armed();
    assert_eq!(bench.answered(token, IN, false), 0);
    assert_eq!(bench.kernel.requests(), []);
    let error = registration.take_read_ready().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn a_slot_is_free_at_its_last_completion_and_not_before() {
    let mut bench = Bench::new();
    let (mut registration, token) = bench.armed();
    registration.deregister(&bench.file).unwrap();
    bench.turn();
    assert_eq!(bench.kernel.requests(), [Request::Cancel(token)]);
    assert_eq!(bench.driver.slots.len(), 1);
    // A last event on the way reaches nobody.
    assert_eq!(bench.answered(token, IN, true), 0);
    assert_eq!(bench.driver.slots.len(), 1);
    bench.answered(token, -libc::ECANCELED, false);
    assert_eq!(bench.driver.slots.len(), 0);
    bench.answered(token, -libc::ECANCELED, false);
    let (registration, next) = bench.armed();
    assert_eq!(next.slot(), token.slot());
    // What comes once more for the slot's last owner does not reach this one.
    assert_eq!(bench.answered(token, IN, true), 0);
    assert_eq!(bench.answered(token, IN, false), 0);
    assert_eq!(registration.take_read_ready().unwrap(), None);
    assert_eq!(bench.kernel.requests(), []);
    assert_eq!(bench.answered(next, IN, true), 1);
}

#[test]
fn a_close_that_completes_twice_does_not_complete_another() {
    let mut bench = Bench::new();
    let first = bench.closing();
    bench.answered(first, 0, false);
    assert_eq!(bench.driver.slots.len(), 0);
    let second = bench.closing();
    bench.answered(first, 0, false);
    assert_eq!(bench.driver.slots.len(), 1);
    bench.answered(second, 0, false);
    assert_eq!(bench.driver.slots.len(), 0);
}

#[test]
fn a_number_that_is_no_error_s_ends_a_poll_like_one() {
    let mut bench = Bench::new();
    let (registration, token) = bench.armed();
    assert_eq!(bench.answered(token, i32::MIN, false), 0);
    assert!(registration.take_read_ready().is_err());
}

#[test]
fn a_cancel_that_came_too_late_is_repeated() {
    let mut bench = Bench::new();
    let (mut registration, token) = bench.armed();
    registration.deregister(&bench.file).unwrap();
    bench.turn();
    bench.kernel.requests();
    bench.answered(token.tagged(Tag::Cancel), -libc::EALREADY, false);
    assert_eq!(bench.kernel.requests(), [Request::Insist(token)]);
    // One that found nothing is not: the end is on its way.
    bench.answered(token.tagged(Tag::Cancel), -libc::ENOENT, false);
    assert_eq!(bench.kernel.requests(), []);
}

#[test]
fn a_descriptor_that_was_handed_over_is_closed_behind_the_cancel() {
    let mut bench = Bench::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut registration = Registration::new();
    registration.register_with(&ours, &bench.handle).unwrap();
    bench.turn();
    let token = bench.arming();
    registration.deregister_and_close(ours).unwrap();
    bench.turn();
    assert_eq!(
        bench.kernel.requests(),
        [Request::Cancel(token), Request::Close]
    );
    // The script drops what it is given.
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    bench.answered(token, -libc::ECANCELED, false);
    assert_eq!(
        bench.driver.slots.len(),
        1,
        "not before the close has completed"
    );
    bench.answered(token.tagged(Tag::Close), 0, false);
    assert_eq!(bench.driver.slots.len(), 0);
}

#[test]
fn a_lost_ring_is_asked_for_its_last_words_and_every_slot_is_armed_anew() {
    let mut bench = Bench::new();
    let (registration, first) = bench.armed();
    bench.kernel.answer(first, IN, true);
    bench.kernel.0.lock().unwrap().lost = true;
    bench.turn();
    assert!(registration.take_read_ready().unwrap().is_some());
    let second = bench.arming();
    assert_eq!(bench.answered(first, IN, true), 0);
    assert_eq!(bench.answered(second, IN, true), 1);
}

#[test]
fn an_event_on_the_way_to_the_far_tier_is_heard_in_full() {
    let mut bench = Bench::new();
    let (registration, near) = bench.armed();
    bench.driver.shared.nested.store(true, Ordering::Release);
    bench.kernel.answer(near, IN, true);
    assert_eq!(bench.turn(), 1);
    assert_eq!(bench.kernel.requests(), [Request::Cancel(near)]);
    let ready = registration.take_read_ready().unwrap();
    assert!(ready.is_some_and(Ready::is_readable));
    bench.answered(near, -libc::ECANCELED, false);
    match bench.kernel.requests()[..] {
        [Request::Arm(_, _, Tier::Far)] => {}
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn widening_an_interest_replaces_the_poll() {
    let mut bench = Bench::new();
    let registration = Registration::new();
    registration
        .register_interest(&bench.file, Interest::READABLE, &bench.handle)
        .unwrap();
    bench.turn();
    let first = bench.arming();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(registration.poll_write_ready(&mut cx).is_pending());
    bench.turn();
    assert_eq!(bench.kernel.requests(), [Request::Cancel(first)]);
    bench.answered(first, -libc::ECANCELED, false);
    match bench.kernel.requests()[..] {
        [Request::Arm(_, wanted, Tier::Near)] => {
            assert_eq!(wanted, events::IN | events::OUT | events::RDHUP);
        }
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn the_end_of_the_driver_reaches_every_registration() {
    let mut bench = Bench::new();
    let (armed, _) = bench.armed();
    let queued = Registration::new();
    queued.register_with(&bench.file, &bench.handle).unwrap();
    bench.end();
    for registration in [armed, queued] {
        let error = registration.take_read_ready().unwrap_err();
        let reason = error.get_ref().and_then(|inner| inner.downcast_ref());
        assert!(matches!(reason, Some(Error::ReactorGone)));
    }
    let late = Registration::new().register_with(&bench.file, &bench.handle);
    assert!(late.is_err());
}

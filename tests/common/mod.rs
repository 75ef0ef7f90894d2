//! What the tests share: both backends, bounds, wakers that count, processes of their own.
//!
//! No test sleeps in order to be right. It waits for a condition, for [`BOUND`] at most.

// Every test binary compiles this module and uses a part of it.
#![allow(dead_code, unused_imports, unused_macros)]

pub(crate) mod descriptors;

use std::any::type_name;
use std::cell::Cell;
use std::env;
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic;
use std::pin::pin;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};
use uring_reactor::{Backend, Error, Handle, Interest, Reactor, Ready, Registration};

/// How long to wait for what must happen. Nothing takes this long unless it is broken.
pub(crate) const BOUND: Duration = Duration::from_secs(10);

/// The end of a test that hangs without knowing it.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Tests that run once on each backend:
///
/// ```ignore
/// both_backends! {
///     fn a_sentence_of_the_contract(backend: Backend) {
///         let mut reactor = reactor(backend);
///     }
/// }
/// ```
///
/// makes `a_sentence_of_the_contract::uring` and `a_sentence_of_the_contract::epoll`. A test that
/// hangs fails after a minute.
macro_rules! both_backends {
    ($($(#[$meta:meta])* fn $name:ident($backend:ident: Backend $(,)?) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(#[$meta])*
            fn check($backend: ::uring_reactor::Backend) $body

            #[test]
            fn uring() {
                $crate::common::watched(|| check(::uring_reactor::Backend::Uring));
            }

            #[test]
            fn epoll() {
                $crate::common::watched(|| check(::uring_reactor::Backend::Epoll));
            }
        }
    )*};
}
pub(crate) use both_backends;

/// As [`both_backends`], each in a process of its own: for tests that change what a process has
/// only once (limits, filters, environment, the fallback) or that count what it has (descriptors).
macro_rules! both_backends_in_child {
    ($($(#[$meta:meta])* fn $name:ident($backend:ident: Backend $(,)?) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(#[$meta])*
            fn check($backend: ::uring_reactor::Backend) $body

            #[test]
            fn uring() {
                $crate::common::in_child(&[], || check(::uring_reactor::Backend::Uring));
            }

            #[test]
            fn epoll() {
                $crate::common::in_child(&[], || check(::uring_reactor::Backend::Epoll));
            }
        }
    )*};
}
pub(crate) use both_backends_in_child;

/// Between its fork and its exec a new process has a copy of every descriptor, and so a file that a
/// test has closed may be open for a moment longer. Therefore no process is started while a test
/// runs, and the other way round.
static PROCESSES: RwLock<()> = RwLock::new(());

/// Runs `body`, and fails if it takes a minute.
pub(crate) fn watched(body: impl FnOnce() + Send + 'static) {
    let _undisturbed = PROCESSES.read().unwrap_or_else(PoisonError::into_inner);
    watched_for(WATCHDOG, body);
}

fn watched_for(bound: Duration, body: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel::<()>();
    let name = thread::current().name().unwrap_or("test").to_owned();
    let test = thread::Builder::new()
        .name(name)
        .spawn(move || {
            let _done = done;
            body();
        })
        .unwrap();
    if finished.recv_timeout(bound) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("the test hangs: not finished after {bound:?}");
    }
    if let Err(payload) = test.join() {
        panic::resume_unwind(payload);
    }
}

const CHILD: &str = "URING_REACTOR_TEST_CHILD";

/// For tests in which the choice of a backend is the point, whatever the others are to run on.
pub(crate) const AUTO: (&str, &str) = ("URING_REACTOR_BACKEND", "auto");

/// Runs `body` in a process of its own, which has no other thread than libtest's, and that one only
/// waits. The process runs this very test once more, so this is to be called first thing in a
/// `#[test]` function, by that function itself.
pub(crate) fn in_child<F: FnOnce()>(variables: &[(&str, &str)], body: F) {
    // The closure is named after the function it stands in, which libtest has by the same path.
    let name = type_name::<F>()
        .split_once("::")
        .and_then(|(_, path)| path.strip_suffix("::{{closure}}"))
        .expect("called with a closure that stands in a test");
    if env::var(CHILD).as_deref() == Ok(name) {
        return body();
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([
            name,
            "--exact",
            "--nocapture",
            "--include-ignored",
            "--test-threads=1",
        ])
        .env(CHILD, name)
        .envs(variables.iter().copied());
    let started = {
        let _undisturbed = PROCESSES.write().unwrap_or_else(PoisonError::into_inner);
        start(command)
    };
    let output = output_of(started);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "`{name}` failed in its process ({}):\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn start(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the end of a process, or kills it after a minute.
fn output_of(child: Child) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    let (send, finished) = mpsc::channel();
    thread::spawn(move || send.send(child.wait_with_output()));
    match finished.recv_timeout(WATCHDOG) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            // Not reaped yet, so the number is still this child's.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            finished.recv().unwrap().unwrap()
        }
    }
}

/// A reactor on this backend, and on no other. With `URING_REACTOR_TEST_NESTED` set, one that is
/// nested in another loop, as far as it can tell: it then works by other means, to the same effect.
pub(crate) fn reactor(backend: Backend) -> Reactor {
    let mut built = Reactor::builder().backend(backend).build();
    let start = Instant::now();
    // Where locked memory is short, that of a ring which has ended may not be free yet.
    while let Err(error) = &built
        && matches!(reason(error), Some(Error::LockedMemory(_)))
        && start.elapsed() < BOUND
    {
        thread::sleep(Duration::from_millis(20));
        built = Reactor::builder().backend(backend).build();
    }
    let reactor = built.unwrap();
    if env::var_os("URING_REACTOR_TEST_NESTED").is_some() {
        reactor.as_fd();
    }
    reactor
}

/// A registration for reading and writing.
pub(crate) fn register<T: AsFd>(io: &T, reactor: &Reactor) -> Registration {
    let registration = Registration::new();
    assert!(registration.register_with(io, &reactor.handle()).unwrap());
    registration
}

/// A registration with an interest.
pub(crate) fn register_interest<T: AsFd>(
    io: &T,
    interest: Interest,
    reactor: &Reactor,
) -> Registration {
    let registration = Registration::new();
    assert!(
        registration
            .register_interest(io, interest, &reactor.handle())
            .unwrap()
    );
    registration
}

/// Turns until the condition holds. It must come with something that ends a turn: a turn that
/// sleeps through it makes this fail.
#[track_caller]
pub(crate) fn turn_until(reactor: &mut Reactor, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    loop {
        let left = BOUND.saturating_sub(start.elapsed());
        assert!(
            !left.is_zero(),
            "the condition did not hold in time, or no turn ended for it"
        );
        if condition() {
            return;
        }
        reactor.turn(Some(left)).unwrap();
    }
}

/// Turns without sleeping until nothing comes any more. What local sockets, pipes and eventfds have
/// to report is there as soon as the call that causes it returns, so this sees all of it.
#[track_caller]
pub(crate) fn settle(reactor: &mut Reactor) {
    let start = Instant::now();
    let mut quiet = 0;
    while quiet < 5 {
        assert!(start.elapsed() < BOUND, "the reactor does not come to rest");
        if reactor.turn(Some(Duration::ZERO)).unwrap().events() == 0 {
            quiet += 1;
        } else {
            quiet = 0;
        }
    }
}

/// How many descriptors this process has open, and one more, by which it learns that.
pub(crate) fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How often this thread has gone to sleep.
pub(crate) fn sleeps() -> libc::c_long {
    // SAFETY: `rusage` is plain numbers, for which zeroes are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a local that the call fills in.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    assert_eq!(result, 0);
    usage.ru_nvcsw
}

/// Waits until the condition holds, for what happens on other threads.
#[track_caller]
pub(crate) fn wait_until(condition: impl FnMut() -> bool) {
    assert!(
        holds_within(BOUND, condition),
        "the condition did not hold in time"
    );
}

/// As [`wait_until`], for what comes soon: looks again at once, so that the threads meet often.
#[track_caller]
pub(crate) fn wait_closely(mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        thread::yield_now();
    }
    wait_until(condition);
}

/// True if the condition holds within that time.
pub(crate) fn holds_within(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > bound {
            return false;
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Turns until the read stream has reported every bit of `wanted`, and returns all it reported.
#[track_caller]
pub(crate) fn read_ready(
    reactor: &mut Reactor,
    registration: &Registration,
    wanted: Ready,
) -> Ready {
    let mut seen = Ready::EMPTY;
    turn_until(reactor, || {
        seen |= registration
            .take_read_ready()
            .unwrap()
            .unwrap_or(Ready::EMPTY);
        seen.contains(wanted)
    });
    seen
}

/// Turns until the write stream has reported every bit of `wanted`, and returns all it reported.
#[track_caller]
pub(crate) fn write_ready(
    reactor: &mut Reactor,
    registration: &Registration,
    wanted: Ready,
) -> Ready {
    let mut seen = Ready::EMPTY;
    turn_until(reactor, || {
        seen |= registration
            .take_write_ready()
            .unwrap()
            .unwrap_or(Ready::EMPTY);
        seen.contains(wanted)
    });
    seen
}

/// Takes what both streams have to report by now, so that the next edge is a new one.
#[track_caller]
pub(crate) fn forget_edges(reactor: &mut Reactor, registration: &Registration) {
    settle(reactor);
    registration.take_read_ready().unwrap();
    registration.take_write_ready().unwrap();
}

/// A waker's other end: counts how often it was called.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waker and its count. Nobody else has either, so `Arc::strong_count` tells who holds the waker.
pub(crate) fn counting_waker() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    (count, waker)
}

/// A waker that calls a function.
pub(crate) fn waker_fn(call: impl Fn() + Send + Sync + 'static) -> Waker {
    struct Call<F>(F);

    impl<F: Fn() + Send + Sync + 'static> Wake for Call<F> {
        fn wake(self: Arc<Self>) {
            (self.0)();
        }
    }

    Waker::from(Arc::new(Call(call)))
}

/// Polls the read stream with this waker.
pub(crate) fn poll_read(registration: &Registration, waker: &Waker) -> Poll<io::Result<Ready>> {
    registration.poll_read_ready(&mut Context::from_waker(waker))
}

/// Polls the write stream with this waker.
pub(crate) fn poll_write(registration: &Registration, waker: &Waker) -> Poll<io::Result<Ready>> {
    registration.poll_write_ready(&mut Context::from_waker(waker))
}

/// The crate's own error inside an `io::Error`.
pub(crate) fn reason(error: &io::Error) -> Option<&Error> {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
}

/// The kernel's number, of the error itself or of one it stems from.
pub(crate) fn errno(error: &io::Error) -> Option<i32> {
    let mut next = Some(error as &(dyn std::error::Error + 'static));
    while let Some(error) = next {
        let number = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        if number.is_some() {
            return number;
        }
        next = error.source();
    }
    // `source` of an `io::Error` skips the error it wraps.
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
}

/// A reactor that turns on a thread of its own until this is dropped.
pub(crate) struct Turning {
    handle: Handle,
    /// Of its thread, in the system's files.
    status: String,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Reactor>>,
}

impl Turning {
    pub(crate) fn start(mut reactor: Reactor) -> Turning {
        let stop = Arc::new(AtomicBool::new(false));
        let handle = reactor.handle();
        let stopped = Arc::clone(&stop);
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            while !stopped.load(Ordering::SeqCst) {
                reactor.turn(None).unwrap();
            }
            reactor
        });
        let id = told.recv().unwrap().as_raw_nonzero();
        Turning {
            handle,
            status: format!("/proc/self/task/{id}/stat"),
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Returns once the reactor has finished a turn that began after this call.
    pub(crate) fn pass(&self) {
        // The turn that runs now may be past everything, the one after it is not.
        let before = self.handle.metrics().turns;
        wait_until(|| {
            self.handle.wake();
            self.handle.metrics().turns >= before + 3
        });
    }

    /// Waits until the reactor has nothing to do and sleeps: for a moment at least, its thread does
    /// nothing else.
    pub(crate) fn wait_until_parked(&self) {
        let is_asleep = || {
            let status = fs::read_to_string(&self.status).unwrap();
            // The state is the first field after the name in brackets.
            status.rsplit_once(") ").unwrap().1.starts_with('S')
        };
        let mut asleep_since = None;
        let mut last = u64::MAX;
        wait_until(|| {
            let turns = self.handle.metrics().turns;
            if !is_asleep() || turns == 0 || turns != last {
                last = turns;
                asleep_since = None;
                return false;
            }
            asleep_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(3)
        });
    }

    /// Stops turning and gives the reactor back.
    pub(crate) fn stop(mut self) -> Reactor {
        self.stop.store(true, Ordering::SeqCst);
        self.handle.wake();
        match self.thread.take().unwrap().join() {
            Ok(reactor) => reactor,
            Err(payload) => panic::resume_unwind(payload),
        }
    }
}

impl Drop for Turning {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.store(true, Ordering::SeqCst);
            self.handle.wake();
            if let Err(payload) = thread.join()
                && !thread::panicking()
            {
                panic::resume_unwind(payload);
            }
        }
    }
}

/// Polls a future once.
pub(crate) fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Raises the limit of descriptors as far as `wanted` needs it, and returns how many there can be:
/// fewer than wanted where the system's limit is low. For processes of their own.
pub(crate) fn descriptors_to_spare(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let reserve = 100;
    let limit = getrlimit(Resource::Nofile);
    let needed = (wanted + reserve) as u64;
    let allowed = limit.maximum.unwrap_or(u64::MAX).min(needed);
    if limit.current.is_some_and(|current| current < allowed) {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(allowed),
                maximum: limit.maximum,
            },
        )
        .unwrap();
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(current)
        .unwrap_or(usize::MAX)
        .saturating_sub(reserve)
        .min(wanted)
}

/// Sets how many descriptors there can be, and returns how many it was. For processes of their own.
pub(crate) fn limit_descriptors(count: Option<u64>) -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let current = count;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    limit.current
}

/// Takes every descriptor that there is, until the result is dropped. For processes of their own.
pub(crate) fn exhaust_descriptors() -> Vec<OwnedFd> {
    limit_descriptors(Some(128));
    let spare = descriptors::event_fd();
    let mut taken = Vec::new();
    while let Ok(descriptor) = spare.try_clone() {
        taken.push(descriptor);
    }
    taken.push(spare);
    taken
}

/// Limits the locked memory, also of a privileged user. For processes of their own; one at a time,
/// because what the others have locked counts as well.
pub(crate) fn limit_locked_memory(bytes: u64) {
    use rustix::fs::{FlockOperation, flock};
    use rustix::process::{Resource, Rlimit, setrlimit};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    static TURN: OnceLock<fs::File> = OnceLock::new();
    TURN.get_or_init(|| {
        let path = env::temp_dir().join("uring-reactor-locked-memory");
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).append(true).open(path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        file
    });
    let mut sets = capabilities(None).unwrap();
    sets.effective -= CapabilitySet::IPC_LOCK;
    sets.permitted -= CapabilitySet::IPC_LOCK;
    set_capabilities(None, sets).unwrap();
    let limit = Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    setrlimit(Resource::Memlock, limit).unwrap();
}

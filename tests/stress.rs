//! The state machines that `loom-tests/` checks one interleaving at a time, under real threads and a
//! real kernel, with invariants that are checked as it goes: every edge is accounted for, everybody
//! who waits is woken, every descriptor that was handed over is closed, and what has ended stays
//! silent.
//!
//! Each test runs for `URING_REACTOR_STRESS_SECONDS` (1 unless set), and prints how much it did. Nothing
//! waits longer than [`BOUND`] for what must happen.

mod common;

use common::descriptors::*;
use common::*;
use std::env;
use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};
use uring_reactor::{AsyncFd, Backend, Error, Handle, Interest, Reactor, Ready, Registration};

fn seconds() -> u64 {
    env::var("URING_REACTOR_STRESS_SECONDS").map_or(1, |value| value.parse().unwrap())
}

/// Small, and good enough to shuffle with.
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = now.unwrap().as_nanos() as u64 ^ NEXT.fetch_add(1 << 40, Ordering::Relaxed);
        Dice(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Lets other threads go first, more or less.
    fn dawdle(&mut self) {
        for _ in 0..self.below(200) {
            std::hint::spin_loop();
        }
        if self.one_in(4) {
            thread::yield_now();
        }
    }
}

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread, which has to be done in time.
#[track_caller]
fn wait<T>(what: impl Debug, future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    let start = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
            return value;
        }
        let left = BOUND.saturating_sub(start.elapsed());
        assert!(!left.is_zero(), "nobody was woken: {what:?}");
        thread::park_timeout(left);
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(reason(error), Some(Error::ReactorGone))
}

/// Waits for the next event of the read stream. Now and then another waker is left first, and is
/// called in its turn.
fn next_event(registration: &Registration, dice: &mut Dice) -> io::Result<Ready> {
    if dice.one_in(3) {
        let (count, waker) = counting_waker();
        let early = poll_read(registration, &waker);
        drop(waker);
        if let Poll::Ready(ready) = early {
            assert_eq!(count.get(), 0, "answered and called");
            return ready;
        }
        dice.dawdle();
        let ready = wait("an edge, after another task had waited", async {
            poll_fn(|cx| registration.poll_read_ready(cx)).await
        });
        // By the edge or by its successor. The reactor may be about to.
        wait_closely(|| count.get() == 1 && Arc::strong_count(&count) == 1);
        return ready;
    }
    if dice.one_in(3)
        && let Some(ready) = registration.take_read_ready()?
    {
        return Ok(ready);
    }
    wait("an edge", poll_fn(|cx| registration.poll_read_ready(cx)))
}

/// Reads what is there. Returns how many bytes of data that was, and whether the end was met.
fn drain_counting(mut io: &UnixStream) -> (usize, bool) {
    let mut buffer = [0; 64];
    let mut total = 0;
    loop {
        match io.read(&mut buffer) {
            Ok(0) => return (total, true),
            Ok(n) => total += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (total, false),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Runs until a deadline, and counts what it did.
struct Run {
    deadline: Instant,
    done: AtomicUsize,
}

impl Run {
    fn goes_on(&self) -> bool {
        Instant::now() < self.deadline
    }

    fn count(&self, n: usize) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }
}

/// Runs `body` for a while, and fails if it does not come to its end.
fn stress(name: &str, backend: Backend, body: impl FnOnce(&Run) + Send + 'static) {
    let length = Duration::from_secs(seconds());
    let run = Arc::new(Run {
        deadline: Instant::now() + length,
        done: AtomicUsize::new(0),
    });
    let (tell, told) = mpsc::channel::<()>();
    let thread = {
        let run = Arc::clone(&run);
        thread::spawn(move || {
            let _tell = tell;
            body(&run);
        })
    };
    let outcome = told.recv_timeout(length + 3 * BOUND);
    assert_ne!(outcome, Err(mpsc::RecvTimeoutError::Timeout), "it hangs");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
    let done = run.done.load(Ordering::Relaxed);
    println!("{name} on {backend:?}: {done} in {length:?}");
    assert!(done > 0);
}

macro_rules! stress_tests {
    ($($(#[$meta:meta])* fn $name:ident($run:ident: &Run, $backend:ident: Backend) $body:block)*) => {$(
        mod $name {
            use super::*;

            $(#[$meta])*
            fn check($run: &Run, $backend: Backend) $body

            #[test]
            fn uring() {
                stress(stringify!($name), Backend::Uring, |run| check(run, Backend::Uring));
            }

            #[test]
            fn epoll() {
                stress(stringify!($name), Backend::Epoll, |run| check(run, Backend::Epoll));
            }
        }
    )*};
}

/// Sends bytes, and knows how many have arrived.
#[derive(Default)]
struct Account {
    sent: AtomicUsize,
    received: AtomicUsize,
}

impl Account {
    /// Sends until the deadline, at most three bytes ahead of the receiver, so that most edges are
    /// the only sign of their byte. Then ends the stream.
    fn send(&self, run: &Run, mut io: &UnixStream, dice: &mut Dice) {
        while run.goes_on() {
            let ahead = dice.below(3) as usize;
            wait_closely(|| {
                let sent = self.sent.load(Ordering::Relaxed);
                sent - self.received.load(Ordering::Acquire) <= ahead
            });
            self.sent.fetch_add(1, Ordering::Relaxed);
            io.write_all(b"x").unwrap();
        }
        io.shutdown(Shutdown::Write).unwrap();
    }

    /// Receives to the end of the stream, through one registration after the other. Whatever has been
    /// sent when a registration begins is reported to it.
    fn receive(&self, io: &UnixStream, handle: &Handle, dice: &mut Dice) -> usize {
        loop {
            let mut registration = Registration::new();
            let interest = if dice.one_in(2) {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            assert!(
                registration
                    .register_interest(io, interest, handle)
                    .unwrap()
            );
            let mut written = false;
            for _ in 0..dice.below(20) {
                let ready = next_event(&registration, dice).unwrap();
                if !ready.is_readable() && !ready.is_read_closed() {
                    continue;
                }
                dice.dawdle();
                let (bytes, ended) = drain_counting(io);
                self.received.fetch_add(bytes, Ordering::Release);
                if ended {
                    return self.received.load(Ordering::Relaxed);
                }
                if dice.one_in(8) {
                    // A direction that may not have been asked for. There is room, so it is reported.
                    let writable = poll_fn(|cx| registration.poll_write_ready(cx));
                    if !std::mem::replace(&mut written, true) {
                        wait("room", writable).unwrap();
                    }
                }
            }
            if dice.one_in(2) {
                registration.deregister(io).unwrap();
            }
        }
    }
}

fn correspond(run: &Run, handle: &Handle) {
    let (ours, theirs) = unix_pair();
    let account = Account::default();
    let received = thread::scope(|scope| {
        scope.spawn(|| account.send(run, &theirs, &mut Dice::new()));
        account.receive(&ours, handle, &mut Dice::new())
    });
    assert_eq!(received, account.sent.load(Ordering::Relaxed));
    run.count(received);
}

stress_tests! {
    /// Every byte that is sent is the cause of an edge, without which its reader would wait for ever.
    fn every_edge_arrives(run: &Run, backend: Backend) {
        let background = reactor(backend).background().unwrap();
        let handle = background.handle();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| correspond(run, &handle));
            }
            scope.spawn(|| {
                let mut dice = Dice::new();
                while run.goes_on() {
                    let before = handle.metrics().turns;
                    handle.wake();
                    // The current turn ends for it, or the next, and another begins.
                    wait_closely(|| handle.metrics().turns != before);
                    dice.dawdle();
                }
            });
        });
        wait("idle", background.shutdown_on_idle());
        assert_eq!(handle.metrics().registered, 0);
    }

    /// The same, while the reactor moves from thread to thread, and to another ring each time.
    fn every_edge_arrives_at_a_reactor_that_moves(run: &Run, backend: Backend) {
        let reactor = reactor(backend);
        let handle = reactor.handle();
        let going = AtomicBool::new(true);
        let (pass, passed) = mpsc::channel();
        let (pass_back, passed_back) = mpsc::channel();
        pass_back.send(reactor).unwrap();
        let going = &going;
        let turner = |from: mpsc::Receiver<Reactor>, to: mpsc::Sender<Reactor>| move || {
            let mut dice = Dice::new();
            let mut last = None;
            for mut reactor in from {
                for _ in 0..=dice.below(20) {
                    reactor.turn(Some(Duration::from_millis(dice.below(3)))).unwrap();
                }
                if !going.load(Ordering::Relaxed) {
                    // The other one's channel ends with this.
                    last = Some(reactor);
                    break;
                }
                let _ = to.send(reactor);
            }
            last
        };
        let reactors: Vec<_> = thread::scope(|scope| {
            let turners = [
                scope.spawn(turner(passed_back, pass)),
                scope.spawn(turner(passed, pass_back)),
            ];
            let users: Vec<_> = (0..2).map(|_| scope.spawn(|| correspond(run, &handle))).collect();
            let users: Vec<_> = users.into_iter().map(|user| user.join()).collect();
            going.store(false, Ordering::Relaxed);
            for user in users {
                if let Err(panic) = user {
                    std::panic::resume_unwind(panic);
                }
            }
            turners.into_iter().filter_map(|turner| turner.join().unwrap()).collect()
        });
        for mut reactor in reactors {
            settle(&mut reactor);
            assert!(reactor.is_idle());
        }
        if backend == Backend::Uring {
            assert_ne!(handle.metrics().rebuilds, 0, "it did not move");
        }
    }

    /// Any number of threads register one descriptor in one registration: one makes it, and whoever
    /// polls is woken.
    fn one_of_many_registers(run: &Run, backend: Backend) {
        let background = reactor(backend).background().unwrap();
        let handle = background.handle();
        let threads = 3;
        let (send, receivers): (Vec<_>, Vec<_>) = (0..threads)
            .map(|_| mpsc::sync_channel::<Arc<(Registration, UnixStream, Barrier)>>(1))
            .unzip();
        let (tell, made) = mpsc::channel();
        thread::scope(|scope| {
            for receiver in receivers {
                let (tell, handle) = (tell.clone(), handle.clone());
                scope.spawn(move || {
                    let mut dice = Dice::new();
                    for round in receiver {
                        let (registration, io, barrier) = &*round;
                        barrier.wait();
                        dice.dawdle();
                        let made = registration.register_with(io, &handle).unwrap();
                        // Made, whoever made it.
                        assert_ne!(handle.metrics().registered, 0);
                        wait("an edge after a race", poll_fn(|cx| registration.poll_read_ready(cx)))
                            .unwrap();
                        // For the next of us: what was taken is not reported again.
                        drop(round);
                        tell.send(made).unwrap();
                    }
                });
            }
            while run.goes_on() {
                let (ours, theirs) = unix_pair();
                let round = Arc::new((Registration::new(), ours, Barrier::new(threads)));
                // A hang-up is reported to everybody, again and again.
                theirs.shutdown(Shutdown::Both).unwrap();
                for send in &send {
                    send.send(Arc::clone(&round)).unwrap();
                }
                drop(round);
                let made = (0..threads)
                    .filter(|_| made.recv_timeout(BOUND).expect("all of them come back"))
                    .count();
                assert_eq!(made, 1);
                run.count(1);
            }
            drop(send);
        });
        wait("idle", background.shutdown_on_idle());
        assert_eq!(handle.metrics().registered, 0);
    }

    /// A waiter of a registration that ends is called once, whatever edges come at that moment, and
    /// nothing is heard of it afterwards.
    fn the_deregistered_are_silent(run: &Run, backend: Backend) {
        let turning = Turning::start(reactor(backend));
        let handle = turning.handle().clone();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..3).map(|_| scope.spawn(|| {
                let mut dice = Dice::new();
                while run.goes_on() {
                    let (ours, theirs) = unix_pair();
                    let mut registration = Registration::new();
                    registration
                        .register_interest(&ours, Interest::READABLE, &handle)
                        .unwrap();
                    let (count, waker) = counting_waker();
                    assert!(poll_read(&registration, &waker).is_pending());
                    drop(waker);
                    if dice.one_in(2) {
                        dice.dawdle();
                    }
                    put(&theirs, b"x");
                    dice.dawdle();
                    match dice.below(3) {
                        0 => registration.deregister(&ours).unwrap(),
                        1 => drop(registration),
                        _ => {
                            registration.deregister_and_close(ours).unwrap();
                            wait_until(|| at_end(&theirs));
                        }
                    }
                    // The turn that runs now may be about to call it, and no other.
                    wait_closely(|| count.get() == 1 && Arc::strong_count(&count) == 1);
                    run.count(1);
                }
            })).collect();
            for worker in workers {
                worker.join().unwrap();
            }
        });
        turning.pass();
        let mut reactor = turning.stop();
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    /// A reactor ends while others poll, register, deregister and hand descriptors over: everybody is
    /// told, and what was handed over is closed.
    fn everybody_hears_of_the_end(run: &Run, backend: Backend) {
        let mut dice = Dice::new();
        while run.goes_on() {
            let mut reactor = reactor(backend);
            let handle = reactor.handle();
            let start = Barrier::new(4);
            thread::scope(|scope| {
                let (polled, _peer) = unix_pair();
                let polled_here = register_interest(&polled, Interest::READABLE, &reactor);
                let (handed, peer) = unix_pair();
                let mut handed_here = register(&handed, &reactor);
                for _ in 0..dice.below(3) {
                    reactor.turn(Some(Duration::ZERO)).unwrap();
                }
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    Dice::new().dawdle();
                    let outcome =
                        wait("the end", poll_fn(|cx| polled_here.poll_read_ready(cx)));
                    assert!(is_gone(&outcome.unwrap_err()));
                    drop(polled);
                });
                scope.spawn(move || {
                    start.wait();
                    Dice::new().dawdle();
                    handed_here.deregister_and_close(handed).unwrap();
                    drop(handed_here);
                    wait_until(|| at_end(&peer));
                });
                scope.spawn(move || {
                    start.wait();
                    let mut dice = Dice::new();
                    loop {
                        dice.dawdle();
                        let (ours, _theirs) = unix_pair();
                        let registration = Registration::new();
                        match registration.register_interest(&ours, Interest::READABLE, &handle) {
                            Err(error) => {
                                assert!(is_gone(&error));
                                let error = registration.take_read_ready().unwrap_err();
                                assert!(matches!(reason(&error), Some(Error::NotRegistered)));
                                break;
                            }
                            Ok(made) => assert!(made),
                        }
                        if dice.one_in(4) {
                            let polled = poll_fn(|cx| registration.poll_read_ready(cx));
                            assert!(is_gone(&wait("the end, for a late comer", polled).unwrap_err()));
                        }
                    }
                });
                start.wait();
                dice.dawdle();
                for _ in 0..dice.below(3) {
                    reactor.turn(Some(Duration::ZERO)).unwrap();
                }
                drop(reactor);
            });
            run.count(1);
        }
    }

    /// Any number of tasks receive from one `AsyncFd`: each datagram arrives once, and nobody waits
    /// while there is one.
    fn tasks_share_what_comes(run: &Run, backend: Backend) {
        let background = reactor(backend).background().unwrap();
        let handle = background.handle();
        let (ours, theirs) = datagram_pair();
        let ours = AsyncFd::with_handle_and_interest(ours, &handle, Interest::READABLE).unwrap();
        let received = AtomicU64::new(0);
        let sum = AtomicU64::new(0);
        let tasks = 3;
        thread::scope(|scope| {
            for _ in 0..tasks {
                scope.spawn(|| {
                    let mut dice = Dice::new();
                    loop {
                        let mut buffer = [0; 8];
                        let datagram = if dice.one_in(3) {
                            // With a guard, which is to clear what it finds wrong.
                            wait("a datagram, by a guard", async {
                                loop {
                                    let mut guard = ours.readable().await.unwrap();
                                    let read = guard.try_io(|io| io.get_ref().recv(&mut buffer));
                                    if let Ok(read) = read {
                                        break read;
                                    }
                                }
                            })
                        } else {
                            wait("a datagram", ours.recv(&mut buffer))
                        };
                        assert_eq!(datagram.unwrap(), 8);
                        let number = u64::from_ne_bytes(buffer);
                        if number == 0 {
                            break;
                        }
                        sum.fetch_add(number, Ordering::Relaxed);
                        received.fetch_add(1, Ordering::Release);
                        dice.dawdle();
                    }
                });
            }
            let mut dice = Dice::new();
            let mut sent = 0_u64;
            let send = |number: u64| {
                wait_until(|| match theirs.send(&number.to_ne_bytes()) {
                    Ok(n) => n == 8,
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        false
                    }
                });
            };
            while run.goes_on() {
                // Most of the time the next is sent only when all tasks wait again.
                let ahead = dice.below(4);
                wait_closely(|| sent - received.load(Ordering::Acquire) <= ahead);
                sent += 1;
                send(sent);
            }
            for _ in 0..tasks {
                send(0);
            }
            wait_until(|| received.load(Ordering::Acquire) == sent);
            assert_eq!(sum.load(Ordering::Relaxed), sent * (sent + 1) / 2);
            run.count(sent as usize);
        });
        drop(ours);
        wait("idle", background.shutdown_on_idle());
    }

    /// A background reactor that is to end when it is idle does so with its last registration,
    /// whatever has become of that, and not before.
    fn idle_is_the_end(run: &Run, backend: Backend) {
        let refused = std::fs::File::open("/proc/self/exe").unwrap();
        let mut dice = Dice::new();
        while run.goes_on() {
            let mut reactor = reactor(backend);
            let handle = reactor.handle();
            let (ours, theirs) = unix_pair();
            let io = if dice.one_in(3) { refused.as_fd() } else { ours.as_fd() };
            let registration = register(&io, &reactor);
            for _ in 0..dice.below(3) {
                reactor.turn(Some(Duration::ZERO)).unwrap();
            }
            let background = reactor.background().unwrap();
            let start = Barrier::new(2);
            thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    let mut dice = Dice::new();
                    dice.dawdle();
                    if dice.one_in(2) {
                        put(&theirs, b"x");
                    }
                    if let Err(error) = registration.take_read_ready() {
                        assert!(!is_gone(&error), "there is a registration");
                    }
                    drop(registration);
                });
                start.wait();
                dice.dawdle();
                wait("idle", background.shutdown_on_idle());
            });
            assert_eq!(handle.metrics().registered, 0);
            assert!(is_gone(&Registration::new().register_with(&ours, &handle).unwrap_err()));
            run.count(1);
        }
    }

    /// A future of `block_on` whose conditions are met by several threads: the last poll sees all.
    fn block_on_sees_what_its_wakers_did(run: &Run, backend: Backend) {
        let mut reactor = reactor(backend);
        let threads = 3;
        let (send, receivers): (Vec<_>, Vec<_>) = (0..threads)
            .map(|_| mpsc::channel::<(Arc<AtomicUsize>, Waker)>())
            .unzip();
        thread::scope(|scope| {
            for receiver in receivers {
                scope.spawn(move || {
                    let mut dice = Dice::new();
                    for (met, waker) in receiver {
                        dice.dawdle();
                        met.fetch_add(1, Ordering::Relaxed);
                        waker.wake();
                    }
                });
            }
            while run.goes_on() {
                let met = Arc::new(AtomicUsize::new(0));
                let mut asked = false;
                reactor
                    .block_on(poll_fn(|cx| {
                        if !std::mem::replace(&mut asked, true) {
                            for send in &send {
                                send.send((Arc::clone(&met), cx.waker().clone())).unwrap();
                            }
                        }
                        if met.load(Ordering::Relaxed) == threads {
                            Poll::Ready(())
                        } else {
                            Poll::Pending
                        }
                    }))
                    .unwrap();
                run.count(1);
            }
            drop(send);
        });
    }
}

//! What the workloads need of the system: descriptors, processors, clocks of other threads.

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Raises the limit of descriptors as far as it goes.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("the soft limit may be raised to the hard one");
}

/// How many more descriptors there may be, with some left for what is not counted.
pub(crate) fn descriptors_to_spare() -> u64 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    let open = fs::read_dir("/proc/self/fd").map_or(64, Iterator::count) as u64;
    limit.saturating_sub(open + 200)
}

pub(crate) fn event_fd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd can be made")
}

pub(crate) fn event_fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| event_fd()).collect()
}

fn socket_pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .expect("a pair of sockets can be made")
}

/// Connected with each other.
pub(crate) fn sockets(count: usize) -> Vec<OwnedFd> {
    let pairs = (0..count.div_ceil(2)).map(|_| socket_pair());
    pairs.flat_map(|(one, other)| [one, other]).collect()
}

/// Makes an eventfd readable. It is never read: every write is an edge.
pub(crate) fn signal(fd: impl AsFd) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).expect("the counter is far from full");
}

/// Descriptors that become ready when told to.
pub(crate) struct Signals {
    watched: Vec<OwnedFd>,
    /// The other ends, where there are any.
    peers: Vec<OwnedFd>,
}

impl Signals {
    pub(crate) fn event_fds(count: usize) -> Signals {
        Signals {
            watched: event_fds(count),
            peers: Vec::new(),
        }
    }

    pub(crate) fn tcp(count: usize) -> Signals {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        let (peers, watched) = (0..count)
            .map(|_| {
                let peer = TcpStream::connect(address).expect("the listener has room");
                let (watched, _) = listener.accept().expect("the connection is there");
                watched.set_nonblocking(true).expect("a socket can be");
                (peer.into(), watched.into())
            })
            .unzip();
        Signals { watched, peers }
    }

    pub(crate) fn unix(count: usize) -> Signals {
        let (peers, watched) = (0..count).map(|_| socket_pair()).unzip();
        Signals { watched, peers }
    }

    pub(crate) fn get(&self, index: usize) -> BorrowedFd<'_> {
        self.watched[index].as_fd()
    }

    pub(crate) fn len(&self) -> usize {
        self.watched.len()
    }

    pub(crate) fn signal(&self, index: usize) {
        match self.peers.get(index) {
            None => signal(&self.watched[index]),
            Some(peer) => {
                let sent = send(peer, b"x", SendFlags::empty());
                assert_eq!(sent, Ok(1), "one byte is taken");
            }
        }
    }

    /// Takes what was sent, so that buffers do not fill.
    pub(crate) fn drain(&self, index: usize) {
        if !self.peers.is_empty() {
            let read = rustix::io::read(&self.watched[index], &mut [0_u8; 16]);
            assert_eq!(read, Ok(1), "what was sent is there");
        }
    }
}

/// Where a thread runs. The one that measures and the one that it measures keep to themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Measuring,
    Measured,
}

/// The processors that this process may use, as they were before any thread was bound.
pub(crate) fn processors() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        let set = sched_getaffinity(None).expect("a thread may ask for its processors");
        (0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect()
    })
}

/// Whether there are enough processors for every place to be another one.
pub(crate) fn separate_places() -> bool {
    processors().len() > 1
}

/// Binds this thread to a processor of its own, if there are enough.
pub(crate) fn pin(place: Place) {
    if let [first, .., last] = *processors() {
        let mut set = CpuSet::new();
        set.set(match place {
            Place::Measuring => first,
            Place::Measured => last,
        });
        sched_setaffinity(None, &set).expect("a thread may be bound to what it was allowed");
    }
}

/// Another thread's identity: its CPU clock, and whether it sleeps.
#[derive(Clone, Debug)]
pub(crate) struct ThreadView {
    clock: libc::clockid_t,
    state: String,
}

impl ThreadView {
    pub(crate) fn of_this_thread() -> ThreadView {
        let mut clock = 0;
        // SAFETY: this thread is alive, and `clock` is written during the call only.
        let result = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
        assert_eq!(result, 0, "every thread has a CPU clock");
        let thread = rustix::thread::gettid().as_raw_nonzero();
        ThreadView {
            clock,
            state: format!("/proc/self/task/{thread}/stat"),
        }
    }

    /// The CPU time that the thread has used, in the kernel and out of it. The thread must live.
    pub(crate) fn cpu(&self) -> Duration {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is written during the call only.
        let result = unsafe { libc::clock_gettime(self.clock, &mut time) };
        assert_eq!(result, 0, "the thread lives");
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    fn sleeps(&self) -> bool {
        let stat = fs::read_to_string(&self.state).expect("the thread lives");
        // After the name, which is in parentheses and may contain anything.
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('S'))
    }

    /// Until the thread waits in the kernel.
    pub(crate) fn await_sleep(&self) {
        let begun = Instant::now();
        while !self.sleeps() {
            assert!(begun.elapsed() < PATIENCE, "the thread does not park");
            std::hint::spin_loop();
        }
    }
}

/// For what takes microseconds, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers that look random and are the same in every run (xorshift64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Dice {
        Dice(0x9E37_79B9_7F4A_7C15)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

//! What goes on around a reactor: signals without pause, system calls that fail for no reason, limits,
//! processes that are killed. Each test in a process of its own.

mod common;

use common::descriptors::*;
use common::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use uring_reactor::{AsyncFd, Backend, Interest, Reactor, Ready, Registration};

const NOW: Option<Duration> = Some(Duration::ZERO);

extern "C" fn ignore(_: libc::c_int) {}

/// Lets a signal interrupt what waits, and do nothing else.
fn handle(signal: libc::c_int) {
    let handler: extern "C" fn(libc::c_int) = ignore;
    // SAFETY: the handler does nothing, and the structure is valid when zeroed.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        assert_eq!(
            libc::sigaction(signal, &raw const action, ptr::null_mut()),
            0
        );
    }
}

/// Each descriptor is made ready, and heard, that many times.
fn count_edges(reactor: &mut Reactor, rounds: usize) {
    let many: Vec<_> = (0..16)
        .map(|_| {
            let event = event_fd();
            let registration = register_interest(&event, Interest::READABLE, reactor);
            (event, registration)
        })
        .collect();
    for round in 0..rounds {
        for (event, registration) in &many {
            signal(event);
            // By turns one by one, and together.
            if round % 2 == 0 {
                hear(reactor, registration);
            }
        }
        if round % 2 == 1 {
            for (_, registration) in &many {
                hear(reactor, registration);
            }
        }
    }
}

/// As [`read_ready`], whatever a turn says.
fn hear(reactor: &mut Reactor, registration: &Registration) {
    let start = Instant::now();
    loop {
        let ready = registration.take_read_ready().unwrap();
        if ready.is_some_and(|ready| ready.is_readable()) {
            return;
        }
        assert!(start.elapsed() < BOUND, "an edge was lost");
        let _ = reactor.turn(Some(Duration::from_millis(100)));
    }
}

/// A filter that has another thread decide on these system calls of this one.
fn supervised(calls: &[libc::c_long]) -> OwnedFd {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut filter = vec![instruction(LOAD, 0, 0)];
    for (index, call) in calls.iter().enumerate() {
        // Past the other comparisons and the "allow".
        let distance = (calls.len() - index) as u8;
        filter.push(instruction(EQUAL, distance, *call as u32));
    }
    filter.push(instruction(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    filter.push(instruction(RETURN, 0, libc::SECCOMP_RET_USER_NOTIF));
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program lives through the call, which copies it. What it returns is a new
    // descriptor.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        assert!(listener >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(listener as i32)
    }
}

/// Answers for the kernel: one in `n` calls fails with a number from the list, and does nothing.
/// Returns how many failed, once the thread that is supervised has ended.
fn fail_at_random(listener: &OwnedFd, errnos: &[i32], n: u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut failed = 0;
    loop {
        // SAFETY: valid when zeroed, which the kernel insists on.
        let mut notification: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the structure is the one that this request fills in.
        let received = unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                &raw mut notification,
            )
        };
        if received < 0 {
            match io::Error::last_os_error().raw_os_error() {
                // The call was interrupted before it came here.
                Some(libc::ENOENT | libc::EINTR) => continue,
                other => panic!("{other:?}"),
            }
        }
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let fails = state.is_multiple_of(n);
        let errno = errnos[(state >> 32) as usize % errnos.len()];
        // The end is asked for by a call that nobody else makes.
        let over = notification.data.nr == libc::SYS_getppid as i32;
        let response = libc::seccomp_notif_resp {
            id: notification.id,
            val: 0,
            error: if fails && !over { -errno } else { 0 },
            flags: if fails && !over {
                0
            } else {
                libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32
            },
        };
        failed += u64::from(fails && !over);
        // SAFETY: the structure is the one that this request reads.
        unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw const response,
            )
        };
        if over {
            return failed;
        }
    }
}

static KEPT: Mutex<Vec<Reactor>> = Mutex::new(Vec::new());

/// Turns a reactor whose waits fail at random with these numbers.
fn survives(backend: Backend, errnos: &'static [i32]) {
    let (listeners, listener) = mpsc::channel();
    let turning = thread::spawn(move || {
        let mut reactor = reactor(backend);
        reactor.turn(NOW).unwrap();
        let calls = [
            libc::SYS_getppid,
            libc::SYS_io_uring_enter,
            libc::SYS_epoll_pwait2,
            libc::SYS_epoll_pwait,
        ];
        listeners.send(supervised(&calls)).unwrap();
        count_edges(&mut reactor, 200);
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &reactor);
        put(&theirs, b"x");
        hear(&mut reactor, &registration);
        registration.deregister_and_close(ours).unwrap();
        wait_until(|| {
            let _ = reactor.turn(NOW);
            at_end(&theirs) && reactor.is_idle()
        });
        // SAFETY: no precondition. The supervisor takes it for the end.
        unsafe { libc::syscall(libc::SYS_getppid) };
        // It cannot end with nobody to answer for its calls.
        KEPT.lock().unwrap().push(reactor);
    });
    let listener = listener.recv().unwrap();
    let failed = fail_at_random(&listener, errnos, 4);
    drop(listener);
    turning.join().unwrap();
    println!("{failed} calls failed");
    assert!(failed > 0);
}

/// A child of a fork that does this until it is killed.
fn forked(run: impl FnOnce()) -> libc::pid_t {
    // SAFETY: libtest's thread sleeps, and holds no lock that the child might want.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", io::Error::last_os_error()),
        0 => {
            // SAFETY: its signal ends this process.
            unsafe { libc::alarm(30) };
            run();
            // SAFETY: ends the process, and runs nothing that belongs to the parent.
            unsafe { libc::_exit(1) }
        }
        child => child,
    }
}

fn kill(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the child is ours and was not waited for; the pointer is to a local.
    unsafe {
        assert_eq!(libc::kill(child, libc::SIGKILL), 0);
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
    }
    assert!(libc::WIFSIGNALED(status));
}

/// How many threads of the machine wait for a disk, or count as such.
fn blocked() -> u32 {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let line = text
        .lines()
        .find_map(|it| it.strip_prefix("procs_blocked "));
    line.unwrap().parse().unwrap()
}

/// Which kernel runs: 6.15 is `(6, 15)`.
fn kernel() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(|it: char| !it.is_ascii_digit());
    let mut next = || numbers.next().unwrap().parse().unwrap();
    (next(), next())
}

both_backends_in_child! {
    fn one_that_sleeps_does_not_count_as_waiting_for_a_disk(backend: Backend) {
        if kernel() < (6, 15) {
            return;
        }
        let others = (0..500).map(|_| blocked()).min().unwrap();
        let event = event_fd();
        let turning = Turning::start(reactor(backend));
        let registration = Registration::new();
        registration.register_interest(&event, Interest::READABLE, turning.handle()).unwrap();
        turning.pass();
        turning.wait_until_parked();
        wait_until(|| blocked() <= others);
        drop(registration);
    }

    fn signals_without_pause_lose_nothing(backend: Backend) {
        handle(libc::SIGUSR1);
        let mut reactor = reactor(backend);
        // SAFETY: no precondition.
        let target = unsafe { libc::pthread_self() };
        let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // SAFETY: the thread outlives this one.
                    unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            count_edges(&mut reactor, 500);
            over.store(true, Ordering::Relaxed);
        });
        println!("{} signals", sent.into_inner());
    }

    fn waits_that_fail_now_and_then_lose_nothing(backend: Backend) {
        survives(
            backend,
            &[libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ETIME, libc::ENOMEM],
        );
    }

    fn waits_that_fail_with_any_number_lose_nothing(backend: Backend) {
        const NUMBERS: [i32; 60] = {
            let mut numbers = [0; 60];
            let mut index = 0;
            while index < numbers.len() {
                numbers[index] = 1 + 2 * index as i32;
                index += 1;
            }
            numbers
        };
        survives(backend, &NUMBERS);
    }

    fn a_process_that_is_killed_lets_go_of_everything(backend: Backend) {
        let (ours, theirs) = unix_pair();
        let (reader, writer) = pipe_pair();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        client.set_nonblocking(true).unwrap();
        let (mut armed, report) = io::pipe().unwrap();
        let child = forked(|| {
            let (accepted, _) = listener.accept().unwrap();
            let mut reactor = reactor(backend);
            let _registrations = [
                register(&ours, &reactor),
                register(&writer, &reactor),
                register(&listener, &reactor),
                register(&accepted, &reactor),
            ];
            reactor.turn(NOW).unwrap();
            put(&report, b"!");
            loop {
                reactor.turn(None).unwrap();
            }
        });
        drop((ours, writer, listener));
        io::Read::read_exact(&mut armed, &mut [0]).unwrap();
        assert!(!at_end(&theirs) && !at_end(&client));
        kill(child);
        let start = Instant::now();
        wait_until(|| at_end(&theirs) && at_end(&reader) && at_end(&client));
        let ended = start.elapsed();
        // The connection lingers, which is another thing than the listener.
        wait_until(|| {
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .and_then(|socket| {
                    socket.set_reuse_address(true)?;
                    socket.bind(&address.into())?;
                    socket.listen(1)
                })
                .is_ok()
        });
        println!("peers saw the end after {ended:?}, the port was free after {:?}", start.elapsed());
    }

    fn accepting_goes_on_when_there_are_descriptors_again(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = AsyncFd::with_handle(listener, &handle).unwrap();
        reactor.turn(NOW).unwrap();
        let clients: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limit }).unwrap();
        for _ in 0..3 {
            let error = reactor.block_on(listener.accept()).unwrap().unwrap_err();
            assert_eq!(errno(&error), Some(libc::EMFILE));
        }
        setrlimit(Resource::Nofile, limit).unwrap();
        for _ in &clients {
            reactor.block_on(listener.accept()).unwrap().unwrap();
        }
    }

    fn a_thread_that_registered_and_is_gone_takes_no_edge_along(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        for _ in 0..50 {
            let event = event_fd();
            let registration = Registration::new();
            thread::scope(|scope| {
                scope.spawn(|| registration.register_with(&event, &handle).unwrap());
            });
            // Armed by this thread, which is another one than that.
            reactor.turn(NOW).unwrap();
            signal(&event);
            read_ready(&mut reactor, &registration, Ready::READABLE);
        }
    }
}

#[test]
fn next_to_no_locked_memory_means_epoll() {
    in_child(&[AUTO], || {
        limit_locked_memory(4 * 1024);
        let mut reactor = Reactor::new().unwrap();
        assert_eq!(reactor.backend(), Backend::Epoll);
        count_edges(&mut reactor, 10);
    });
}

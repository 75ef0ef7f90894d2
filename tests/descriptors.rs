//! Every kind of descriptor that a server is likely to wait for.

mod common;

use common::descriptors::*;
use common::*;
use rustix::fs::{Mode, OFlags, inotify};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::fs;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::ptr;
use std::time::Duration;
use uring_reactor::{Backend, Interest, Ready};

/// `ours` becomes readable each time that `cause` was called and not before, and writable as soon
/// as it is registered, if it can be written at all.
#[track_caller]
fn assert_readable_after(
    backend: Backend,
    ours: &impl AsFd,
    writable: bool,
    mut cause: impl FnMut(),
) {
    let mut reactor = reactor(backend);
    let registration = register(ours, &reactor);
    if writable {
        write_ready(&mut reactor, &registration, Ready::WRITABLE);
    }
    for round in 0..3 {
        settle(&mut reactor);
        let early = registration.take_read_ready().unwrap();
        assert!(
            early.is_none_or(|ready| !ready.is_readable()),
            "round {round}: {early:?}"
        );
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        cause();
        turn_until(&mut reactor, || count.get() == 1);
        let ready = registration.take_read_ready().unwrap().unwrap();
        assert!(
            ready.is_readable() && !ready.is_error(),
            "round {round}: {ready:?}"
        );
        drain(ours);
    }
}

/// Filled to the brim, `ours` becomes writable after `make_room`.
#[track_caller]
fn assert_writable_after(backend: Backend, ours: &impl AsFd, make_room: impl FnOnce()) {
    let mut reactor = reactor(backend);
    fill_for_good(ours);
    let registration = register_interest(ours, Interest::WRITABLE, &reactor);
    forget_edges(&mut reactor, &registration);
    let (count, waker) = counting_waker();
    assert!(poll_write(&registration, &waker).is_pending());
    settle(&mut reactor);
    assert_eq!(count.get(), 0);
    make_room();
    turn_until(&mut reactor, || count.get() == 1);
    assert_eq!(
        registration.take_write_ready().unwrap(),
        Some(Ready::WRITABLE)
    );
    assert!(fill(ours) > 0);
}

both_backends! {
    fn a_tcp_stream(backend: Backend) {
        let (ours, theirs) = tcp_pair();
        assert_readable_after(backend, &ours, true, || put(&theirs, b"x"));
        assert_writable_after(backend, &ours, || while_reading(&theirs));
    }

    fn a_tcp_listener(backend: Backend) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut reactor = reactor(backend);
        let registration = register_interest(&listener, Interest::READABLE, &reactor);
        let mut clients = Vec::new();
        for _ in 0..3 {
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
            forget_edges(&mut reactor, &registration);
            let (count, waker) = counting_waker();
            assert!(poll_read(&registration, &waker).is_pending());
            clients.push(TcpStream::connect(address).unwrap());
            turn_until(&mut reactor, || count.get() == 1);
            listener.accept().unwrap();
        }
    }

    fn a_tcp_connect_in_progress(backend: Backend) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (ours, progress) = connecting(listener.local_addr().unwrap().port());
        assert!(progress);
        let mut reactor = reactor(backend);
        let registration = register(&ours, &reactor);
        let ready = write_ready(&mut reactor, &registration, Ready::WRITABLE);
        assert!(!ready.is_hup() && !ready.is_error(), "{ready:?}");
        assert!(ours.take_error().unwrap().is_none());
        assert!(ours.peer_addr().is_ok());
    }

    fn a_tcp_connect_that_is_refused(backend: Backend) {
        // Nobody listens on the port of a listener that has gone.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let (ours, progress) = connecting(port);
        assert!(progress);
        let mut reactor = reactor(backend);
        let registration = register(&ours, &reactor);
        write_ready(&mut reactor, &registration, Ready::ERROR | Ready::HUP);
        let error = ours.take_error().unwrap().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    fn a_tcp_socket_that_is_neither_connected_nor_listening(backend: Backend) {
        let socket = tcp_socket();
        let mut reactor = reactor(backend);
        let registration = register(&socket, &reactor);
        let ready = write_ready(&mut reactor, &registration, Ready::HUP);
        assert!(ready.is_writable(), "{ready:?}");
        read_ready(&mut reactor, &registration, Ready::HUP);
        settle(&mut reactor);
        assert!(
            registration.take_read_ready().unwrap().unwrap().is_hup(),
            "it stays"
        );
    }

    fn a_udp_socket(backend: Backend) {
        let (ours, theirs) = udp_pair();
        assert_readable_after(backend, &ours, true, || {
            assert_eq!(theirs.send(b"x").unwrap(), 1)
        });
    }

    fn a_udp_socket_whose_peer_is_gone(backend: Backend) {
        let (ours, theirs) = udp_pair();
        let mut reactor = reactor(backend);
        let registration = register(&ours, &reactor);
        forget_edges(&mut reactor, &registration);
        drop(theirs);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        ours.send(b"x").unwrap();
        // The answer of the network: nobody there.
        turn_until(&mut reactor, || count.get() == 1);
        read_ready(&mut reactor, &registration, Ready::ERROR);
        assert_eq!(
            ours.take_error().unwrap().unwrap().kind(),
            ErrorKind::ConnectionRefused
        );
        settle(&mut reactor);
        registration.take_read_ready().unwrap();
        assert_eq!(
            registration.take_read_ready().unwrap(),
            None,
            "the error does not stay"
        );
    }

    fn a_unix_stream(backend: Backend) {
        let (ours, theirs) = unix_pair();
        assert_readable_after(backend, &ours, true, || put(&theirs, b"x"));
        assert_writable_after(backend, &ours, || while_reading(&theirs));
    }

    fn a_unix_listener(backend: Backend) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut reactor = reactor(backend);
        let registration = register_interest(&listener, Interest::READABLE, &reactor);
        forget_edges(&mut reactor, &registration);
        let _client = UnixStream::connect(&path).unwrap();
        read_ready(&mut reactor, &registration, Ready::READABLE);
        listener.accept().unwrap();
    }

    fn a_unix_datagram_socket(backend: Backend) {
        let (ours, theirs) = datagram_pair();
        assert_readable_after(backend, &ours, true, || {
            assert_eq!(theirs.send(b"x").unwrap(), 1)
        });
    }

    fn a_unix_datagram_socket_with_a_full_peer(backend: Backend) {
        let (ours, theirs) = datagram_pair();
        let mut reactor = reactor(backend);
        let registration = register_interest(&ours, Interest::WRITABLE, &reactor);
        while ours.send(b"x").is_ok() {}
        forget_edges(&mut reactor, &registration);
        let (count, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        let mut buffer = [0; 8];
        while theirs.recv(&mut buffer).is_ok() {}
        turn_until(&mut reactor, || count.get() == 1);
        assert_eq!(ours.send(b"x").unwrap(), 1);
    }

    fn a_pipe(backend: Backend) {
        let (reader, writer) = pipe_pair();
        assert_readable_after(backend, &reader, false, || put(&writer, b"x"));
        assert_writable_after(backend, &writer, || while_reading(&reader));
    }

    fn a_pipe_whose_writer_goes(backend: Backend) {
        let (reader, writer) = pipe_pair();
        let mut reactor = reactor(backend);
        let registration = register_interest(&reader, Interest::READABLE, &reactor);
        put(&writer, b"last");
        settle(&mut reactor);
        drop(writer);
        let ready = read_ready(&mut reactor, &registration, Ready::READABLE | Ready::HUP);
        assert!(ready.is_read_closed());
        get(&reader, b"last");
        assert!(at_end(&reader));
    }

    fn a_fifo(backend: Backend) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        let open = |flags| {
            rustix::fs::open(
                &path,
                flags | OFlags::NONBLOCK | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .unwrap()
        };
        let reader = open(OFlags::RDONLY);
        let writer = fs::File::from(open(OFlags::WRONLY));
        assert_readable_after(backend, &reader, false, || put(&writer, b"x"));
        // One descriptor for both directions.
        let both = fs::File::from(open(OFlags::RDWR));
        assert_readable_after(backend, &both, true, || put(&both, b"x"));
    }

    fn an_event_fd(backend: Backend) {
        let event = event_fd();
        assert_readable_after(backend, &event, true, || signal(&event));
        // Full, it waits for a reader.
        let mut reactor = reactor(backend);
        assert_eq!(
            rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()),
            Ok(8)
        );
        let registration = register_interest(&event, Interest::WRITABLE, &reactor);
        forget_edges(&mut reactor, &registration);
        let (count, waker) = counting_waker();
        assert!(poll_write(&registration, &waker).is_pending());
        assert_eq!(rustix::io::read(&event, &mut [0; 8]), Ok(8));
        turn_until(&mut reactor, || count.get() == 1);
    }

    fn a_timer_fd(backend: Backend) {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .unwrap();
        let time = |nanoseconds| Timespec {
            tv_sec: 0,
            tv_nsec: nanoseconds,
        };
        assert_readable_after(backend, &timer, false, || {
            let once = Itimerspec {
                it_interval: time(0),
                it_value: time(5_000_000),
            };
            rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once).unwrap();
        });
    }

    fn a_signal_fd(backend: Backend) {
        let signals = signal_fd(libc::SIGUSR2);
        assert_readable_after(backend, &signals, false, || {
            // SAFETY: the signal is blocked on this thread, and so only made pending for it.
            assert_eq!(unsafe { libc::raise(libc::SIGUSR2) }, 0);
        });
    }

    fn an_inotify_instance(backend: Backend) {
        let directory = tempfile::tempdir().unwrap();
        let notify =
            inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&notify, directory.path(), inotify::WatchFlags::CREATE).unwrap();
        let mut files = 0;
        assert_readable_after(backend, &notify, false, || {
            files += 1;
            fs::write(directory.path().join(files.to_string()), b"").unwrap();
        });
    }

    fn the_descriptor_of_a_process(backend: Backend) {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process =
            rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::NONBLOCK).unwrap();
        let mut reactor = reactor(backend);
        let registration = register_interest(&process, Interest::READABLE, &reactor);
        forget_edges(&mut reactor, &registration);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        // The end of its input is the end of `cat`.
        drop(child.stdin.take());
        turn_until(&mut reactor, || count.get() == 1);
        read_ready(&mut reactor, &registration, Ready::READABLE);
        assert!(child.try_wait().unwrap().unwrap().success());
    }

    fn a_pseudo_terminal(backend: Backend) {
        let (controller, terminal) = pty_pair();
        let mut modes = rustix::termios::tcgetattr(&terminal).unwrap();
        modes.make_raw();
        rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &modes)
            .unwrap();
        assert_readable_after(backend, &controller, true, || put(&terminal, b"x"));
        assert_readable_after(backend, &terminal, true, || put(&controller, b"x"));
        let mut reactor = reactor(backend);
        let registration = register(&controller, &reactor);
        forget_edges(&mut reactor, &registration);
        drop(terminal);
        read_ready(&mut reactor, &registration, Ready::HUP);
    }

    fn standard_streams_of_a_child(backend: Backend) {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().unwrap();
        nonblocking(&stdout);
        let mut reactor = reactor(backend);
        let writing = register_interest(&stdin, Interest::WRITABLE, &reactor);
        let reading = register_interest(&stdout, Interest::READABLE, &reactor);
        write_ready(&mut reactor, &writing, Ready::WRITABLE);
        put(&stdin, b"there and back");
        read_ready(&mut reactor, &reading, Ready::READABLE);
        drop(writing);
        drop(stdin);
        read_ready(&mut reactor, &reading, Ready::HUP);
        assert_eq!(drain(&stdout), (14, true));
        child.wait().unwrap();
    }
}

/// Reads what was filled in, until nothing comes for a moment.
fn while_reading(io: &impl AsFd) {
    let mut total = 0;
    while holds_within(Duration::from_millis(20), || {
        let (n, _) = drain(io);
        total += n;
        n > 0
    }) {}
    assert!(total > 0);
}

fn tcp_socket() -> TcpStream {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    TcpStream::from(socket)
}

/// A socket on its way to this port of this machine, and whether it is under way still.
fn connecting(port: u16) -> (TcpStream, bool) {
    let socket = tcp_socket();
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    match rustix::net::connect(&socket, &address) {
        Err(rustix::io::Errno::INPROGRESS) => (socket, true),
        other => panic!("{other:?}"),
    }
}

fn signal_fd(signal: libc::c_int) -> OwnedFd {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set before anything reads it; the calls after it get
    // pointers to it that are valid while they run.
    let fd = unsafe {
        assert_eq!(libc::sigemptyset(set.as_mut_ptr()), 0);
        assert_eq!(libc::sigaddset(set.as_mut_ptr(), signal), 0);
        assert_eq!(
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()),
            0
        );
        libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    };
    assert!(fd >= 0);
    // SAFETY: `signalfd` has just returned it, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

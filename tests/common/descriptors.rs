//! Pairs of descriptors: one to register, one to make it ready with. All are non-blocking.

use super::BOUND;
use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};
use rustix::net::SendFlags;
use rustix::pty::OpenptFlags;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

/// Sets `O_NONBLOCK`.
pub(crate) fn nonblocking(io: &impl AsFd) {
    rustix::io::ioctl_fionbio(io, true).unwrap();
}

/// The two ends of a TCP connection over loopback, without Nagle's delays.
pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    // Somebody else's connection would not have our address.
    let theirs = loop {
        let (theirs, address) = listener.accept().unwrap();
        if address == ours.local_addr().unwrap() {
            break theirs;
        }
    };
    for stream in [&ours, &theirs] {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    (ours, theirs)
}

/// A connected pair of unix stream sockets.
pub(crate) fn unix_pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

/// A connected pair of unix datagram sockets.
pub(crate) fn datagram_pair() -> (UnixDatagram, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

/// Two UDP sockets, connected to each other.
pub(crate) fn udp_pair() -> (UdpSocket, UdpSocket) {
    let ours = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let theirs = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    ours.connect(theirs.local_addr().unwrap()).unwrap();
    theirs.connect(ours.local_addr().unwrap()).unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

/// A pipe.
pub(crate) fn pipe_pair() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    nonblocking(&reader);
    nonblocking(&writer);
    (reader, writer)
}

/// A pseudo-terminal: the controlling end and the terminal.
pub(crate) fn pty_pair() -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = rustix::pty::openpt(flags).unwrap();
    rustix::pty::grantpt(&controller).unwrap();
    rustix::pty::unlockpt(&controller).unwrap();
    let terminal = rustix::pty::ioctl_tiocgptpeer(&controller, flags).unwrap();
    nonblocking(&controller);
    nonblocking(&terminal);
    (File::from(controller), File::from(terminal))
}

/// An eventfd that counts from zero.
pub(crate) fn event_fd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

/// Makes an eventfd readable, or makes a readable one report once more.
pub(crate) fn signal(event_fd: &impl AsFd) {
    assert_eq!(rustix::io::write(event_fd, &1_u64.to_ne_bytes()), Ok(8));
}

/// Sends TCP's urgent byte.
pub(crate) fn send_urgent(stream: &TcpStream) {
    assert_eq!(rustix::net::send(stream, b"!", SendFlags::OOB), Ok(1));
}

/// Writes until the descriptor takes no more. Returns how much it took.
pub(crate) fn fill(io: &impl AsFd) -> usize {
    let chunk = [0x55_u8; 16 * 1024];
    let mut total = 0;
    loop {
        match rustix::io::write(io, &chunk) {
            Ok(n) => total += n,
            Err(rustix::io::Errno::AGAIN) => {
                // Room for less than a chunk may be left.
                match rustix::io::write(io, &chunk[..1]) {
                    Ok(n) => total += n,
                    Err(rustix::io::Errno::AGAIN) => return total,
                    Err(error) => panic!("{error}"),
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Fills a stream whose kernel may take a moment to move data on to the peer (TCP), until it has
/// taken nothing for a while.
pub(crate) fn fill_for_good(io: &impl AsFd) {
    let start = Instant::now();
    let mut quiet = 0;
    while quiet < 3 {
        assert!(start.elapsed() < BOUND);
        quiet = if fill(io) == 0 { quiet + 1 } else { 0 };
        thread::sleep(Duration::from_millis(2));
    }
}

/// Reads until there is nothing. Returns how much there was, and whether the end was met.
pub(crate) fn drain(io: &impl AsFd) -> (usize, bool) {
    let mut buffer = [0_u8; 16 * 1024];
    let mut total = 0;
    loop {
        match rustix::io::read(io, &mut buffer) {
            Ok(0) => return (total, true),
            Ok(n) => total += n,
            Err(rustix::io::Errno::AGAIN) => return (total, false),
            Err(error) => panic!("{error}"),
        }
    }
}

/// True if a non-blocking read sees the end of the stream now, or that it was reset.
pub(crate) fn at_end(io: &impl AsFd) -> bool {
    let mut buffer = [0_u8; 1024];
    loop {
        match rustix::io::read(io, &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::CONNRESET) => return true,
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes everything, to a descriptor that has room for it.
pub(crate) fn put(mut io: impl Write, bytes: &[u8]) {
    io.write_all(bytes).unwrap();
}

/// Reads exactly this, from a descriptor that has it.
pub(crate) fn get(mut io: impl Read, bytes: &[u8]) {
    let mut buffer = vec![0; bytes.len()];
    io.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, bytes);
}

/// Waits until there is something to read, as an outer loop does for a reactor's descriptor. False if
/// there is not in time.
pub(crate) fn is_readable(io: &impl AsFd, timeout: Duration) -> bool {
    let mut descriptors = [PollFd::new(io, PollFlags::IN)];
    let timeout = timeout.try_into().unwrap();
    loop {
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(ready) => return ready == 1,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

//! std's unix sockets.
//!
//! Those with an abstract address are made with std and given to [`AsyncFd::new`].

use super::AsyncFd;
use crate::handle::Handle;
use crate::source::word::Direction;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix};
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

impl AsyncFd<UnixListener> {
    /// Listens on a path, with the default reactor. As [`UnixListener::bind`].
    ///
    /// ```
    /// use std::os::unix::net::{UnixListener, UnixStream};
    /// use uring_reactor::{AsyncFd, Reactor};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("socket");
    /// let mut reactor = Reactor::new()?;
    /// reactor.block_on(async {
    ///     let listener = AsyncFd::<UnixListener>::bind(&path)?;
    ///     let _stream = AsyncFd::<UnixStream>::connect(&path).await?;
    ///     let (_accepted, peer) = listener.accept().await?;
    ///     assert!(peer.is_unnamed());
    ///     std::io::Result::Ok(())
    /// })??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// What the system says to the path (`AddrInUse` if it exists), and as [`AsyncFd::new`].
    pub fn bind(path: impl AsRef<Path>) -> io::Result<AsyncFd<UnixListener>> {
        AsyncFd::<UnixListener>::bind_with(path, &Handle::default())
    }

    /// As [`bind`](AsyncFd::<UnixListener>::bind), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As `bind`.
    pub fn bind_with(path: impl AsRef<Path>, handle: &Handle) -> io::Result<AsyncFd<UnixListener>> {
        Ok(AsyncFd::with_handle(UnixListener::bind(path)?, handle)?)
    }

    /// Waits for a connection. The new socket is non-blocking, and on this listener's reactor.
    ///
    /// # Errors
    ///
    /// What `accept(2)` says, and as [`AsyncFd::ready`]. See
    /// [the TCP listener's](AsyncFd::<std::net::TcpListener>::accept).
    ///
    /// # Cancel safety
    ///
    /// A connection that was accepted is returned, never lost.
    pub async fn accept(&self) -> io::Result<(AsyncFd<UnixStream>, SocketAddr)> {
        self.accepted(peer_address).await
    }
}

/// The peer of a socket that was just accepted. Clients rarely have a name, and only those that do
/// are worth the system call by which std reads it.
fn peer_address(socket: &UnixStream, from: Option<SocketAddrAny>) -> io::Result<SocketAddr> {
    let named = from.is_some_and(|from| from.addr_len() as usize > mem::size_of::<u16>());
    if named {
        socket.peer_addr()
    } else {
        SocketAddr::from_pathname("")
    }
}

impl AsyncFd<UnixStream> {
    /// Connects to a path, with the default reactor.
    ///
    /// # Errors
    ///
    /// What `connect(2)` says: `ConnectionRefused` if nobody listens there, `WouldBlock` if the
    /// listener's queue is full (of which the system has no event to wait for). And as
    /// [`AsyncFd::new`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the connection up.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<AsyncFd<UnixStream>> {
        AsyncFd::<UnixStream>::connect_with(path, &Handle::default()).await
    }

    /// As [`connect`](AsyncFd::<UnixStream>::connect), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As `connect`.
    ///
    /// # Cancel safety
    ///
    /// As `connect`.
    pub async fn connect_with(
        path: impl AsRef<Path>,
        handle: &Handle,
    ) -> io::Result<AsyncFd<UnixStream>> {
        let path = path.as_ref();
        // What std says to a path that is none.
        SocketAddr::from_pathname(path)?;
        let address = if path.as_os_str().is_empty() {
            SocketAddrUnix::new_unnamed()
        } else {
            SocketAddrUnix::new(path)?
        };
        AsyncFd::connected(AddressFamily::UNIX, &address, handle).await
    }

    /// Two sockets that are connected to each other, with the default reactor. As
    /// [`UnixStream::pair`].
    ///
    /// # Errors
    ///
    /// What the system says, and as [`AsyncFd::new`].
    pub fn pair() -> io::Result<(AsyncFd<UnixStream>, AsyncFd<UnixStream>)> {
        AsyncFd::<UnixStream>::pair_with(&Handle::default())
    }

    /// As [`pair`](AsyncFd::<UnixStream>::pair), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As `pair`.
    pub fn pair_with(handle: &Handle) -> io::Result<(AsyncFd<UnixStream>, AsyncFd<UnixStream>)> {
        both(UnixStream::pair()?, handle)
    }
}

impl AsyncFd<UnixDatagram> {
    /// A datagram socket that is bound to a path, with the default reactor. As
    /// [`UnixDatagram::bind`].
    ///
    /// # Errors
    ///
    /// What the system says to the path (`AddrInUse` if it exists), and as [`AsyncFd::new`].
    pub fn bind(path: impl AsRef<Path>) -> io::Result<AsyncFd<UnixDatagram>> {
        AsyncFd::<UnixDatagram>::bind_with(path, &Handle::default())
    }

    /// As [`bind`](AsyncFd::<UnixDatagram>::bind), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As `bind`.
    pub fn bind_with(path: impl AsRef<Path>, handle: &Handle) -> io::Result<AsyncFd<UnixDatagram>> {
        Ok(AsyncFd::with_handle(UnixDatagram::bind(path)?, handle)?)
    }

    /// A datagram socket without an address, with the default reactor. As
    /// [`UnixDatagram::unbound`].
    ///
    /// # Errors
    ///
    /// What the system says, and as [`AsyncFd::new`].
    pub fn unbound() -> io::Result<AsyncFd<UnixDatagram>> {
        AsyncFd::<UnixDatagram>::unbound_with(&Handle::default())
    }

    /// As [`unbound`](AsyncFd::<UnixDatagram>::unbound), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As `unbound`.
    pub fn unbound_with(handle: &Handle) -> io::Result<AsyncFd<UnixDatagram>> {
        Ok(AsyncFd::with_handle(UnixDatagram::unbound()?, handle)?)
    }

    /// Two datagram sockets that are connected to each other, with the default reactor. As
    /// [`UnixDatagram::pair`].
    ///
    /// # Errors
    ///
    /// What the system says, and as [`AsyncFd::new`].
    pub fn pair() -> io::Result<(AsyncFd<UnixDatagram>, AsyncFd<UnixDatagram>)> {
        AsyncFd::<UnixDatagram>::pair_with(&Handle::default())
    }

    /// As [`pair`](AsyncFd::<UnixDatagram>::pair), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As `pair`.
    pub fn pair_with(
        handle: &Handle,
    ) -> io::Result<(AsyncFd<UnixDatagram>, AsyncFd<UnixDatagram>)> {
        both(UnixDatagram::pair()?, handle)
    }

    /// Sets where `send` sends to. As [`UnixDatagram::connect`]: the future is ready at once, and nothing
    /// has happened before it is polled.
    ///
    /// # Errors
    ///
    /// What `connect(2)` says.
    pub async fn connect(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.get_ref().connect(path)
    }

    /// Sends a datagram to a path. As [`UnixDatagram::send_to`].
    ///
    /// If the receiver's queue is full, an unconnected socket is told of no event when there is room. This
    /// then tries again and again, with the other tasks in between; a socket that has much to send to a
    /// busy receiver should be connected to it.
    ///
    /// # Errors
    ///
    /// What `sendto(2)` says, and as [`AsyncFd::ready`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future has sent nothing.
    pub async fn send_to(&self, datagram: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        let path = path.as_ref();
        self.operate(Direction::Write, |io| io.send_to(datagram, path))
            .await
    }

    /// Sends a datagram to the path that the socket is connected to. As [`UnixDatagram::send`].
    ///
    /// # Errors
    ///
    /// What `send(2)` says, and as [`AsyncFd::ready`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future has sent nothing.
    pub async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.operate(Direction::Write, |io| io.send(datagram)).await
    }

    /// Receives a datagram, and tells where it comes from. As [`UnixDatagram::recv_from`]: what
    /// does not fit the buffer is lost.
    ///
    /// # Errors
    ///
    /// What `recvfrom(2)` says, and as [`AsyncFd::ready`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future has received nothing.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.operate(Direction::Read, |io| io.recv_from(buffer))
            .await
    }

    /// Receives a datagram. As [`UnixDatagram::recv`].
    ///
    /// # Errors
    ///
    /// As [`recv_from`](AsyncFd::<UnixDatagram>::recv_from).
    ///
    /// # Cancel safety
    ///
    /// A dropped future has received nothing.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.operate(Direction::Read, |io| io.recv(buffer)).await
    }
}

fn both<T: AsFd>((one, other): (T, T), handle: &Handle) -> io::Result<(AsyncFd<T>, AsyncFd<T>)> {
    Ok((
        AsyncFd::with_handle(one, handle)?,
        AsyncFd::with_handle(other, handle)?,
    ))
}

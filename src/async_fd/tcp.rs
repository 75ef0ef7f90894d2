//! std's TCP sockets.

use super::AsyncFd;
use crate::handle::Handle;
use crate::source::word::Direction;
use rustix::net::AddressFamily;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

impl AsyncFd<TcpListener> {
    /// Listens on an address, with the default reactor. As [`TcpListener::bind`]; port 0 lets the
    /// system choose one.
    ///
    /// ```
    /// use std::net::{TcpListener, TcpStream};
    /// use uring_reactor::{AsyncFd, Reactor};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut reactor = Reactor::new()?;
    /// reactor.block_on(async {
    ///     let listener = AsyncFd::<TcpListener>::bind(([127, 0, 0, 1], 0))?;
    ///     let address = listener.get_ref().local_addr()?;
    ///     let stream = AsyncFd::<TcpStream>::connect(address).await?;
    ///     let (_accepted, peer) = listener.accept().await?;
    ///     assert_eq!(peer, stream.get_ref().local_addr()?);
    ///     std::io::Result::Ok(())
    /// })??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// What the system says to the address, and as [`AsyncFd::new`].
    pub fn bind(address: impl Into<SocketAddr>) -> io::Result<AsyncFd<TcpListener>> {
        AsyncFd::<TcpListener>::bind_with(address, &Handle::default())
    }

    /// As [`bind`](AsyncFd::<TcpListener>::bind), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As `bind`.
    pub fn bind_with(
        address: impl Into<SocketAddr>,
        handle: &Handle,
    ) -> io::Result<AsyncFd<TcpListener>> {
        let listener = TcpListener::bind(address.into())?;
        Ok(AsyncFd::with_handle(listener, handle)?)
    }

    /// Waits for a connection. The new socket is non-blocking, and on this listener's reactor.
    ///
    /// # Errors
    ///
    /// What `accept(2)` says, and as [`AsyncFd::ready`]. Some of the former concerns one connection only
    /// (`ECONNABORTED`) or will pass (`EMFILE`), so a server goes on after an error, with a pause after
    /// the latter kind.
    ///
    /// # Cancel safety
    ///
    /// A connection that was accepted is returned, never lost.
    pub async fn accept(&self) -> io::Result<(AsyncFd<TcpStream>, SocketAddr)> {
        self.accepted(|socket: &TcpStream, from| match from {
            Some(from) => Ok(SocketAddr::try_from(from)?),
            None => socket.peer_addr(),
        })
        .await
    }
}

impl AsyncFd<TcpStream> {
    /// Connects to an address, with the default reactor.
    ///
    /// # Errors
    ///
    /// What became of the connection (`ConnectionRefused`, `TimedOut`, ...), and as
    /// [`AsyncFd::new`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the connection up.
    pub async fn connect(address: impl Into<SocketAddr>) -> io::Result<AsyncFd<TcpStream>> {
        AsyncFd::<TcpStream>::connect_with(address, &Handle::default()).await
    }

    /// As [`connect`](AsyncFd::<TcpStream>::connect), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As `connect`.
    ///
    /// # Cancel safety
    ///
    /// As `connect`.
    pub async fn connect_with(
        address: impl Into<SocketAddr>,
        handle: &Handle,
    ) -> io::Result<AsyncFd<TcpStream>> {
        let address = address.into();
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        AsyncFd::connected(family, &address, handle).await
    }

    /// Reads without taking what was read from the queue. As [`TcpStream::peek`].
    ///
    /// # Errors
    ///
    /// What `recv(2)` says, and as [`AsyncFd::ready`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.operate(Direction::Read, |io| io.peek(buffer)).await
    }
}

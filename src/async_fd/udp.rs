//! std's UDP socket.

use super::AsyncFd;
use crate::handle::Handle;
use crate::source::word::Direction;
use std::io;
use std::net::{SocketAddr, UdpSocket};

impl AsyncFd<UdpSocket> {
    /// A UDP socket that is bound to an address, with the default reactor. As
    /// [`UdpSocket::bind`]; port 0 lets the system choose one.
    ///
    /// ```
    /// use std::net::UdpSocket;
    /// use uring_reactor::{AsyncFd, Reactor};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut reactor = Reactor::new()?;
    /// reactor.block_on(async {
    ///     let ours = AsyncFd::<UdpSocket>::bind(([127, 0, 0, 1], 0))?;
    ///     let theirs = AsyncFd::<UdpSocket>::bind(([127, 0, 0, 1], 0))?;
    ///     ours.send_to(b"hello", theirs.get_ref().local_addr()?).await?;
    ///     let (n, from) = theirs.recv_from(&mut [0; 8]).await?;
    ///     assert_eq!((n, from), (5, ours.get_ref().local_addr()?));
    ///     std::io::Result::Ok(())
    /// })??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// What the system says to the address, and as [`AsyncFd::new`].
    pub fn bind(address: impl Into<SocketAddr>) -> io::Result<AsyncFd<UdpSocket>> {
        AsyncFd::<UdpSocket>::bind_with(address, &Handle::default())
    }

    /// As [`bind`](AsyncFd::<UdpSocket>::bind), with the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// As `bind`.
    pub fn bind_with(
        address: impl Into<SocketAddr>,
        handle: &Handle,
    ) -> io::Result<AsyncFd<UdpSocket>> {
        let socket = UdpSocket::bind(address.into())?;
        Ok(AsyncFd::with_handle(socket, handle)?)
    }

    /// Sets where `send` sends to, and the only address that datagrams are received from. As
    /// [`UdpSocket::connect`]: nothing goes over the wire, and the future is ready at once. Nothing has
    /// happened before it is polled.
    ///
    /// # Errors
    ///
    /// What `connect(2)` says.
    pub async fn connect(&self, address: impl Into<SocketAddr>) -> io::Result<()> {
        self.get_ref().connect(address.into())
    }

    /// Sends a datagram to an address. As [`UdpSocket::send_to`].
    ///
    /// # Errors
    ///
    /// What `sendto(2)` says, and as [`AsyncFd::ready`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future has sent nothing.
    pub async fn send_to(
        &self,
        datagram: &[u8],
        address: impl Into<SocketAddr>,
    ) -> io::Result<usize> {
        let address = address.into();
        self.operate(Direction::Write, |io| io.send_to(datagram, address))
            .await
    }

    /// Sends a datagram to the address that the socket is connected to. As [`UdpSocket::send`].
    ///
    /// # Errors
    ///
    /// What `send(2)` says, and as [`AsyncFd::ready`]. `ConnectionRefused` may be the answer to an
    /// earlier datagram.
    ///
    /// # Cancel safety
    ///
    /// A dropped future has sent nothing.
    pub async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.operate(Direction::Write, |io| io.send(datagram)).await
    }

    /// Receives a datagram, and tells where it comes from. As [`UdpSocket::recv_from`]: what does
    /// not fit the buffer is lost.
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

    /// Receives a datagram from the address that the socket is connected to. As
    /// [`UdpSocket::recv`].
    ///
    /// # Errors
    ///
    /// As [`recv_from`](AsyncFd::<UdpSocket>::recv_from). `ConnectionRefused` is the answer to an
    /// earlier `send`.
    ///
    /// # Cancel safety
    ///
    /// A dropped future has received nothing.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.operate(Direction::Read, |io| io.recv(buffer)).await
    }

    /// As [`recv_from`](AsyncFd::<UdpSocket>::recv_from), and leaves the datagram in the queue.
    ///
    /// # Errors
    ///
    /// As `recv_from`.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn peek_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.operate(Direction::Read, |io| io.peek_from(buffer))
            .await
    }

    /// As [`recv`](AsyncFd::<UdpSocket>::recv), and leaves the datagram in the queue.
    ///
    /// # Errors
    ///
    /// As `recv`.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.operate(Direction::Read, |io| io.peek(buffer)).await
    }
}

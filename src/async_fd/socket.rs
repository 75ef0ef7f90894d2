//! Connecting and accepting, for every kind of stream socket.

use super::{AsyncFd, default_interest};
use crate::handle::Handle;
use crate::source::word::Direction;
use crate::sync::Arc;
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, acceptfrom_with, connect, socket_with,
};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

impl<S: AsFd + From<OwnedFd>> AsyncFd<S> {
    /// A stream socket that is connected to `address`.
    pub(super) async fn connected(
        family: AddressFamily,
        address: &impl SocketAddrArg,
        handle: &Handle,
    ) -> io::Result<AsyncFd<S>> {
        let socket = socket_with(family, SocketType::STREAM, FLAGS, None)?;
        let pending = match connect(&socket, address) {
            Ok(()) => false,
            Err(Errno::INPROGRESS) => true,
            Err(error) => return Err(error.into()),
        };
        // Not sooner: a TCP socket that does not even try to connect has hung up, for good.
        let socket = AsyncFd::register(S::from(socket), default_interest(), handle)?;
        if pending {
            socket
                .operate(Direction::Write, |io| connection(io, address))
                .await?;
        }
        Ok(socket)
    }
}

/// What has become of a connection that was in progress. Calling `connect` once more tells all there
/// is to know, in one system call: `SO_ERROR` alone would not tell success from not yet.
fn connection(io: &impl AsFd, address: &impl SocketAddrArg) -> io::Result<()> {
    match connect(io, address) {
        Ok(()) | Err(Errno::ISCONN) => Ok(()),
        Err(Errno::ALREADY | Errno::INPROGRESS) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error.into()),
    }
}

impl<L: AsFd> AsyncFd<L> {
    /// The next connection of a listener, on the listener's reactor, and what `address` makes of it
    /// and of the address that the kernel said it comes from.
    pub(super) async fn accepted<S, A>(
        &self,
        address: impl Fn(&S, Option<SocketAddrAny>) -> io::Result<A>,
    ) -> io::Result<(AsyncFd<S>, A)>
    where
        S: AsFd + From<OwnedFd>,
    {
        let (socket, from) = self
            .operate(Direction::Read, |io| Ok(acceptfrom_with(io, FLAGS)?))
            .await?;
        let socket = S::from(socket);
        let address = address(&socket, from)?;
        let handle = Handle::from_shared(Arc::clone(self.source().shared()));
        let socket = AsyncFd::register(socket, default_interest(), &handle)?;
        Ok((socket, address))
    }
}

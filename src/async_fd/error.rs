//! [`NewError`] and [`WouldBlock`].

use std::error;
use std::fmt;
use std::io;

/// Why an [`AsyncFd`](crate::AsyncFd) could not be made, and the `T` it was to be made of.
///
/// It is `Into<io::Error>`, so that `?` works in a function that returns one; the `T` is dropped
/// then.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use uring_reactor::{AsyncFd, Reactor};
///
/// # fn main() -> std::io::Result<()> {
/// let gone = Reactor::new()?.handle();
/// let (stream, _peer) = UnixStream::pair()?;
/// let (stream, error) = AsyncFd::with_handle(stream, &gone).unwrap_err().into_parts();
/// assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
/// drop(stream);
/// # Ok(())
/// # }
/// ```
pub struct NewError<T> {
    io: T,
    error: io::Error,
}

impl<T> NewError<T> {
    pub(super) fn new(io: T, error: io::Error) -> NewError<T> {
        NewError { io, error }
    }

    /// The `T` that the constructor was called with, and the error.
    pub fn into_parts(self) -> (T, io::Error) {
        (self.io, self.error)
    }
}

impl<T> fmt::Debug for NewError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewError")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Display for NewError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no AsyncFd could be made of it: {}", self.error)
    }
}

impl<T> error::Error for NewError<T> {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.error)
    }
}

impl<T> From<NewError<T>> for io::Error {
    fn from(error: NewError<T>) -> io::Error {
        error.error
    }
}

/// The descriptor was not ready after all, from
/// [`ReadyGuard::try_io`](crate::ReadyGuard::try_io): wait and try again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WouldBlock(());

impl WouldBlock {
    pub(super) const fn new() -> WouldBlock {
        WouldBlock(())
    }
}

impl fmt::Debug for WouldBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WouldBlock")
    }
}

impl fmt::Display for WouldBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the descriptor is not ready")
    }
}

impl error::Error for WouldBlock {}

impl From<WouldBlock> for io::Error {
    fn from(_: WouldBlock) -> io::Error {
        io::ErrorKind::WouldBlock.into()
    }
}

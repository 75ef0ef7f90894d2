//! [`Error`]: what the crate's `io::Error`s carry.

use std::fmt;
use std::io;

/// Why a call was refused, for those who need to tell the reasons apart.
///
/// Every call of this crate that can fail returns an [`io::Error`]. Those that are the crate's own
/// verdict carry an `Error`:
///
/// ```
/// use uring_reactor::{Error, Registration};
///
/// let error = Registration::new().take_read_ready().unwrap_err();
/// let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
/// assert!(matches!(reason, Some(Error::NotRegistered)));
/// ```
///
/// The kernel's verdict on a descriptor (`EBADF`, or `EPERM` for a file that cannot be polled) is
/// not wrapped: it is an `io::Error` with its
/// [`raw_os_error`](io::Error::raw_os_error).
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A readiness call before `register`. Kind `NotConnected`.
    NotRegistered,
    /// A readiness call after `deregister`. Kind `NotConnected`.
    Deregistered,
    /// The reactor was dropped, or lived in the process from which this one was forked. Kind
    /// `BrokenPipe`.
    ReactorGone,
    /// `deregister` with another descriptor than the registered one. Kind `InvalidInput`.
    WrongDescriptor,
    /// The variable `URING_REACTOR_BACKEND` has a value that names no backend. Kind `InvalidInput`.
    UnknownBackend(String),
    /// The kernel is too old for io_uring as it is needed here, or built without. Kind
    /// `Unsupported`.
    KernelTooOld(io::Error),
    /// `kernel.io_uring_disabled` forbids io_uring. Kind `PermissionDenied`.
    Disabled(io::Error),
    /// A seccomp filter or a security module forbids io_uring. Kind `PermissionDenied`, or
    /// `Unsupported` where the filter answers `ENOSYS`. (So does Linux 6.1 to 6.5 that was built without
    /// io_uring.)
    Filtered(io::Error),
    /// The limit of locked memory leaves no room for the smallest ring. Kind `PermissionDenied`.
    LockedMemory(io::Error),
}

const OR_EPOLL: &str = "or use the epoll backend (Backend::Auto, Backend::Epoll, or \
                        URING_REACTOR_BACKEND=epoll)";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotRegistered => f.write_str("not registered: call `register` first"),
            Error::Deregistered => f.write_str("the registration was deregistered"),
            Error::ReactorGone => f.write_str("the reactor of this registration or handle is gone"),
            Error::WrongDescriptor => f.write_str("this is not the descriptor that was registered"),
            Error::UnknownBackend(value) => write!(
                f,
                "URING_REACTOR_BACKEND is {value:?}, but must be `auto`, `uring` or `epoll`"
            ),
            Error::KernelTooOld(error) => write!(
                f,
                "io_uring is not supported by this kernel ({error}): version 6.1 or later is \
                 needed, with CONFIG_IO_URING; update it, {OR_EPOLL}"
            ),
            Error::Disabled(error) => write!(
                f,
                "io_uring is switched off by the sysctl kernel.io_uring_disabled ({error}): set it \
                 to 0, {OR_EPOLL}"
            ),
            Error::Filtered(error) => write!(
                f,
                "io_uring is refused by a seccomp filter or security module ({error}), as the \
                 default profiles of Docker and containerd do: allow io_uring_setup, \
                 io_uring_enter and io_uring_register, {OR_EPOLL}"
            ),
            Error::LockedMemory(error) => write!(
                f,
                "io_uring cannot lock the memory of even a small ring ({error}): raise the limit \
                 of locked memory (`ulimit -l`, LimitMEMLOCK=), {OR_EPOLL}"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::KernelTooOld(error)
            | Error::Disabled(error)
            | Error::Filtered(error)
            | Error::LockedMemory(error) => Some(error),
            _ => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::NotRegistered | Error::Deregistered => io::ErrorKind::NotConnected,
            Error::ReactorGone => io::ErrorKind::BrokenPipe,
            Error::WrongDescriptor | Error::UnknownBackend(_) => io::ErrorKind::InvalidInput,
            Error::KernelTooOld(_) => io::ErrorKind::Unsupported,
            Error::Filtered(error) if error.kind() == io::ErrorKind::Unsupported => {
                io::ErrorKind::Unsupported
            }
            Error::Disabled(_) | Error::Filtered(_) | Error::LockedMemory(_) => {
                io::ErrorKind::PermissionDenied
            }
        };
        io::Error::new(kind, error)
    }
}

//! Which backend a reactor gets, and why not the other.

use crate::backend::bell::new_eventfd;
use crate::backend::epoll::Epoll;
use crate::backend::uring::Uring;
use crate::backend::uring::ring::Ring;
use crate::backend::{Kernel, Tag, Token};
use crate::error::Error;
use crate::reactor::Backend;
use crate::shared::Shared;
use crate::sync::Arc;
use io_uring::{opcode, types};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Once, OnceLock};
use std::time::Duration;

const VARIABLE: &str = "URING_REACTOR_BACKEND";

/// What the program chose, or else the environment.
pub(crate) fn choose(chosen: Backend) -> io::Result<Backend> {
    if chosen != Backend::Auto {
        return Ok(chosen);
    }
    let Some(value) = std::env::var_os(VARIABLE) else {
        return Ok(Backend::Auto);
    };
    match value.to_str() {
        Some("auto") => Ok(Backend::Auto),
        Some("uring") => Ok(Backend::Uring),
        Some("epoll") => Ok(Backend::Epoll),
        _ => Err(Error::UnknownBackend(value.to_string_lossy().into_owned()).into()),
    }
}

/// Makes the backend. What it is comes with it: never [`Backend::Auto`].
pub(crate) fn build(
    backend: Backend,
    shared: &Arc<Shared>,
) -> io::Result<(Backend, Box<dyn Kernel>)> {
    match backend {
        Backend::Epoll => {
            let epoll = Epoll::new(Arc::clone(shared))?;
            Ok((Backend::Epoll, Box::new(epoll)))
        }
        Backend::Uring => Ok((Backend::Uring, Box::new(uring(shared)?))),
        Backend::Auto => match build(Backend::Uring, shared) {
            Err(refusal) if is_refusal(&refusal) => {
                static WARNED: Once = Once::new();
                WARNED.call_once(|| tracing::warn!("falling back to epoll: {refusal}"));
                build(Backend::Epoll, shared)
            }
            result => result,
        },
    }
}

fn uring(shared: &Arc<Shared>) -> io::Result<Uring> {
    static TESTED: OnceLock<()> = OnceLock::new();
    if TESTED.get().is_none() {
        round_trip().map_err(explain)?;
        // What worked once is not asked again. A refusal is: limits can be raised.
        let _ = TESTED.set(());
    }
    Uring::new(Arc::clone(shared)).map_err(explain)
}

/// Sets a ring up, waits for an armed poll, and takes its completion. A filter may allow a part of
/// that, which is why nothing less will do.
fn round_trip() -> io::Result<()> {
    let mut ring = Ring::smallest()?;
    ring.enable()?;
    let watched = new_eventfd()?;
    let token = Token::new(Tag::Main, 0, 1);
    let poll = opcode::PollAdd::new(types::Fd(watched.as_raw_fd()), libc::POLLOUT as u32)
        .multi(true)
        .build()
        .user_data(token.0);
    // SAFETY: the entry refers to a descriptor only.
    unsafe { ring.push(&poll) };
    ring.enter(1, Some(Duration::from_secs(10)))?;
    let mut batch = Vec::new();
    ring.reap(&mut batch);
    let writable = libc::POLLOUT as i32;
    let answered = batch
        .iter()
        .any(|completion| completion.token == token && completion.result & writable != 0);
    if answered {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
}

/// Says what refused a ring. A lack of descriptors, or a signal, is no refusal and stays as it is.
pub(super) fn explain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if is_disabled() => Error::Disabled(error).into(),
        Some(libc::EPERM | libc::EACCES) => Error::Filtered(error).into(),
        Some(libc::ENOSYS) if version() >= (6, 1) && !is_built_without() => {
            Error::Filtered(error).into()
        }
        // `EINVAL`: a kernel that does not know one of the flags.
        Some(libc::ENOSYS | libc::EINVAL) => Error::KernelTooOld(error).into(),
        Some(libc::ENOMEM) => Error::LockedMemory(error).into(),
        Some(libc::EMFILE | libc::ENFILE | libc::EINTR | libc::EAGAIN) | None => error,
        // A filter may answer with any number, and a sandbox fail in its own way.
        Some(_) => Error::Filtered(error).into(),
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Error>())
}

/// 1 spares the members of a group, 2 nobody. Since Linux 6.6, if it is built with io_uring.
const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

fn is_disabled() -> bool {
    std::fs::read_to_string(SYSCTL).is_ok_and(|value| value.trim() != "0")
}

fn is_built_without() -> bool {
    let exists = |path| Path::new(path).exists();
    version() >= (6, 6) && exists("/proc/sys/kernel/ostype") && !exists(SYSCTL)
}

/// Of the kernel. 6.1 has all that we need.
fn version() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(errno: i32) -> io::Error {
        explain(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn a_refusal_names_io_uring_and_a_remedy() {
        for errno in [
            libc::EPERM,
            libc::ENOSYS,
            libc::EINVAL,
            libc::ENOMEM,
            libc::ENOENT,
            libc::ETIME,
        ] {
            let error = reason(errno);
            assert!(is_refusal(&error), "{error:?}");
            assert!(matches!(
                error.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ));
            let text = error.to_string();
            assert!(
                text.contains("io_uring") && text.contains("epoll"),
                "{text}"
            );
        }
        assert!(reason(libc::ENOMEM).to_string().contains("ulimit -l"));
    }

    #[test]
    fn a_lack_of_descriptors_is_no_refusal() {
        let error = reason(libc::EMFILE);
        assert!(!is_refusal(&error));
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    }
}

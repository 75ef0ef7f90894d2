//! The readiness reactor for Linux servers that runs on io_uring instead of epoll.
//!
//! A reactor tells tasks when a descriptor is ready: to be read, to be written, closed by its peer.
//! Everything that is written for readiness can stand on it, and that is most of what there is:
//! hyper, rustls, h2, and any C library that has a descriptor to show. It is neither an executor nor
//! a runtime and goes with any; it owns no buffers and does no I/O of its own.
//!
//! Underneath, each registered descriptor is one **multishot poll** on an io_uring. Registrations,
//! deregistrations and closes are collected and go to the kernel in the one `io_uring_enter` that
//! also waits. Where io_uring is refused, epoll serves behind the same interface.
//!
//! # Which type?
//!
//! - [`AsyncFd`] owns a descriptor, serves any number of tasks, and for std's sockets has the usual
//!   methods: `bind`, `accept`, `connect`, `send`, `recv`. With the features `futures-io` and
//!   `tokio` it implements their `AsyncRead` and `AsyncWrite`. **Start here.**
//! - [`Registration`] is the level below: it borrows a descriptor for the moment of `register`, and
//!   answers with two edge-triggered streams of readiness.
//! - [`Reactor`] takes turns, by [`block_on`](Reactor::block_on), by hand, or on a thread of its own
//!   ([`Background`]). A loop that stays on its thread makes it a [`LocalReactor`]. A [`Handle`] names
//!   it, on any thread.
//!
//! ```
//! use std::net::{Ipv4Addr, TcpListener, TcpStream};
//! use uring_reactor::{AsyncFd, Interest, Reactor};
//! use std::io::{Read, Write};
//!
//! # fn main() -> std::io::Result<()> {
//! let mut reactor = Reactor::new()?;
//! reactor.block_on(async {
//!     let listener = AsyncFd::<TcpListener>::bind((Ipv4Addr::LOCALHOST, 0))?;
//!     let mut client = TcpStream::connect(listener.get_ref().local_addr()?)?;
//!     client.write_all(b"hello")?;
//!
//!     let (stream, _peer) = listener.accept().await?;
//!     let mut buffer = [0; 16];
//!     let n = stream.async_io(Interest::READABLE, |mut io| io.read(&mut buffer)).await?;
//!     assert_eq!(&buffer[..n], b"hello");
//!     stream.close().await
//! })?
//! # }
//! ```
//!
//! # What readiness means
//!
//! Readiness is a hint that an operation may make progress. An event can be **spurious**: reported
//! although its cause was consumed meanwhile. So descriptors should be non-blocking, and
//! `WouldBlock` is always a possible answer. An event is **never missed**: whatever happens after the
//! bits of a direction were taken, or cleared, sets them again.
//!
//! Errors and hang-ups are reported to both directions whatever the interest, so that no task waits
//! for a peer that is gone.
//!
//! # Closing
//!
//! The kernel's poll holds the file: as long as it is armed, closing the descriptor sends no FIN and
//! frees no port. Deregister first, which [`AsyncFd`] does by itself; the reactor lets go of the file
//! in its next turn. [`AsyncFd::close`] waits for that.
//!
//! # Requirements
//!
//! Linux 6.1 or later for io_uring; older kernels, and containers whose seccomp profile refuses
//! io_uring (the defaults of Docker and containerd do), are served by epoll. See [`Backend`].
//!
//! # Features
//!
//! | feature | what it adds |
//! | --- | --- |
//! | `futures-io` | `AsyncRead` and `AsyncWrite` of `futures-io` for [`AsyncFd`] |
//! | `tokio` | `AsyncRead` and `AsyncWrite` of tokio for [`AsyncFd`]; the traits only |
//!
//! # Events
//!
//! Through `tracing`: registration, its end and recovery at DEBUG, each readiness event at TRACE; the
//! fallback to epoll, a ring that will not end, and a lack of what lets registrations from other threads be cheap,
//! at WARN; a panicking waker, a background reactor that cannot take its turn, and a descriptor that does not
//! show wakes, at ERROR.

#[cfg(not(target_os = "linux"))]
compile_error!("uring-reactor runs on Linux only: io_uring exists nowhere else");

#[cfg(doc)]
pub mod architecture;
mod async_fd;
mod backend;
mod background;
mod doorbell;
mod driver;
mod error;
mod handle;
mod intake;
mod local;
mod metrics;
mod reactor;
mod ready;
mod registration;
mod shared;
mod source;
mod spares;
mod sync;

/// The README's code is compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(all(uring_reactor_loom, test))]
#[path = "../loom-tests/models/mod.rs"]
mod models;

/// What `fuzz/` runs.
#[cfg(all(fuzzing, not(uring_reactor_loom)))]
#[doc(hidden)]
pub fn hostile_kernel(program: &[u8]) {
    driver::hostile::run(program);
}

pub use async_fd::{AsyncFd, NewError, ReadyGuard, WouldBlock};
pub use background::{Background, Shutdown};
pub use error::Error;
pub use handle::{DefaultGuard, Handle, SetFallbackError, set_default, with_default};
pub use local::LocalReactor;
pub use metrics::Metrics;
pub use reactor::{Backend, Builder, Reactor, Turn};
pub use ready::{Interest, Ready};
pub use registration::Registration;

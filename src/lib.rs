//! Crate docs go here.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("uring-reactor runs on Linux only: io_uring exists nowhere else");

mod async_fd;
mod backend;
mod background;
mod doorbell;
mod driver;
mod error;
mod handle;
mod intake;
mod metrics;
mod reactor;
mod ready;
mod registration;
mod shared;
mod source;
mod sync;

#[cfg(all(loom, test))]
#[path = "../loom-tests/models/mod.rs"]
mod models;

pub use async_fd::{AsyncFd, NewError, ReadyGuard, WouldBlock};
pub use background::{Background, Shutdown};
pub use error::Error;
pub use handle::{DefaultGuard, Handle, SetFallbackError, set_default, with_default};
pub use metrics::Metrics;
pub use reactor::{Backend, Builder, Reactor, Turn};
pub use ready::{Interest, Ready};
pub use registration::Registration;

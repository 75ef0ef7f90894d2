//! Which types are nothing but an owned descriptor.
//!
//! `AsyncFd` serves every `T: AsFd` and yet wants to treat the standard library's types better: their
//! descriptor can be taken out and closed by the reactor, and what they read can go to memory that
//! was not initialized. A trait of ours would tell them apart, but then nobody could use a type that
//! does not implement it; so the type itself is compared.

use std::any::TypeId;
use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{ChildStderr, ChildStdin, ChildStdout};

/// The id of a type that need not be `'static`: that of the type with every lifetime replaced by
/// `'static`.
fn type_id<T>() -> TypeId {
    trait Identify {
        fn identify(&self) -> TypeId
        where
            Self: 'static;
    }

    impl<T> Identify for PhantomData<T> {
        fn identify(&self) -> TypeId
        where
            Self: 'static,
        {
            TypeId::of::<T>()
        }
    }

    let phantom: &dyn Identify = &PhantomData::<T>;
    // SAFETY: only the lifetime bound of the trait object changes, and so neither the layout nor the
    // vtable. The bound is what `identify` asks for, whose body does nothing with a `T`: it makes a
    // number of its name, in which lifetimes do not occur. The reference is used here and now, and
    // dangles at no time.
    let phantom = unsafe { mem::transmute::<&dyn Identify, &(dyn Identify + 'static)>(phantom) };
    phantom.identify()
}

fn is<T, U: 'static>() -> bool {
    type_id::<T>() == TypeId::of::<U>()
}

/// True for the standard library's TCP stream.
#[cfg(any(feature = "futures-io", feature = "tokio"))]
pub(super) fn is_tcp_stream<T>() -> bool {
    is::<T, TcpStream>()
}

/// # Safety
///
/// `T` and `U` are the same type.
unsafe fn identity<T, U>(value: T) -> U {
    let value = ManuallyDrop::new(value);
    // SAFETY: the same type, by the caller's promise, and moved out of exactly once.
    unsafe { mem::transmute_copy::<ManuallyDrop<T>, U>(&value) }
}

macro_rules! owned_types {
    ($($type:ty),* $(,)?) => {
        /// True for the types of which `into_owned_fd` makes a descriptor.
        #[cfg(feature = "tokio")]
        pub(super) fn is_owned_fd<T>() -> bool {
            $(is::<T, $type>())||*
        }

        /// The descriptor of a value that is nothing else, or the value.
        pub(super) fn into_owned_fd<T>(value: T) -> Result<OwnedFd, T> {
            $(if is::<T, $type>() {
                // SAFETY: a type with this id differs from `$type` in lifetimes at most, and
                // `$type` has none. So they are the same.
                return Ok(unsafe { identity::<T, $type>(value) }.into());
            })*
            Err(value)
        }
    };
}

owned_types! {
    TcpStream, TcpListener, UdpSocket, UnixStream, UnixListener, UnixDatagram, OwnedFd, File,
    PipeReader, PipeWriter, ChildStdin, ChildStdout, ChildStderr,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
    use std::sync::Arc;

    #[test]
    fn an_owned_descriptor_is_taken_out_whole() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        let raw = stream.as_raw_fd();
        let fd = into_owned_fd(stream).unwrap();
        assert_eq!(fd.as_raw_fd(), raw);
        let fd = into_owned_fd(fd).unwrap();
        assert_eq!(fd.as_raw_fd(), raw);
        let file = into_owned_fd(File::from(fd)).unwrap();
        assert_eq!(file.as_raw_fd(), raw);
    }

    #[test]
    fn what_is_more_or_less_than_an_owned_descriptor_is_given_back() {
        struct Wrapped<'a>(UnixStream, &'a str);

        let (stream, peer) = UnixStream::pair().unwrap();
        let text = String::from("borrowed");
        let wrapped = into_owned_fd(Wrapped(stream, &text)).err().unwrap();
        assert_eq!(wrapped.1, "borrowed");
        let borrowed: BorrowedFd<'_> = into_owned_fd(wrapped.0.as_fd()).err().unwrap();
        assert_eq!(borrowed.as_raw_fd(), wrapped.0.as_raw_fd());
        assert!(into_owned_fd(&wrapped.0).is_err());
        assert!(into_owned_fd(Arc::new(peer)).is_err());
    }
}

//! What is left open when everything is over.

mod common;

use common::descriptors::*;
use common::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;
use uring_reactor::{AsyncFd, Reactor};

fn async_fd<T: AsFd>(io: T, reactor: &Reactor) -> AsyncFd<T> {
    AsyncFd::with_handle(io, &reactor.handle()).unwrap()
}

/// What the process has open.
fn descriptors() -> BTreeSet<String> {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let target = fs::read_link(&path).ok()?;
            Some(format!("{} -> {}", path.display(), target.display()))
        })
        .collect()
}

both_backends_in_child! {
    fn no_descriptor_is_left_behind(backend: Backend) {
        let open_and_close = |rounds: usize| {
            let mut reactor = reactor(backend);
            for round in 0..rounds {
                let (ours, theirs) = tcp_pair();
                let (one, other) = unix_pair();
                let (stream, peer) = unix_pair();
                let io = async_fd(ours, &reactor);
                let also = async_fd(one, &reactor);
                let boxed = async_fd(Box::new(stream), &reactor);
                if round % 2 == 0 {
                    reactor.turn(Some(Duration::ZERO)).unwrap();
                }
                drop(also.close());
                reactor.block_on(io.close()).unwrap().unwrap();
                reactor.block_on(boxed.close()).unwrap().unwrap();
                drop((theirs, other, peer));
            }
            let left: Vec<_> = (0..4).map(|_| async_fd(unix_pair().0, &reactor)).collect();
            settle(&mut reactor);
            let closing: Vec<_> = left.into_iter().map(AsyncFd::close).collect();
            drop(reactor);
            drop(closing);
        };
        // What the process opens once and for all is open after the first round.
        open_and_close(1);
        let before = descriptors();
        open_and_close(50);
        assert_eq!(descriptors(), before);
    }
}

//! The end of a reactor: what it watched is let go before its drop returns.

mod common;

use common::descriptors::*;
use common::*;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;
use uring_reactor::{Backend, Interest, Reactor, Registration};

/// A reactor that has served these, whose own ends are closed, and what is left of them.
fn with_closed_ends(backend: Backend, n: usize) -> (Reactor, Vec<UnixStream>, Vec<Registration>) {
    let mut reactor = reactor(backend);
    let (mut ends, mut peers, mut registrations) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..n {
        let (ours, theirs) = unix_pair();
        registrations.push(register(&ours, &reactor));
        ends.push(ours);
        peers.push(theirs);
    }
    settle(&mut reactor);
    drop(ends);
    (reactor, peers, registrations)
}

both_backends! {
    fn the_peers_see_the_end_when_the_drop_returns(backend: Backend) {
        for n in [1, 30, 1500] {
            let (reactor, peers, registrations) = with_closed_ends(backend, n);
            drop(reactor);
            let open = peers.iter().filter(|peer| !at_end(peer)).count();
            assert_eq!(open, 0, "of {n}");
            drop(registrations);
        }
    }

    fn also_on_another_thread(backend: Backend) {
        let (reactor, peers, registrations) = with_closed_ends(backend, 30);
        thread::spawn(move || drop(reactor)).join().unwrap();
        assert!(peers.iter().all(at_end));
        drop(registrations);
    }

    fn also_after_a_move(backend: Backend) {
        let (mut reactor, peers, registrations) = with_closed_ends(backend, 0);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        settle(&mut reactor);
        let reactor = thread::spawn(move || {
            settle(&mut reactor);
            reactor
        });
        let reactor = reactor.join().unwrap();
        drop(ours);
        drop(reactor);
        assert!(at_end(&theirs));
        drop((peers, registrations, registration));
    }

    fn what_no_turn_has_seen_is_let_go_too(backend: Backend) {
        let mut reactor = reactor(backend);
        let (dropped, droppeds_peer) = unix_pair();
        let (handed_over, handed_overs_peer) = unix_pair();
        let (fresh, freshs_peer) = unix_pair();
        let ending = register(&dropped, &reactor);
        let mut closing = register(&handed_over, &reactor);
        settle(&mut reactor);
        drop((ending, dropped));
        closing.deregister_and_close(handed_over).unwrap();
        let mut unseen = register(&fresh, &reactor);
        unseen.deregister_and_close(fresh).unwrap();
        drop(reactor);
        assert!(at_end(&droppeds_peer) && at_end(&handed_overs_peer) && at_end(&freshs_peer));
    }

    fn a_listener_can_be_bound_again_at_once(backend: Backend) {
        let mut reactor = reactor(backend);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let registration = register_interest(&listener, Interest::READABLE, &reactor);
        settle(&mut reactor);
        // It may live on in the kernel's poll.
        drop(listener);
        drop(reactor);
        TcpListener::bind(address).unwrap();
        drop(registration);
    }

    fn every_waiter_is_woken_after_its_file_was_let_go(backend: Backend) {
        let (reactor, peers, registrations) = with_closed_ends(backend, 5);
        let mut counts = Vec::new();
        for (registration, peer) in registrations.iter().zip(&peers) {
            registration.take_read_ready().unwrap();
            let (count, counting) = counting_waker();
            let peer = peer.try_clone().unwrap();
            let waker = waker_fn(move || {
                assert!(at_end(&peer));
                counting.wake_by_ref();
            });
            assert!(poll_read(registration, &waker).is_pending());
            counts.push(count);
        }
        drop(reactor);
        assert!(counts.iter().all(|count| count.get() == 1));
    }

    fn a_reactor_that_was_never_turned_can_be_dropped(backend: Backend) {
        let reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        let (count, waker) = counting_waker();
        assert!(poll_read(&registration, &waker).is_pending());
        drop(reactor);
        assert_eq!(count.get(), 1);
        drop(ours);
        assert!(at_end(&theirs));
    }

    fn dropping_is_not_slow(backend: Backend) {
        // Tens of milliseconds are allowed where the kernel is slow to take a ring down.
        let start = std::time::Instant::now();
        for _ in 0..20 {
            let (reactor, _peers, _registrations) = with_closed_ends(backend, 20);
            drop(reactor);
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

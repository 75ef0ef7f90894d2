//! Urgent data: heard of only by those who asked, and only when there is some.

mod common;

use common::descriptors::*;
use common::*;
use rustix::net::RecvFlags;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;
use uring_reactor::{Interest, Reactor, Ready, Registration};

fn all() -> Interest {
    Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY
}

/// Takes the urgent byte out.
fn take_urgent(stream: &TcpStream) {
    let mut byte = [0];
    let received = rustix::net::recv(stream, &mut byte, RecvFlags::OOB).unwrap();
    assert_eq!((received.0, byte), (1, *b"!"));
}

/// Urgent data is reported once it comes, and was not before.
#[track_caller]
fn assert_hears(
    reactor: &mut Reactor,
    registration: &Registration,
    ours: &TcpStream,
    theirs: &TcpStream,
) {
    settle(reactor);
    let early = registration.take_read_ready().unwrap();
    assert!(early.is_none_or(|ready| !ready.is_priority()), "{early:?}");
    let (count, waker) = counting_waker();
    assert!(poll_read(registration, &waker).is_pending());
    send_urgent(theirs);
    turn_until(reactor, || count.get() == 1);
    read_ready(reactor, registration, Ready::PRIORITY);
    take_urgent(ours);
}

both_backends! {
    fn priority_comes_only_if_asked_for(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register(&ours, &reactor);
        put(&theirs, b"plain");
        send_urgent(&theirs);
        let mut seen = read_ready(&mut reactor, &registration, Ready::READABLE);
        for _ in 0..10 {
            put(&theirs, b"more");
            seen |= read_ready(&mut reactor, &registration, Ready::READABLE);
        }
        assert!(!seen.is_priority(), "{seen:?}");
    }

    fn priority_comes_only_with_urgent_data(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let registration = register_interest(&ours, interest, &reactor);
        forget_edges(&mut reactor, &registration);
        let plain_segments = |reactor: &mut Reactor| {
            for _ in 0..30 {
                put(&theirs, b"plain");
                let ready = read_ready(reactor, &registration, Ready::READABLE);
                assert!(!ready.is_priority(), "no urgent data, yet {ready:?}");
                settle(reactor);
                if let Some(late) = registration.take_read_ready().unwrap() {
                    assert!(!late.is_priority(), "no urgent data, yet {late:?}");
                }
                drain(&ours);
            }
        };
        plain_segments(&mut reactor);
        for _ in 0..3 {
            let (count, waker) = counting_waker();
            forget_edges(&mut reactor, &registration);
            assert!(poll_read(&registration, &waker).is_pending());
            send_urgent(&theirs);
            turn_until(&mut reactor, || count.get() == 1);
            read_ready(&mut reactor, &registration, Ready::PRIORITY);
            let mut byte = [0];
            assert_eq!(
                rustix::net::recv(&ours, &mut byte, RecvFlags::OOB)
                    .unwrap()
                    .0,
                1
            );
            assert_eq!(&byte, b"!");
            settle(&mut reactor);
            registration.take_read_ready().unwrap();
            plain_segments(&mut reactor);
        }
    }

    fn priority_alone_is_an_interest(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register_interest(&ours, Interest::PRIORITY, &reactor);
        forget_edges(&mut reactor, &registration);
        send_urgent(&theirs);
        let ready = read_ready(&mut reactor, &registration, Ready::PRIORITY);
        assert!(!ready.is_writable());
    }

    fn two_registrations_on_one_socket_both_hear_of_urgent_data(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let first = register_interest(&ours, all(), &reactor);
        let second = register_interest(&ours, Interest::PRIORITY, &reactor);
        let third = register(&ours, &reactor);
        settle(&mut reactor);
        send_urgent(&theirs);
        read_ready(&mut reactor, &first, Ready::PRIORITY);
        read_ready(&mut reactor, &second, Ready::PRIORITY);
        put(&theirs, b"x");
        let plain = read_ready(&mut reactor, &third, Ready::READABLE);
        assert!(!plain.is_priority());
        drop(first);
        take_urgent(&ours);
        drain(&ours);
        forget_edges(&mut reactor, &second);
        assert_hears(&mut reactor, &second, &ours, &theirs);
    }

    fn the_other_bits_come_as_usual(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register_interest(&ours, all(), &reactor);
        write_ready(&mut reactor, &registration, Ready::WRITABLE);
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        read_ready(&mut reactor, &registration, Ready::READ_CLOSED);
        drop(theirs);
        // Nobody reads any more: that is answered with a reset.
        put(&ours, b"x");
        read_ready(&mut reactor, &registration, Ready::HUP | Ready::ERROR);
        write_ready(&mut reactor, &registration, Ready::HUP | Ready::ERROR);
    }

    fn the_peer_sees_the_close_after_the_next_turn(backend: Backend) {
        let mut reactor = reactor(backend);
        for (round, by_reactor) in [(0, true), (0, false), (1, true), (1, false)] {
            let (ours, theirs) = unix_pair();
            let mut registration = register_interest(&ours, all(), &reactor);
            for _ in 0..round {
                settle(&mut reactor);
            }
            put(&theirs, b"x");
            if by_reactor {
                registration.deregister_and_close(ours).unwrap();
            } else {
                registration.deregister(&ours).unwrap();
                drop(ours);
            }
            reactor.turn(Some(Duration::ZERO)).unwrap();
            assert!(at_end(&theirs));
            assert!(reactor.is_idle());
        }
    }

    fn the_interest_survives_a_move(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register_interest(&ours, all(), &reactor);
        for _ in 0..3 {
            assert_hears(&mut reactor, &registration, &ours, &theirs);
            thread::scope(|scope| {
                let reactor = &mut reactor;
                scope.spawn(|| assert_hears(reactor, &registration, &ours, &theirs));
            });
        }
    }

    fn a_nested_reactor_hears_of_it(backend: Backend) {
        use std::os::fd::AsFd;

        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let registration = register_interest(&ours, all(), &reactor);
        assert_hears(&mut reactor, &registration, &ours, &theirs);
        reactor.as_fd();
        for _ in 0..3 {
            assert_hears(&mut reactor, &registration, &ours, &theirs);
        }
    }

    fn a_refused_file_is_refused_for_it_too(backend: Backend) {
        let mut reactor = reactor(backend);
        let file = tempfile::tempfile().unwrap();
        let registration = register_interest(&file, all(), &reactor);
        settle(&mut reactor);
        let error = registration.take_read_ready().unwrap_err();
        assert_eq!(errno(&error), Some(libc::EPERM));
    }

    fn other_files_have_priority_events_of_their_own(backend: Backend) {
        // A pseudo-terminal in packet mode reports changes of its state so.
        let mut reactor = reactor(backend);
        let (controller, terminal) = pty_pair();
        packet_mode(&controller);
        let interest = Interest::READABLE | Interest::PRIORITY;
        let registration = register_interest(&controller, interest, &reactor);
        forget_edges(&mut reactor, &registration);
        rustix::termios::tcflow(&terminal, rustix::termios::Action::OOff).unwrap();
        read_ready(&mut reactor, &registration, Ready::PRIORITY);
    }
}

both_backends_in_child! {
    fn io_dropped_before_its_registration_disturbs_nobody(backend: Backend) {
        let mut reactor = reactor(backend);
        for _ in 0..20 {
            let (ours, theirs) = tcp_pair();
            let registration = register_interest(&ours, all(), &reactor);
            settle(&mut reactor);
            drop(ours);
            // With the number of the old one.
            let (new, news_peer) = tcp_pair();
            let replaced = register_interest(&new, all(), &reactor);
            assert_hears(&mut reactor, &replaced, &new, &news_peer);
            drop(registration);
            reactor.turn(Some(Duration::ZERO)).unwrap();
            wait_until(|| at_end(&theirs));
            assert_hears(&mut reactor, &replaced, &new, &news_peer);
        }
    }

    fn nothing_is_leaked(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = tcp_pair();
        drop(register_interest(&ours, all(), &reactor));
        settle(&mut reactor);
        let before = open_descriptors();
        for round in 0..50 {
            let first = register_interest(&ours, all(), &reactor);
            let second = register_interest(&ours, Interest::PRIORITY, &reactor);
            if round % 2 == 0 {
                settle(&mut reactor);
            }
            drop((first, second));
            settle(&mut reactor);
            assert!(reactor.is_idle());
        }
        assert_eq!(open_descriptors(), before);
    }
}

fn packet_mode(controller: &std::fs::File) {
    use std::os::fd::AsRawFd;

    let on: libc::c_int = 1;
    // SAFETY: `TIOCPKT` reads an int through the pointer, which is to a local.
    let result = unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCPKT, &raw const on) };
    assert_eq!(result, 0);
}

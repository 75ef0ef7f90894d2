//! More registrations than the main ring takes: the driver on rings with room for a few dozen.

use super::*;
use crate::backend::Bell;
use crate::backend::bell::{new_eventfd, signal};
use crate::backend::uring::Uring;
use crate::backend::uring::children::Limits;
use crate::backend::uring::ring::Ring;
use crate::handle::Handle;
use crate::registration::Registration;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::pipe::pipe;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

const LIMITS: Limits = Limits {
    main: 64,
    child: 32,
    children: 31,
    ring: Ring::child,
};
/// More than the main ring takes, and five children.
const MANY: usize = 200;
const LONG: Duration = Duration::from_secs(10);
const A_WHILE: Duration = Duration::from_secs(3);
/// No round has that number.
const OVER: usize = usize::MAX;

struct Bench {
    driver: Option<Driver>,
    handle: Handle,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.end();
    }
}

impl Bench {
    fn new(limits: Limits) -> Bench {
        let shared = Arc::new(Shared::new(Bell::new().unwrap()));
        let uring = Uring::with_limits(Arc::clone(&shared), limits).unwrap();
        let driver = Driver::new(Box::new(uring), Arc::clone(&shared), Duration::ZERO);
        Bench {
            driver: Some(driver),
            handle: Handle::from_shared(shared),
        }
    }

    fn end(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.shut_down();
        }
    }

    fn driver(&mut self) -> &mut Driver {
        self.driver.as_mut().unwrap()
    }

    fn turn(&mut self) -> usize {
        self.driver().turn(NOW, || true).unwrap()
    }

    fn register(&self, io: &impl AsFd) -> Registration {
        let registration = Registration::new();
        assert!(registration.register_with(io, &self.handle).unwrap());
        registration
    }

    /// Takes turns until the condition holds.
    fn turn_until(&mut self, mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < LONG, "it does not come to that");
            self.driver()
                .turn(Some(Duration::from_millis(100)), || true)
                .unwrap();
        }
    }

    /// How many children there are.
    fn rings(&mut self) -> usize {
        let places = self.driver().slots.iter();
        let places = places.map(|(_, slot)| usize::from(slot.place.ring));
        places.max().unwrap_or(0)
    }

    fn polls_in(&mut self, ring: u8) -> usize {
        let places = self.driver().slots.iter();
        places.filter(|(_, slot)| slot.place.ring == ring).count()
    }
}

struct Connection {
    ours: UnixStream,
    theirs: UnixStream,
    registration: Registration,
}

impl Connection {
    fn new(bench: &Bench) -> Connection {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let registration = bench.register(&ours);
        Connection {
            ours,
            theirs,
            registration,
        }
    }

    /// Connections of a reactor that has told the kernel of all of them.
    fn many(bench: &mut Bench, count: usize) -> Vec<Connection> {
        let connections: Vec<_> = (0..count).map(|_| Connection::new(bench)).collect();
        bench.turn_until(|| connections.iter().all(|it| it.is_armed()));
        while bench.turn() > 0 {}
        connections
    }

    /// A socket that was just armed can be written to.
    fn is_armed(&self) -> bool {
        self.registration.take_write_ready().unwrap().is_some()
    }

    fn send(&self) {
        (&self.theirs).write_all(b"x").unwrap();
    }

    /// Takes what was sent, if the registration says that there is something.
    fn has_received(&self) -> bool {
        let ready = self.registration.take_read_ready().unwrap();
        ready.is_some_and(|ready| ready.is_readable())
            && (&self.ours).read(&mut [0; 8]).is_ok_and(|count| count > 0)
    }
}

/// What is sent is received, by all of them.
fn check(bench: &mut Bench, connections: &[Connection]) {
    connections.iter().for_each(Connection::send);
    let mut received = vec![false; connections.len()];
    bench.turn_until(|| {
        for (received, connection) in received.iter_mut().zip(connections) {
            *received |= connection.has_received();
        }
        received.iter().all(|received| *received)
    });
}

#[test]
fn events_come_from_every_ring() {
    let mut bench = Bench::new(LIMITS);
    let connections = Connection::many(&mut bench, MANY);
    assert_eq!(bench.rings(), 5);
    for _ in 0..10 {
        check(&mut bench, &connections);
    }
}

#[test]
fn what_an_eventfd_may_wake_stays_in_the_main_ring() {
    let mut bench = Bench::new(LIMITS);
    let _connections = Connection::many(&mut bench, 100);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let (reader, writer) = pipe().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    for (file, in_main) in [
        (new_eventfd().unwrap(), true),
        (epoll, true),
        (reader, false),
        (writer, false),
        (udp.into(), false),
        (tcp.into(), false),
    ] {
        let registration = bench.register(&file);
        bench.turn();
        let (_, youngest) = bench.driver().slots.iter().next_back().unwrap();
        assert_eq!(youngest.place.ring == 0, in_main, "{file:?}");
        drop(registration);
        bench.turn();
    }
}

#[test]
fn a_ring_takes_polls_again_when_others_have_gone() {
    let mut bench = Bench::new(LIMITS);
    let mut connections = Connection::many(&mut bench, MANY);
    let mut dice = 1_usize;
    for _ in 0..3000 {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let index = (dice >> 33) % connections.len();
        connections[index] = Connection::new(&bench);
        bench.turn();
    }
    check(&mut bench, &connections);
    assert!(bench.rings() <= 9, "{} children", bench.rings());
    assert!(
        bench.polls_in(0) <= LIMITS.child as usize,
        "no more than a child"
    );
    // All go, and few come: these find room in the main ring.
    connections.clear();
    bench.turn();
    let connections = Connection::many(&mut bench, 40);
    assert_eq!(bench.rings(), 0);
    check(&mut bench, &connections);
}

/// Sends again and again, each time when it was told that the last one was received, for a while. Where
/// the reactor is meanwhile is left to chance.
fn wake_again_and_again(
    bench: &mut Bench,
    send: impl Fn(usize) + Sync,
    received: impl Fn(usize) -> bool,
) {
    let (send, turn) = (&send, &AtomicUsize::new(0));
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            for round in 0.. {
                let mut spins = 0;
                loop {
                    match turn.load(Relaxed) {
                        OVER => return,
                        turn if turn == round => break,
                        // There may be one processor for both.
                        _ if spins > 10_000 => thread::yield_now(),
                        _ => hint::spin_loop(),
                    }
                    spins += 1;
                }
                if round % 256 == 0 {
                    // It sleeps by now.
                    thread::sleep(Duration::from_micros(200));
                }
                send(round);
            }
        });
        let mut round = 0;
        while begun.elapsed() < A_WHILE {
            let sent = Instant::now();
            while !received(round) {
                bench.driver().turn(Some(LONG), || true).unwrap();
                if sent.elapsed() > LONG / 2 {
                    turn.store(OVER, Relaxed);
                    panic!("slept through round {round}");
                }
            }
            round += 1;
            turn.store(round, Relaxed);
            // To send takes longer than to park, so it is here that the two are brought together.
            for _ in 0..round % 256 {
                hint::spin_loop();
            }
        }
        turn.store(OVER, Relaxed);
    });
    // What is still on its way.
    while bench.turn() > 0 {}
    // It has not lost its sleep over that.
    let a_while = Duration::from_millis(100);
    let sleeps = (0..4).any(|_| {
        let begun = Instant::now();
        bench.driver().turn(Some(a_while), || true).unwrap();
        begun.elapsed() >= a_while
    });
    assert!(sleeps, "it never sleeps again");
}

#[test]
fn a_child_wakes_a_parked_reactor_every_time() {
    let mut bench = Bench::new(LIMITS);
    let connections = Connection::many(&mut bench, MANY);
    // Every other one of a child: all of them are silent for long, or none is.
    let which = |round: usize| &connections[64 + (round * 7) % (MANY - 64)];
    wake_again_and_again(
        &mut bench,
        |round| which(round).send(),
        |round| which(round).has_received(),
    );
}

#[test]
fn an_eventfd_wakes_a_parked_reactor_every_time_however_many_polls_there_are() {
    let mut bench = Bench::new(LIMITS);
    let _connections = Connection::many(&mut bench, MANY);
    let watched: Vec<_> = (0..100).map(|_| new_eventfd().unwrap()).collect();
    let registrations: Vec<_> = watched.iter().map(|fd| bench.register(fd)).collect();
    bench.turn_until(|| {
        let mut all = registrations.iter();
        all.all(|it| it.take_write_ready().unwrap().is_some())
    });
    wake_again_and_again(
        &mut bench,
        |round| signal(watched[round % watched.len()].as_fd()),
        |round| {
            let ready = registrations[round % watched.len()].take_read_ready();
            ready.unwrap().is_some()
        },
    );
}

#[test]
fn peers_see_the_end_of_what_is_closed_in_any_ring() {
    let mut bench = Bench::new(LIMITS);
    for _ in 0..5 {
        let mut peers = Vec::new();
        for connection in Connection::many(&mut bench, MANY) {
            let Connection {
                ours,
                theirs,
                mut registration,
            } = connection;
            registration.deregister_and_close(ours).unwrap();
            peers.push(theirs);
        }
        bench.turn();
        for mut peer in peers {
            assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0, "it is closed");
        }
    }
    let registered = |bench: &mut Bench| bench.driver().slots.len();
    for _ in 0..10 {
        bench.turn();
    }
    assert_eq!(registered(&mut bench), 0);
}

#[test]
fn peers_see_the_end_of_what_is_deregistered_and_then_closed() {
    let mut bench = Bench::new(LIMITS);
    let mut connections = Connection::many(&mut bench, MANY);
    // The wake-ups are under way when the removals come.
    connections.iter().for_each(Connection::send);
    for connection in &mut connections {
        connection
            .registration
            .deregister(&connection.ours)
            .unwrap();
    }
    bench.turn();
    for Connection {
        ours, mut theirs, ..
    } in connections
    {
        drop(ours);
        let end = theirs.read(&mut [0; 8]);
        // What was sent to us was not read.
        let reset = |error: io::Error| error.kind() == ErrorKind::ConnectionReset;
        assert!(end.map_or_else(reset, |count| count == 0), "it is held");
    }
}

#[test]
fn children_come_along_to_another_thread() {
    let mut bench = Bench::new(LIMITS);
    let connections = Connection::many(&mut bench, MANY);
    for _ in 0..5 {
        // One is being closed by the ring of the old thread.
        let mut leaving = Connection::new(&bench);
        bench.turn();
        let ours = leaving.ours.try_clone().unwrap();
        drop(std::mem::replace(&mut leaving.ours, ours));
        connections.iter().for_each(Connection::send);
        thread::scope(|scope| {
            scope.spawn(|| {
                check(&mut bench, &connections);
                assert!(bench.rings() >= 4);
            });
        });
    }
}

#[test]
fn the_end_of_the_reactor_lets_go_of_all_files() {
    // Cancelled one by one, or left to the end of the rings.
    for count in [MANY, 1500] {
        let mut bench = Bench::new(Limits {
            child: 100,
            ..LIMITS
        });
        let connections = Connection::many(&mut bench, count);
        bench.end();
        for Connection {
            ours, mut theirs, ..
        } in connections
        {
            drop(ours);
            assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0, "it is held");
        }
    }
}

#[test]
fn without_a_child_to_be_had_the_main_ring_takes_all() {
    let mut bench = Bench::new(Limits {
        ring: || Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        ..LIMITS
    });
    let connections = Connection::many(&mut bench, MANY);
    assert_eq!(bench.rings(), 0);
    check(&mut bench, &connections);
}

#[test]
fn rings_share_what_comes_when_there_can_be_no_more_of_them() {
    let mut bench = Bench::new(Limits {
        children: 2,
        ..LIMITS
    });
    let mut connections = Connection::many(&mut bench, 1000);
    assert_eq!(bench.rings(), 2);
    check(&mut bench, &connections);
    let polls = [0, 1, 2].map(|ring| bench.polls_in(ring));
    let [least, most] = [polls.iter().min(), polls.iter().max()].map(Option::unwrap);
    assert!(most - least <= LIMITS.child as usize / 4, "{polls:?}");
    // All go, and few come: these find room in the main ring.
    connections.clear();
    bench.turn();
    let connections = Connection::many(&mut bench, 40);
    assert_eq!(bench.rings(), 0);
    check(&mut bench, &connections);
}

#[test]
fn polls_leave_the_children_when_the_reactor_is_nested() {
    let mut bench = Bench::new(LIMITS);
    let connections = Connection::many(&mut bench, MANY);
    let descriptor: OwnedFd = bench.driver().descriptor().try_clone_to_owned().unwrap();
    while bench.turn() > 0 {}
    for _ in 0..3 {
        for connection in &connections {
            bench.turn();
            connection.send();
            let mut watched = [PollFd::new(&descriptor, PollFlags::IN)];
            let timeout = rustix::time::Timespec::try_from(LONG).unwrap();
            assert_eq!(poll(&mut watched, Some(&timeout)).unwrap(), 1);
            bench.turn_until(|| connection.has_received());
        }
    }
}

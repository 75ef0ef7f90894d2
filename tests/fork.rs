//! A process that forks: the child has its own reactors, and the parent's does not notice.
//!
//! Each test runs in a process of its own, in which nothing else goes on, so that the child of the
//! fork may do whatever it likes.

mod common;

use common::descriptors::*;
use common::*;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;
use uring_reactor::{
    AsyncFd, Backend, Error, Handle, Interest, LocalReactor, Reactor, Ready, Registration,
};

const ZERO: Option<Duration> = Some(Duration::ZERO);

/// A forked child.
struct Child(libc::pid_t);

impl Child {
    /// Forks. The child runs this and ends; it fails if this panics, or hangs for half a minute.
    fn run(run: impl FnOnce()) -> Child {
        // SAFETY: the other threads of this process sleep (libtest's, which waits for this one, and
        // those of reactors, which wait for events) and hold no lock that the child might want.
        match unsafe { libc::fork() } {
            -1 => panic!("{}", std::io::Error::last_os_error()),
            0 => {
                // SAFETY: its signal ends this process, which is all there is to it.
                unsafe { libc::alarm(30) };
                let outcome = panic::catch_unwind(AssertUnwindSafe(run));
                // SAFETY: ends the process, and runs nothing that belongs to the parent.
                unsafe { libc::_exit(i32::from(outcome.is_err())) }
            }
            pid => Child(pid),
        }
    }

    /// Waits for the end of the child, which must be a good one.
    #[track_caller]
    fn join(self) {
        let mut status = 0;
        // SAFETY: the pointer is to a local that the call fills in.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
            "the child: {status:#x}"
        );
    }
}

/// There is no thread that would bring an event, and the registration says so.
#[track_caller]
fn assert_gone(registration: &Registration, waker: &Waker) {
    let Poll::Ready(Err(error)) = poll_read(registration, waker) else {
        panic!("it waits for one that is gone");
    };
    assert!(
        matches!(reason(&error), Some(Error::ReactorGone)),
        "{error:?}"
    );
}

/// A reactor that has served something, and what it serves.
struct Served {
    reactor: Reactor,
    event: OwnedFd,
    registration: Registration,
}

impl Served {
    fn start(backend: Backend) -> Served {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        signal(&event);
        read_ready(&mut reactor, &registration, Ready::READABLE);
        Served {
            reactor,
            event,
            registration,
        }
    }

    /// Fails unless it does all that a reactor does.
    #[track_caller]
    fn check(&mut self) {
        for _ in 0..3 {
            forget_edges(&mut self.reactor, &self.registration);
            let (count, waker) = counting_waker();
            assert!(poll_read(&self.registration, &waker).is_pending());
            signal(&self.event);
            turn_until(&mut self.reactor, || count.get() == 1);
        }
        let (ours, theirs) = unix_pair();
        let mut registration = register(&ours, &self.reactor);
        put(&theirs, b"x");
        read_ready(&mut self.reactor, &registration, Ready::READABLE);
        registration.deregister(&ours).unwrap();
        drop(ours);
        self.reactor.turn(ZERO).unwrap();
        assert!(at_end(&theirs));
        let handle = self.reactor.handle();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(2));
                handle.wake();
            });
            self.reactor.turn(None).unwrap();
        });
    }
}

fn other(backend: Backend) -> Backend {
    if backend == Backend::Uring {
        Backend::Epoll
    } else {
        Backend::Uring
    }
}

both_backends_in_child! {
    fn a_child_builds_reactors_of_its_own(backend: Backend) {
        let mut parents = Served::start(backend);
        let child = Child::run(|| {
            Served::start(backend).check();
            Served::start(other(backend)).check();
        });
        child.join();
        parents.check();
    }

    fn a_child_that_drops_the_inherited_reactor_does_no_harm(backend: Backend) {
        let mut parents = Some(Served::start(backend));
        let child = Child::run(|| drop(parents.take()));
        child.join();
        parents.unwrap().check();
    }

    fn a_child_that_turns_the_inherited_reactor_does_no_harm(backend: Backend) {
        let mut parents = Served::start(backend);
        let child = Child::run(|| {
            for _ in 0..20 {
                let _ = parents.reactor.turn(ZERO);
            }
            let _ = parents.reactor.turn(Some(Duration::from_millis(5)));
        });
        child.join();
        parents.check();
    }

    fn a_child_may_go_on_with_the_inherited_reactor(backend: Backend) {
        let mut parents = Served::start(backend);
        // Sockets of its own: the other ones are the parent's as well.
        let child = Child::run(|| parents.check());
        child.join();
        // The child has signalled the common eventfd.
        parents.check();
    }

    fn a_child_turns_and_drops_an_inherited_local_reactor(backend: Backend) {
        let mut reactor = Some(reactor(backend).into_local());
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, reactor.as_ref().unwrap());
        let serve = |reactor: &mut LocalReactor, rounds| {
            for _ in 0..rounds {
                signal(&event);
                reactor.turn(Some(BOUND)).unwrap();
                assert!(registration.take_read_ready().unwrap().is_some());
            }
        };
        serve(reactor.as_mut().unwrap(), 200);
        Child::run(|| drop(reactor.take())).join();
        serve(reactor.as_mut().unwrap(), 200);
        Child::run(|| {
            // A ring of the child's, which arms everything anew; so an event more may come.
            reactor.as_mut().unwrap().turn(ZERO).unwrap();
            serve(reactor.as_mut().unwrap(), 200);
            drop(reactor.take());
        })
        .join();
        serve(reactor.as_mut().unwrap(), 200);
    }

    fn both_go_on_at_the_same_time(backend: Backend) {
        let mut parents = Served::start(backend);
        let (mut go, mut told) = std::io::pipe().unwrap();
        let child = Child::run(|| {
            std::io::Read::read_exact(&mut go, &mut [0]).unwrap();
            for _ in 0..50 {
                let (ours, theirs) = unix_pair();
                let registration = register(&ours, &parents.reactor);
                put(&theirs, b"x");
                read_ready(&mut parents.reactor, &registration, Ready::READABLE);
            }
        });
        std::io::Write::write_all(&mut told, b"!").unwrap();
        for _ in 0..10 {
            parents.check();
        }
        child.join();
        parents.check();
    }

    fn a_child_that_drops_inherited_registrations_does_no_harm(backend: Backend) {
        for turned in [false, true] {
            let Served {
                mut reactor,
                event,
                registration,
            } = Served::start(backend);
            forget_edges(&mut reactor, &registration);
            let mut registration = Some(registration);
            let child = Child::run(|| {
                drop(registration.take());
                if turned {
                    let _ = reactor.turn(ZERO);
                }
            });
            child.join();
            let registration = registration.unwrap();
            signal(&event);
            read_ready(&mut reactor, &registration, Ready::READABLE);
        }
    }

    fn a_child_that_registers_with_the_inherited_handle_does_no_harm(backend: Backend) {
        let mut parents = Served::start(backend);
        let handle = parents.reactor.handle();
        let child = Child::run(|| {
            let (ours, _theirs) = unix_pair();
            let registration = Registration::new();
            // It may be told that the reactor is gone, or may turn its own copy of it.
            let _ = registration.register_with(&ours, &handle);
            handle.wake();
        });
        child.join();
        parents.check();
        assert_eq!(parents.reactor.metrics().registered, 1);
    }

    fn edges_at_the_time_of_the_fork_are_the_parents(backend: Backend) {
        let Served {
            mut reactor,
            event,
            registration,
        } = Served::start(backend);
        for _ in 0..10 {
            forget_edges(&mut reactor, &registration);
            signal(&event);
            let child = Child::run(|| {
                let _ = reactor.turn(ZERO);
            });
            child.join();
            read_ready(&mut reactor, &registration, Ready::READABLE);
        }
    }

    fn entries_at_the_time_of_the_fork_are_the_parents(backend: Backend) {
        let Served { mut reactor, .. } = Served::start(backend);
        let (ours, theirs) = unix_pair();
        let (ending, endings_peer) = unix_pair();
        let ended = register(&ending, &reactor);
        settle(&mut reactor);
        let registration = register(&ours, &reactor);
        drop(ended);
        put(&theirs, b"x");
        let child = Child::run(|| {
            let _ = reactor.turn(ZERO);
        });
        child.join();
        read_ready(&mut reactor, &registration, Ready::READABLE);
        drop(ending);
        reactor.turn(ZERO).unwrap();
        assert!(at_end(&endings_peer));
    }

    fn a_living_child_does_not_keep_the_parents_descriptors_busy(backend: Backend) {
        let mut parents = Served::start(backend);
        let (mut go, told) = std::io::pipe().unwrap();
        let child = Child::run(|| {
            // Lives, with the inherited reactor untouched, until the parent is through.
            let _ = std::io::Read::read(&mut go, &mut [0]);
        });
        parents.check();
        std::io::Write::write_all(&mut &told, b"!").unwrap();
        child.join();
    }

    fn the_parent_may_drop_its_reactor_first(backend: Backend) {
        let parents = Served::start(backend);
        let mut parents = Some(parents);
        let (mut go, mut told) = std::io::pipe().unwrap();
        let child = Child::run(|| {
            std::io::Read::read_exact(&mut go, &mut [0]).unwrap();
            let mut inherited = parents.take().unwrap();
            let _ = inherited.reactor.turn(ZERO);
            drop(inherited);
            Served::start(backend).check();
        });
        drop(parents.take());
        std::io::Write::write_all(&mut told, b"!").unwrap();
        child.join();
    }

    fn a_background_reactor_is_gone_in_the_child_and_goes_on_in_the_parent(backend: Backend) {
        let background = reactor(backend).background().unwrap();
        let handle = background.handle();
        let serves = |handle: &Handle| {
            let event = event_fd();
            let registration = Registration::new();
            registration.register_with(&event, handle).unwrap();
            signal(&event);
            wait_until(|| {
                registration
                    .take_read_ready()
                    .unwrap()
                    .is_some_and(|ready| ready.is_readable())
            });
        };
        serves(&handle);
        let mut background = Some(background);
        let child = Child::run(|| {
            let event = event_fd();
            let error = Registration::new()
                .register_with(&event, &handle)
                .unwrap_err();
            assert!(
                matches!(reason(&error), Some(Error::ReactorGone)),
                "{error:?}"
            );
            // There is no thread to wait for.
            drop(background.take());
            serves(&reactor(backend).background().unwrap().handle());
        });
        child.join();
        serves(&handle);
        background.unwrap().shutdown_now().wait();
    }

    fn a_program_that_is_executed_inherits_no_descriptor(backend: Backend) {
        let mut parents = Served::start(backend);
        let mut program = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let descriptors = format!("/proc/{}/fd", program.id());
        // Until it is `cat`, it is a copy of this process.
        let cat = format!("/proc/{}/comm", program.id());
        wait_until(|| fs::read_to_string(&cat).unwrap().trim() == "cat");
        for entry in fs::read_dir(descriptors).unwrap() {
            let Ok(target) = fs::read_link(entry.unwrap().path()) else {
                continue;
            };
            assert!(
                !target.to_string_lossy().contains("anon_inode"),
                "{target:?}"
            );
        }
        drop(program.stdin.take());
        program.wait().unwrap();
        parents.check();
    }
    fn a_child_that_registers_with_a_sleeping_parent_gives_it_nothing_to_watch(backend: Backend) {
        let reactor = Reactor::builder().backend(backend).build().unwrap();
        let turning = Turning::start(reactor);
        turning.wait_until_parked();
        let (ours, theirs) = unix_pair();
        let child = Child::run(|| {
            let registration = Registration::new();
            let handle = turning.handle();
            let _ = registration.register_interest(&ours, Interest::READABLE, handle);
        });
        child.join();
        turning.wait_until_parked();
        let before = turning.handle().metrics().turns;
        put(&theirs, b"x");
        turning.wait_until_parked();
        assert_eq!(turning.handle().metrics().turns, before);
    }

    fn what_a_reactor_slept_over_is_heard_of_in_parent_and_child(backend: Backend) {
        let reactor = Reactor::builder().backend(backend).build().unwrap();
        let turning = Turning::start(reactor);
        turning.wait_until_parked();
        let (ours, theirs) = unix_pair();
        let registration = Registration::new();
        registration
            .register_interest(&ours, Interest::READABLE, turning.handle())
            .unwrap();
        let mut parents = Some((turning.stop(), registration));
        let child = Child::run(|| {
            let (mut reactor, registration) = parents.take().unwrap();
            put(&theirs, b"x");
            read_ready(&mut reactor, &registration, Ready::READABLE);
            get(&ours, b"x");
        });
        child.join();
        let (mut reactor, registration) = parents.unwrap();
        put(&theirs, b"x");
        read_ready(&mut reactor, &registration, Ready::READABLE);
    }

    fn what_a_child_inherits_of_a_background_reactor_s_is_gone(backend: Backend) {
        let background = reactor(backend).background().unwrap();
        let handle = background.handle();
        let (ours, theirs) = unix_pair();
        let event = event_fd();
        let mut registration = Registration::new();
        registration
            .register_interest(&event, Interest::READABLE, &handle)
            .unwrap();
        // The first one alone might be left to the scout. For this one, the thread is woken.
        let io = AsyncFd::with_handle(ours, &handle).unwrap();
        wait_until(|| handle.metrics().entries >= 2);
        let mut io = Some(io);
        let child = Child::run(|| {
            let (count, waker) = counting_waker();
            if poll_read(&registration, &waker).is_pending() {
                assert_eq!(count.get(), 1);
            }
            assert_gone(&registration, &waker);
            let mut closing = Box::pin(io.take().unwrap().close());
            wait_until(|| poll_once(closing.as_mut()).is_ready());
            registration.deregister(&event).unwrap();
        });
        child.join();
        assert!(!at_end(&theirs));
        signal(&event);
        wait_until(|| registration.take_read_ready().unwrap().is_some());
    }

    fn what_a_child_inherits_of_a_background_reactor_is_gone_before_the_reactor_has_seen_it(backend: Backend) {
        let background = reactor(backend).background().unwrap();
        let handle = background.handle();
        // Its thread is held up in a waker.
        let (event, held) = (event_fd(), event_fd());
        let register = |io: &OwnedFd| {
            let registration = Registration::new();
            let registered = registration.register_interest(io, Interest::READABLE, &handle);
            assert!(registered.unwrap());
            registration
        };
        let holding = register(&event);
        let stage = Arc::new(AtomicUsize::new(0));
        let its_stage = Arc::clone(&stage);
        let waker = waker_fn(move || {
            its_stage.store(1, Ordering::SeqCst);
            wait_until(|| its_stage.load(Ordering::SeqCst) == 2);
        });
        assert!(poll_read(&holding, &waker).is_pending());
        signal(&event);
        wait_until(|| stage.load(Ordering::SeqCst) == 1);
        let registration = register(&held);
        let child = Child::run(|| {
            let (_, waker) = counting_waker();
            let _ = poll_read(&registration, &waker);
            assert_gone(&registration, &waker);
        });
        child.join();
        stage.store(2, Ordering::SeqCst);
        signal(&held);
        wait_until(|| registration.take_read_ready().unwrap().is_some());
    }

    fn a_child_may_ask_for_the_descriptor(backend: Backend) {
        for served in [false, true] {
            let (ours, theirs) = unix_pair();
            let mut reactor = reactor(backend);
            let registration = register_interest(&ours, Interest::READABLE, &reactor);
            if served {
                settle(&mut reactor);
            }
            let mut inherited = Some((reactor, registration));
            let child = Child::run(|| {
                let (mut reactor, registration) = inherited.take().unwrap();
                reactor.as_fd();
                settle(&mut reactor);
                assert!(!is_readable(&reactor, Duration::ZERO));
                put(&theirs, b"x");
                assert!(is_readable(&reactor, BOUND));
                read_ready(&mut reactor, &registration, Ready::READABLE);
                get(&ours, b"x");
            });
            child.join();
            let (mut reactor, registration) = inherited.unwrap();
            put(&theirs, b"x");
            read_ready(&mut reactor, &registration, Ready::READABLE);
            get(&ours, b"x");
            // It is as it was: nobody has asked for its descriptor yet.
            settle(&mut reactor);
            assert!(!is_readable(&reactor, Duration::ZERO));
            put(&theirs, b"x");
            assert!(is_readable(&reactor, BOUND));
            read_ready(&mut reactor, &registration, Ready::READABLE);
        }
    }

    fn a_child_that_lives_does_not_delay_what_comes_after_a_move(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let _registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (told, mut tell) = std::io::pipe().unwrap();
        let child = Child::run(move || {
            let mut told = told;
            std::io::Read::read_exact(&mut told, &mut [0]).unwrap();
        });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                settle(&mut reactor);
                // The child has the ring that was replaced. These were never in it.
                for turned in [false, true] {
                    let (ours, theirs) = unix_pair();
                    let io = AsyncFd::with_handle(ours, &reactor.handle()).unwrap();
                    if turned {
                        settle(&mut reactor);
                    }
                    reactor.block_on(io.close()).unwrap().unwrap();
                    assert!(at_end(&theirs));
                }
                std::io::Write::write_all(&mut tell, b"!").unwrap();
            });
        });
        child.join();
    }
}

#[test]
fn a_child_has_a_fallback_of_its_own() {
    in_child(&[], || {
        let serves = || {
            let event = event_fd();
            let registration = Registration::new();
            assert!(registration.register(&event).unwrap());
            signal(&event);
            wait_until(|| {
                registration
                    .take_read_ready()
                    .unwrap()
                    .is_some_and(|ready| ready.is_readable())
            });
        };
        // The parent's thread is not among what a child inherits.
        serves();
        Child::run(serves).join();
        serves();
    });
}

//! Wakers are the user's code, and may do anything.

mod common;

use common::descriptors::*;
use common::*;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker};
use std::time::Duration;
use uring_reactor::{AsyncFd, Handle, Interest, Ready, Registration};

const ZERO: Option<Duration> = Some(Duration::ZERO);

/// A waker that panics when it is called, and counts that.
fn panicking_waker() -> (Arc<Count>, Waker) {
    let (count, counting) = counting_waker();
    let waker = waker_fn(move || {
        counting.wake_by_ref();
        panic!("on purpose");
    });
    (count, waker)
}

/// A waker whose drop panics, once.
struct PanicsWhenDropped(Arc<Count>);

impl Wake for PanicsWhenDropped {
    fn wake(self: Arc<Self>) {}
}

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        self.0.wake_by_ref();
        if !std::thread::panicking() {
            panic!("on purpose");
        }
    }
}

/// A waker that cannot be cloned without a panic.
fn panics_when_cloned() -> Waker {
    const VTABLE: RawWakerVTable =
        RawWakerVTable::new(|_| panic!("on purpose"), |_| {}, |_| {}, |_| {});
    // SAFETY: no function of the table looks at the data, and all may be called from any thread.
    unsafe { Waker::from_raw(RawWaker::new(std::ptr::null(), &VTABLE)) }
}

both_backends! {
    fn one_that_panics_costs_no_other_its_event(backend: Backend) {
        let mut reactor = reactor(backend);
        let events: Vec<_> = (0..60).map(|_| event_fd()).collect();
        let registrations: Vec<_> = events
            .iter()
            .map(|event| register_interest(event, Interest::READABLE, &reactor))
            .collect();
        settle(&mut reactor);
        for _ in 0..3 {
            let wakers: Vec<_> = (0..events.len())
                .map(|index| {
                    if index % 3 == 0 {
                        panicking_waker()
                    } else {
                        counting_waker()
                    }
                })
                .collect();
            for (registration, (_, waker)) in registrations.iter().zip(&wakers) {
                assert!(poll_read(registration, waker).is_pending());
            }
            events.iter().for_each(signal);
            turn_until(&mut reactor, || {
                wakers.iter().all(|(count, _)| count.get() == 1)
            });
            for registration in &registrations {
                assert_eq!(
                    registration.take_read_ready().unwrap(),
                    Some(Ready::READABLE)
                );
            }
            settle(&mut reactor);
        }
        drop(registrations);
        reactor.turn(ZERO).unwrap();
        assert!(reactor.is_idle());
    }

    fn one_that_panics_does_not_cost_its_own_registration_anything(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        for _ in 0..5 {
            let (count, waker) = panicking_waker();
            assert!(poll_read(&registration, &waker).is_pending());
            signal(&event);
            turn_until(&mut reactor, || count.get() == 1);
            assert!(poll_read(&registration, &waker).is_ready());
        }
    }

    fn panics_of_both_directions_are_contained(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        fill(&ours);
        let registration = register(&ours, &reactor);
        forget_edges(&mut reactor, &registration);
        let (reader, read_waker) = panicking_waker();
        let (writer, write_waker) = panicking_waker();
        assert!(poll_read(&registration, &read_waker).is_pending());
        assert!(poll_write(&registration, &write_waker).is_pending());
        // One completion for both.
        drop(theirs);
        turn_until(&mut reactor, || reader.get() == 1 && writer.get() == 1);
        assert!(registration.take_read_ready().unwrap().unwrap().is_hup());
    }

    fn one_that_panics_when_its_registration_ends_stops_nobody(backend: Backend) {
        let mut reactor = reactor(backend);
        let pairs: Vec<_> = (0..9).map(|_| unix_pair()).collect();
        let mut registrations: Vec<_> = pairs
            .iter()
            .map(|(ours, _)| register_interest(ours, Interest::READABLE, &reactor))
            .collect();
        settle(&mut reactor);
        let wakers: Vec<_> = (0..pairs.len())
            .map(|index| {
                if index % 3 == 2 {
                    counting_waker()
                } else {
                    panicking_waker()
                }
            })
            .collect();
        for (registration, (_, waker)) in registrations.iter().zip(&wakers) {
            assert!(poll_read(registration, waker).is_pending());
        }
        for (registration, (ours, _)) in registrations.iter_mut().zip(&pairs).take(3) {
            registration.deregister(ours).unwrap();
        }
        let rest = registrations.split_off(6);
        drop(registrations);
        drop(reactor);
        let woken = |index: usize| wakers[index].0.get();
        assert_eq!([0, 1, 2].map(woken), [1; 3]);
        assert_eq!([6, 7, 8].map(woken), [1; 3]);
        drop(rest);
        assert_eq!([6, 7, 8].map(woken), [1; 3]);
    }

    fn one_may_wake_the_reactor(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let handle = reactor.handle();
        let (count, counting) = counting_waker();
        let waker = waker_fn(move || {
            handle.wake();
            counting.wake_by_ref();
        });
        assert!(poll_read(&registration, &waker).is_pending());
        signal(&event);
        turn_until(&mut reactor, || count.get() == 1);
        // Asked for during the last turn, so it is this one that returns.
        reactor.turn(None).unwrap();
    }

    fn one_may_register(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        let (ours, theirs) = unix_pair();
        put(&theirs, b"x");
        let new = Arc::new(Registration::new());
        let (handle, registering) = (reactor.handle(), Arc::clone(&new));
        let waker = waker_fn(move || {
            assert!(registering.register_with(&ours, &handle).unwrap());
            // The descriptor lives as long as the waker.
            let _ = &ours;
        });
        settle(&mut reactor);
        assert!(poll_read(&registration, &waker).is_pending());
        signal(&event);
        turn_until(&mut reactor, || {
            new.take_read_ready().is_ok_and(|ready| ready.is_some())
        });
    }

    fn one_may_end_registrations_its_own_among_them(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let (other, others_peer) = unix_pair();
        let registrations =
            [&ours, &other].map(|io| register_interest(io, Interest::READABLE, &reactor));
        settle(&mut reactor);
        let [own, others] = registrations;
        let cell = Arc::new(Mutex::new(None));
        let (count, counting) = counting_waker();
        let waker = {
            let cell = Arc::clone(&cell);
            waker_fn(move || {
                let ending: Option<(Registration, Registration)> = cell.lock().unwrap().take();
                if let Some((mut own, others)) = ending {
                    own.deregister(&ours).unwrap();
                    drop((own, others));
                }
                counting.wake_by_ref();
            })
        };
        assert!(poll_read(&own, &waker).is_pending());
        *cell.lock().unwrap() = Some((own, others));
        put(&others_peer, b"x");
        put(&theirs, b"x");
        turn_until(&mut reactor, || count.get() > 0);
        reactor.turn(ZERO).unwrap();
        assert!(reactor.is_idle());
        drop((waker, other));
        reactor.turn(ZERO).unwrap();
        wait_until(|| at_end(&theirs) && at_end(&others_peer));
    }

    fn one_may_poll_its_registration_again(backend: Backend) {
        /// Polls as a task does that is run by its waker: to the end, and again.
        struct Follows {
            registration: Registration,
            seen: AtomicUsize,
        }

        impl Wake for Follows {
            fn wake(self: Arc<Self>) {
                let waker = Waker::from(Arc::clone(&self));
                while let Poll::Ready(Ok(_)) = poll_read(&self.registration, &waker) {
                    self.seen.fetch_add(1, Ordering::SeqCst);
                }
            }
        }

        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        let follows = Arc::new(Follows {
            registration,
            seen: AtomicUsize::new(0),
        });
        Arc::clone(&follows).wake();
        settle(&mut reactor);
        for seen in 1..=20 {
            signal(&event);
            turn_until(&mut reactor, || follows.seen.load(Ordering::SeqCst) == seen);
        }
    }

    fn one_may_drop_what_it_belongs_to(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        // The task owns the registration, and the registration the task's waker.
        let task = Arc::new_cyclic(|task: &Weak<Mutex<Option<Registration>>>| {
            let registration = register_interest(&event, Interest::READABLE, &reactor);
            let task = task.clone();
            let waker = waker_fn(move || {
                if let Some(task) = task.upgrade() {
                    drop(task.lock().unwrap().take());
                }
            });
            assert!(poll_read(&registration, &waker).is_pending());
            Mutex::new(Some(registration))
        });
        signal(&event);
        turn_until(&mut reactor, || task.lock().unwrap().is_none());
        reactor.turn(ZERO).unwrap();
        assert!(reactor.is_idle());
    }

    fn one_may_turn_another_reactor(backend: Backend) {
        let mut reactor = reactor(backend);
        let inner = Mutex::new(common::reactor(backend));
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        let inners = register_interest(&event, Interest::READABLE, &inner.lock().unwrap());
        let (count, counting) = counting_waker();
        let waker = waker_fn(move || {
            let mut inner = inner.lock().unwrap();
            read_ready(&mut inner, &inners, Ready::READABLE);
            counting.wake_by_ref();
        });
        settle(&mut reactor);
        assert!(poll_read(&registration, &waker).is_pending());
        signal(&event);
        turn_until(&mut reactor, || count.get() == 1);
    }

    fn one_whose_drop_registers_is_let_go_without_harm(backend: Backend) {
        /// A task that, when it is forgotten, starts another.
        struct Starts(Handle, std::os::fd::OwnedFd, Arc<Registration>);

        impl Wake for Starts {
            fn wake(self: Arc<Self>) {}
        }

        impl Drop for Starts {
            fn drop(&mut self) {
                self.2.register_with(&self.1, &self.0).unwrap();
            }
        }

        let mut reactor = reactor(backend);
        let event = event_fd();
        for ended in [true, false] {
            let registration = register_interest(&event, Interest::READABLE, &reactor);
            let started = Arc::new(Registration::new());
            let task = Starts(reactor.handle(), event_fd(), Arc::clone(&started));
            assert!(poll_read(&registration, &Waker::from(Arc::new(task))).is_pending());
            if ended {
                drop(registration);
            } else {
                signal(&event);
            }
            turn_until(&mut reactor, || started.take_read_ready().is_ok());
        }
    }

    fn one_whose_drop_panics_costs_no_event(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (dropped, _) = counting_waker();
        let replaced = Waker::from(Arc::new(PanicsWhenDropped(Arc::clone(&dropped))));
        assert!(poll_read(&registration, &replaced).is_pending());
        drop(replaced);
        let (count, waker) = counting_waker();
        // Ours to meet, or the reactor's to contain.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| poll_read(&registration, &waker)));
        let _ = poll_read(&registration, &waker);
        signal(&event);
        turn_until(&mut reactor, || count.get() == 1);
        assert!(registration.take_read_ready().unwrap().is_some());
        assert_eq!(dropped.get(), 1);
    }

    fn what_one_panics_with_is_dropped(backend: Backend) {
        /// Counts its end, which may be another panic.
        struct Payload(Arc<Count>, bool);

        impl Drop for Payload {
            fn drop(&mut self) {
                self.0.wake_by_ref();
                if self.1 {
                    panic!("on purpose");
                }
            }
        }

        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        for panics in [false, true] {
            let (dropped, _) = counting_waker();
            let counted = Arc::clone(&dropped);
            let waker = waker_fn(move || {
                panic::panic_any(Payload(Arc::clone(&counted), panics));
            });
            assert!(poll_read(&registration, &waker).is_pending());
            signal(&event);
            turn_until(&mut reactor, || dropped.get() == 1);
            assert!(registration.take_read_ready().unwrap().is_some());
        }
    }

    fn one_whose_clone_panics_leaves_the_registration_as_it_was(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let registration = register_interest(&event, Interest::READABLE, &reactor);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        for _ in 0..3 {
            let polled = panic::catch_unwind(AssertUnwindSafe(|| {
                poll_read(&registration, &panics_when_cloned())
            }));
            assert!(polled.is_err(), "nothing else can be done with this waker");
            assert!(poll_read(&registration, &waker).is_pending());
            let before = count.get();
            signal(&event);
            turn_until(&mut reactor, || count.get() > before);
            // Ready at once: a waker is not even needed.
            assert!(poll_read(&registration, &panics_when_cloned()).is_ready());
        }
    }

    fn wakers_are_called_outside_of_any_lock(backend: Backend) {
        // Everything that a handle and a registration can do, from within a waker.
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = Arc::new(register(&ours, &reactor));
        forget_edges(&mut reactor, &registration);
        let (count, counting) = counting_waker();
        let (handle, own) = (reactor.handle(), Arc::downgrade(&registration));
        let waker = waker_fn(move || {
            let own = own.upgrade().unwrap();
            let (_, waker) = counting_waker();
            handle.wake();
            let _ = handle.metrics();
            let _ = format!("{handle:?} {own:?}");
            own.take_read_ready().unwrap();
            assert!(poll_read(&own, &waker).is_pending());
            own.take_write_ready().unwrap();
            let _ = poll_write(&own, &waker);
            let (one, _other) = unix_pair();
            drop(handle.clone());
            let short = Registration::new();
            short.register_with(&one, &handle).unwrap();
            drop(short);
            counting.wake_by_ref();
        });
        assert!(poll_read(&registration, &waker).is_pending());
        put(&theirs, b"x");
        turn_until(&mut reactor, || count.get() == 1);
    }

    fn one_may_drop_the_async_fd_that_is_dispatching_it(backend: Backend) {
        let mut reactor = reactor(backend);
        for handed_over in [false, true] {
            let (ours, theirs) = unix_pair();
            let io = Arc::new(Mutex::new(None));
            let (count, counting) = counting_waker();
            let waker = {
                let io = Arc::clone(&io);
                waker_fn(move || {
                    let taken: Option<AsyncFd<_>> = io.lock().unwrap().take();
                    if let Some(taken) = taken {
                        if handed_over {
                            let _ = poll_once(taken.close());
                        } else {
                            drop(taken);
                        }
                    }
                    counting.wake_by_ref();
                })
            };
            let async_fd = AsyncFd::with_handle(ours, &reactor.handle()).unwrap();
            settle(&mut reactor);
            let mut cx = Context::from_waker(&waker);
            assert!(async_fd.poll_read_ready(&mut cx).is_pending());
            *io.lock().unwrap() = Some(async_fd);
            put(&theirs, b"x");
            turn_until(&mut reactor, || count.get() > 0);
            settle(&mut reactor);
            assert!(at_end(&theirs) && reactor.is_idle());
        }
    }

    fn one_may_drop_all_tasks_that_wait_and_what_they_wait_for(backend: Backend) {
        type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
        let mut reactor = reactor(backend);
        for first in 0..3 {
            let (ours, theirs) = unix_pair();
            let io = Arc::new(AsyncFd::with_handle(ours, &reactor.handle()).unwrap());
            let tasks: Arc<Mutex<Vec<Task>>> = Arc::default();
            let (count, counting) = counting_waker();
            for place in 0..3 {
                let io = Arc::clone(&io);
                let mut task: Task = Box::pin(async move { drop(io.readable().await) });
                let waker = {
                    let (tasks, counting) = (Arc::clone(&tasks), counting.clone());
                    waker_fn(move || {
                        if place == first {
                            let tasks = std::mem::take(&mut *tasks.lock().unwrap());
                            drop(tasks);
                        }
                        counting.wake_by_ref();
                    })
                };
                assert!(task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                tasks.lock().unwrap().push(task);
            }
            drop(io);
            settle(&mut reactor);
            put(&theirs, b"x");
            turn_until(&mut reactor, || tasks.lock().unwrap().is_empty());
            settle(&mut reactor);
            assert!(count.get() <= 3, "{} calls", count.get());
            assert!(at_end(&theirs) && reactor.is_idle());
        }
    }

    fn one_may_drop_the_last_handle(backend: Backend) {
        let mut reactor = reactor(backend);
        let event = event_fd();
        let handle = reactor.handle();
        let registration = Registration::new();
        registration.register_interest(&event, Interest::READABLE, &handle).unwrap();
        let handle = Mutex::new(Some(handle));
        let (count, counting) = counting_waker();
        let waker = waker_fn(move || {
            drop(handle.lock().unwrap().take());
            counting.wake_by_ref();
        });
        assert!(poll_read(&registration, &waker).is_pending());
        signal(&event);
        turn_until(&mut reactor, || count.get() == 1);
        drop(waker);
        drop(registration);
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn one_may_wake_clone_and_drop_any_waker_its_own_too(backend: Backend) {
        /// Two tasks that wake each other, each with clones of its own waker.
        struct Wakes {
            other: Mutex<Option<Waker>>,
            calls: AtomicUsize,
        }

        impl Wake for Wakes {
            fn wake(self: Arc<Self>) {
                if self.calls.fetch_add(1, Ordering::SeqCst) >= 3 {
                    return;
                }
                let own = Waker::from(Arc::clone(&self));
                let clones: Vec<_> = (0..10).map(|_| own.clone()).collect();
                clones[0].wake_by_ref();
                drop(clones);
                let other = self.other.lock().unwrap().clone();
                if let Some(other) = other {
                    other.wake();
                }
                own.wake();
            }
        }

        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let registration = register(&ours, &reactor);
        fill(&ours);
        forget_edges(&mut reactor, &registration);
        let tasks = [(); 2].map(|()| {
            Arc::new(Wakes {
                other: Mutex::new(None),
                calls: AtomicUsize::new(0),
            })
        });
        let wakers = tasks.clone().map(Waker::from);
        for (task, waker) in tasks.iter().zip(wakers.iter().rev()) {
            *task.other.lock().unwrap() = Some(waker.clone());
        }
        assert!(poll_read(&registration, &wakers[0]).is_pending());
        assert!(poll_write(&registration, &wakers[1]).is_pending());
        // One completion for both.
        drop(theirs);
        turn_until(&mut reactor, || {
            tasks.iter().all(|task| task.calls.load(Ordering::SeqCst) >= 3)
        });
        assert!(registration.take_read_ready().unwrap().is_some());
        assert!(registration.take_write_ready().unwrap().is_some());
        drop(wakers);
        for task in &tasks {
            *task.other.lock().unwrap() = None;
        }
        // The registration keeps no waker that it has called.
        assert!(tasks.iter().all(|task| Arc::strong_count(task) == 1));
    }

    fn one_may_drop_the_background_that_has_more_to_dispatch(backend: Backend) {
        for first in [0, 7, 15] {
            let background = reactor(backend).background().unwrap();
            let handle = background.handle();
            let events: Vec<_> = (0..16).map(|_| event_fd()).collect();
            let registrations: Vec<_> = events
                .iter()
                .map(|event| {
                    let registration = Registration::new();
                    registration.register_interest(event, Interest::READABLE, &handle).unwrap();
                    registration
                })
                .collect();
            let background = Arc::new(Mutex::new(Some(background)));
            let mut counts = Vec::new();
            for (place, registration) in registrations.iter().enumerate() {
                let (count, counting) = counting_waker();
                let background = Arc::clone(&background);
                let waker = waker_fn(move || {
                    counting.wake_by_ref();
                    if place == first {
                        drop(background.lock().unwrap().take());
                    }
                });
                assert!(poll_read(registration, &waker).is_pending());
                counts.push(count);
            }
            // Each hears of its event or of the end, once.
            events.iter().for_each(signal);
            wait_until(|| counts.iter().all(|count| count.get() == 1));
            wait_until(|| registrations.iter().all(|registration| registration.take_read_ready().is_err()));
            assert!(counts.iter().all(|count| count.get() == 1));
        }
    }

    fn one_that_panics_when_a_close_that_was_given_up_drops_it_costs_nobody_anything(
        backend: Backend,
    ) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let closing = AsyncFd::with_handle(ours, &reactor.handle()).unwrap();
        // More than the reactor keeps for registrations to come.
        let events: Vec<_> = (0..200).map(|_| event_fd()).collect();
        let registrations: Vec<_> = events.iter().map(|event| register(event, &reactor)).collect();
        settle(&mut reactor);
        drop(registrations);
        settle(&mut reactor);
        let (count, _) = counting_waker();
        {
            let waker = Waker::from(Arc::new(PanicsWhenDropped(Arc::clone(&count))));
            let mut closing = Box::pin(closing.close());
            assert!(closing.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        // Behind it in the same turn.
        let registration = register_interest(&events[0], Interest::READABLE, &reactor);
        signal(&events[0]);
        read_ready(&mut reactor, &registration, Ready::READABLE);
        assert!(at_end(&theirs));
        assert_eq!(count.get(), 1);
    }
}

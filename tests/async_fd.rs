//! The owner of a descriptor: construction, readiness, guards, any number of tasks.

mod common;

use common::descriptors::*;
use common::*;
use rustix::fs::{OFlags, fcntl_getfl};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use uring_reactor::{
    AsyncFd, Error, Handle, Interest, Reactor, Ready, ReadyGuard, WouldBlock, set_default,
};

fn is_nonblocking(io: &impl AsFd) -> bool {
    fcntl_getfl(io).unwrap().contains(OFlags::NONBLOCK)
}

fn blocking_pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

fn async_fd<T: AsFd>(io: T, reactor: &Reactor) -> AsyncFd<T> {
    AsyncFd::with_handle(io, &reactor.handle()).unwrap()
}

fn would_block<R>() -> io::Result<R> {
    Err(ErrorKind::WouldBlock.into())
}

/// Polls a pinned future with a waker.
fn poll_with<F: Future>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

/// True if a wait for this interest would wait.
fn is_waiting<T>(io: &AsyncFd<T>, interest: Interest) -> bool {
    match poll_once(io.ready(interest)) {
        Poll::Ready(guard) => {
            drop(guard.unwrap());
            false
        }
        Poll::Pending => true,
    }
}

/// A stream that reports its own end to `record` when it is dropped.
struct Recorded<F: Fn()> {
    stream: UnixStream,
    record: F,
}

impl<F: Fn()> AsFd for Recorded<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<F: Fn()> Drop for Recorded<F> {
    fn drop(&mut self) {
        (self.record)();
    }
}

both_backends! {
    fn a_failed_constructor_gives_the_descriptor_back_as_it_was(backend: Backend) {
        struct NotDebug(UnixStream);
        impl AsFd for NotDebug {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }

        let gone = reactor(backend).handle();
        let (ours, mut theirs) = blocking_pair();
        let error = AsyncFd::with_handle(NotDebug(ours), &gone).unwrap_err();
        assert!(format!("{error:?}").contains("ReactorGone"));
        assert!(!error.to_string().is_empty());
        assert!(std::error::Error::source(&error).is_some());
        let (ours, error) = error.into_parts();
        assert!(matches!(reason(&error), Some(Error::ReactorGone)));
        assert!(!is_nonblocking(&ours));

        let interest = Interest::READABLE;
        let error = AsyncFd::with_handle_and_interest(ours, &gone, interest).unwrap_err();
        let (mut ours, error) = error.into_parts();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        put(&mut theirs, b"alive");
        get(&mut ours.0, b"alive");
    }

    fn a_constructor_s_error_is_an_io_error_to_the_question_mark(backend: Backend) {
        fn make(handle: &Handle) -> io::Result<()> {
            AsyncFd::with_handle(blocking_pair().0, handle)?;
            Ok(())
        }

        let gone = reactor(backend).handle();
        assert!(matches!(reason(&make(&gone).unwrap_err()), Some(Error::ReactorGone)));
    }

    fn only_new_nonblocking_leaves_the_flags_alone(backend: Backend) {
        let reactor = reactor(backend);
        let handle = reactor.handle();
        let _default = set_default(&handle);
        let io = || blocking_pair().0;
        let interest = Interest::READABLE;
        assert!(is_nonblocking(&AsyncFd::new(io()).unwrap()));
        assert!(is_nonblocking(&AsyncFd::with_handle(io(), &handle).unwrap()));
        assert!(is_nonblocking(&AsyncFd::with_interest(io(), interest).unwrap()));
        let io_with_both = AsyncFd::with_handle_and_interest(io(), &handle, interest).unwrap();
        assert!(is_nonblocking(&io_with_both));
        assert!(is_nonblocking(&io_with_both.into_inner()));
        assert!(!is_nonblocking(&AsyncFd::new_nonblocking(io()).unwrap()));
    }

    fn without_a_handle_the_default_reactor_is_taken(backend: Backend) {
        let mut reactor = reactor(backend);
        let _default = set_default(&reactor.handle());
        let made = (
            AsyncFd::new(blocking_pair().0).unwrap(),
            AsyncFd::new_nonblocking(unix_pair().0).unwrap(),
            AsyncFd::with_interest(blocking_pair().0, Interest::WRITABLE).unwrap(),
        );
        assert_eq!(reactor.metrics().registered, 3);
        drop(made);
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn into_inner_deregisters_and_does_not_drop(backend: Backend) {
        let mut reactor = reactor(backend);
        let (stream, mut theirs) = blocking_pair();
        let dropped = Cell::new(false);
        let io = async_fd(Recorded { stream, record: || dropped.set(true) }, &reactor);
        settle(&mut reactor);
        let inner = io.into_inner();
        assert!(!dropped.get());
        settle(&mut reactor);
        assert!(reactor.is_idle());
        put(&mut theirs, b"alive");
        get(&inner.stream, b"alive");
        drop(inner);
        assert!(dropped.get() && at_end(&theirs));
    }

    fn drop_deregisters_and_then_drops_the_inner(backend: Backend) {
        let mut reactor = reactor(backend);
        let (stream, theirs) = blocking_pair();
        let (count, waker) = counting_waker();
        let woken_before = Cell::new(None);
        let record = || woken_before.set(Some(count.get()));
        let io = async_fd(Recorded { stream, record }, &reactor);
        assert!(io.poll_read_ready(&mut Context::from_waker(&waker)).is_pending());
        drop(io);
        // The end of the registration is what wakes whoever waits in it.
        assert_eq!(woken_before.get(), Some(1));
        settle(&mut reactor);
        nonblocking(&theirs);
        assert!(reactor.is_idle() && at_end(&theirs));
    }

    fn a_descriptor_number_that_comes_again_is_another_descriptor(backend: Backend) {
        let mut reactor = reactor(backend);
        let mut peers = Vec::new();
        for round in 0..100 {
            // As a rule this pair has the numbers of the last one, which no turn has seen the end of.
            let (ours, theirs) = unix_pair();
            let io = async_fd(ours, &reactor);
            put(&theirs, &[round]);
            let mut buffer = [0; 16];
            let n = reactor
                .block_on(io.async_io(Interest::READABLE, |mut io| io.read(&mut buffer)))
                .unwrap()
                .unwrap();
            assert_eq!(&buffer[..n], [round]);
            drop(io);
            // The file lives on in the kernel's poll, and may have something to say.
            let _ = rustix::io::write(&theirs, b"to nobody");
            peers.push(theirs);
        }
        settle(&mut reactor);
        assert!(reactor.is_idle() && peers.iter().all(at_end));
    }

    fn the_descriptor_can_be_seen_and_borrowed(backend: Backend) {
        let reactor = reactor(backend);
        let (ours, _theirs) = blocking_pair();
        let number = ours.as_raw_fd();
        let io = async_fd(ours, &reactor);
        assert_eq!(io.as_raw_fd(), number);
        assert_eq!(io.as_fd().as_raw_fd(), number);
        assert_eq!(io.get_ref().as_raw_fd(), number);
        assert!(format!("{io:?}").contains(&number.to_string()));
    }

    fn borrowed_and_shared_descriptors_are_served(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        put(&theirs, b"!");
        let borrowed = async_fd(ours.as_fd(), &reactor);
        let by_reference = async_fd(&ours, &reactor);
        let shared = async_fd(Arc::new(ours.try_clone().unwrap()), &reactor);
        reactor.block_on(async {
            assert!(borrowed.readable().await.unwrap().ready().is_readable());
            assert!(by_reference.readable().await.unwrap().ready().is_readable());
            assert!(shared.readable().await.unwrap().ready().is_readable());
        }).unwrap();
    }

    fn readiness_stays_until_a_guard_clears_it(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        put(&theirs, b"!");
        let guard = reactor.block_on(io.readable()).unwrap().unwrap();
        assert!(guard.ready().is_readable());
        drop(guard);
        let Poll::Ready(Ok(mut guard)) = poll_once(io.readable()) else {
            panic!("a guard that cleared nothing took the readiness along");
        };
        guard.retain_ready();
        drop(guard);
        let Poll::Ready(Ok(mut guard)) = poll_once(io.readable()) else {
            panic!("a retained readiness is gone");
        };
        guard.clear_ready();
        assert_eq!(guard.ready(), Ready::EMPTY);
        assert!(is_waiting(&io, Interest::READABLE));
        // The cause is still there, but an event is what is waited for.
        settle(&mut reactor);
        assert!(is_waiting(&io, Interest::READABLE));
        put(&theirs, b"!");
        assert!(reactor.block_on(io.readable()).unwrap().unwrap().ready().is_readable());
    }

    fn a_guard_s_try_io_clears_on_would_block_only(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        put(&theirs, b"!");
        let mut guard = reactor.block_on(io.readable()).unwrap().unwrap();
        assert_eq!(guard.try_io(|io| io.get_ref().read(&mut [0; 8])).unwrap().unwrap(), 1);
        assert!(!is_waiting(&io, Interest::READABLE));
        let outcome = guard.try_io(|_| io::Result::<()>::Err(ErrorKind::Other.into()));
        assert_eq!(outcome.unwrap().unwrap_err().kind(), ErrorKind::Other);
        assert!(!is_waiting(&io, Interest::READABLE));
        assert_eq!(guard.try_io(|io| io.get_ref().read(&mut [0; 8])).unwrap_err(), blocked());
        assert!(is_waiting(&io, Interest::READABLE));
    }

    fn a_guard_gives_access_to_what_it_guards(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let number = ours.as_raw_fd();
        let io = async_fd(ours, &reactor);
        let guard = reactor.block_on(io.writable()).unwrap().unwrap();
        assert_eq!(guard.get_inner().as_raw_fd(), number);
        assert_eq!(guard.get_ref().as_raw_fd(), number);
        assert!(format!("{guard:?}").contains("WRITABLE"));
    }

    fn clearing_some_bits_leaves_the_others(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        put(&theirs, b"!");
        settle(&mut reactor);
        let both = Interest::READABLE | Interest::WRITABLE;
        let mut guard = reactor.block_on(io.ready(both)).unwrap().unwrap();
        assert_eq!(guard.ready(), Ready::READABLE | Ready::WRITABLE);
        guard.clear_ready_matching(Ready::READABLE);
        assert_eq!(guard.ready(), Ready::WRITABLE);
        assert!(is_waiting(&io, Interest::READABLE));
        assert!(!is_waiting(&io, Interest::WRITABLE));
        guard.clear_ready();
        assert!(is_waiting(&io, both));
    }

    fn an_event_that_comes_before_the_clearing_survives_it(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        put(&theirs, b"1");
        let mut guard = reactor.block_on(io.readable()).unwrap().unwrap();
        let outcome = guard.try_io(|io| {
            assert_eq!(io.get_ref().read(&mut [0; 8])?, 1);
            let outcome = io.get_ref().read(&mut [0; 8]);
            put(&theirs, b"2");
            settle(&mut reactor);
            outcome
        });
        assert_eq!(outcome.unwrap_err(), blocked());
        assert!(!is_waiting(&io, Interest::READABLE));
        get(io.get_ref(), b"2");
    }

    fn two_guards_of_one_event_do_not_disturb_each_other(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        put(&theirs, b"1");
        let (mut one, mut other) = reactor.block_on(async {
            (io.readable().await.unwrap(), io.readable().await.unwrap())
        }).unwrap();
        assert_eq!(one.ready(), other.ready());
        get(io.get_ref(), b"1");
        one.clear_ready();
        assert!(is_waiting(&io, Interest::READABLE));
        put(&theirs, b"2");
        settle(&mut reactor);
        // This one has not seen the second event and must not take it away.
        other.clear_ready();
        assert!(!is_waiting(&io, Interest::READABLE));
    }

    fn try_io_that_is_not_ready_does_not_call_the_closure(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let outcome = io.try_io(Interest::READABLE, |_| -> io::Result<()> { unreachable!() });
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::WouldBlock);

        put(&theirs, b"!");
        settle(&mut reactor);
        let read = || io.try_io(Interest::READABLE, |mut io| io.read(&mut [0; 8]));
        assert_eq!(read().unwrap(), 1);
        assert_eq!(read().unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(is_waiting(&io, Interest::READABLE));
        let outcome = io.try_io(Interest::READABLE, |_| -> io::Result<()> { unreachable!() });
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    fn try_io_hands_other_errors_on_and_clears_nothing(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let outcome = io.try_io(Interest::WRITABLE, |_| -> io::Result<()> {
            Err(ErrorKind::Other.into())
        });
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Other);
        assert!(!is_waiting(&io, Interest::WRITABLE));
    }

    fn async_io_waits_before_it_calls_and_again_after_would_block(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let calls = Cell::new(0);
        let mut read = pin!(io.async_io(Interest::READABLE, |mut io| {
            calls.set(calls.get() + 1);
            io.read(&mut [0; 8])
        }));
        let (count, waker) = counting_waker();
        assert!(poll_with(read.as_mut(), &waker).is_pending());
        settle(&mut reactor);
        assert_eq!((calls.get(), count.get()), (0, 0));

        // An event whose cause is gone by the time the task comes.
        put(&theirs, b"1");
        settle(&mut reactor);
        assert_eq!(count.get(), 1);
        get(io.get_ref(), b"1");
        assert!(poll_with(read.as_mut(), &waker).is_pending());
        assert_eq!((calls.get(), count.get()), (1, 1));

        put(&theirs, b"22");
        settle(&mut reactor);
        assert_eq!(count.get(), 2);
        assert!(matches!(poll_with(read, &waker), Poll::Ready(Ok(2))));
        assert_eq!(calls.get(), 2);
    }

    fn async_io_hands_on_what_the_closure_says(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        let outcome = reactor.block_on(io.async_io(Interest::WRITABLE, |_| -> io::Result<()> {
            Err(ErrorKind::Interrupted.into())
        }));
        assert_eq!(outcome.unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    }

    fn one_event_wakes_every_task_that_awaits_it(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let mut tasks: Vec<_> = (0..40).map(|_| {
            let (count, waker) = counting_waker();
            (Box::pin(io.readable()), count, waker)
        }).collect();
        for (task, _, waker) in &mut tasks {
            assert!(poll_with(task.as_mut(), waker).is_pending());
        }
        put(&theirs, b"!");
        settle(&mut reactor);
        for (task, count, waker) in &mut tasks {
            assert_eq!(count.get(), 1);
            let Poll::Ready(guard) = poll_with(task.as_mut(), waker) else {
                panic!("a task was woken for nothing");
            };
            assert!(guard.unwrap().ready().is_readable());
        }
    }

    fn tasks_that_share_a_direction_all_make_progress(backend: Backend) {
        const TASKS: usize = 12;
        const DATAGRAMS: usize = 200;

        let turning = Turning::start(reactor(backend));
        let (ours, theirs) = datagram_pair();
        let ours = Arc::new(AsyncFd::with_handle(ours, turning.handle()).unwrap());
        let theirs = AsyncFd::with_handle(theirs, turning.handle()).unwrap();
        let readers: Vec<_> = (0..TASKS).map(|_| {
            let ours = Arc::clone(&ours);
            thread::spawn(move || futures_lite::future::block_on(async {
                let mut buffer = [0; 8];
                for _ in 0..DATAGRAMS {
                    let n = loop {
                        let mut guard = ours.readable().await.unwrap();
                        match guard.try_io(|io| io.get_ref().recv(&mut buffer)) {
                            Ok(n) => break n.unwrap(),
                            Err(_would_block) => {}
                        }
                    };
                    assert_eq!(n, 1);
                }
            }))
        }).collect();
        futures_lite::future::block_on(async {
            for _ in 0..TASKS * DATAGRAMS {
                theirs.async_io(Interest::WRITABLE, |io| io.send(b"!")).await.unwrap();
            }
        });
        for reader in readers {
            reader.join().unwrap();
        }
    }

    fn a_task_that_gives_up_takes_no_event_from_the_others(backend: Backend) {
        let mut reactor = reactor(backend);
        for given_up in 0..3 {
            let (ours, theirs) = unix_pair();
            let io = async_fd(ours, &reactor);
            settle(&mut reactor);
            let mut tasks: Vec<_> = (0..3).map(|_| {
                let (count, waker) = counting_waker();
                (Box::pin(io.readable()), count, waker)
            }).collect();
            for (task, _, waker) in &mut tasks {
                assert!(poll_with(task.as_mut(), waker).is_pending());
            }
            drop(tasks.remove(given_up));
            put(&theirs, b"!");
            settle(&mut reactor);
            // One that was woken and does not come back must not be waited for either.
            drop(tasks.remove(0));
            let (task, count, waker) = &mut tasks[0];
            assert_eq!(count.get(), 1);
            assert!(poll_with(task.as_mut(), waker).is_ready());
        }
    }

    fn a_task_that_gives_up_leaves_no_place_behind(backend: Backend) {
        let reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        let mut first = pin!(io.readable());
        assert!(poll_once(first.as_mut()).is_pending());
        for interest in [Interest::READABLE, Interest::READABLE | Interest::WRITABLE] {
            let (count, waker) = counting_waker();
            let mut task = Box::pin(io.ready(interest));
            assert!(poll_with(task.as_mut(), &waker).is_pending());
            assert_eq!(Arc::strong_count(&count), 3);
            drop(task);
            assert_eq!(Arc::strong_count(&count), 2);
        }
    }

    fn a_task_may_change_its_waker_while_it_waits(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let mut task = pin!(io.readable());
        let (_, first) = counting_waker();
        let (count, second) = counting_waker();
        assert!(poll_with(task.as_mut(), &first).is_pending());
        assert!(poll_with(task.as_mut(), &second).is_pending());
        put(&theirs, b"!");
        settle(&mut reactor);
        assert_eq!(count.get(), 1);
        assert!(poll_with(task, &second).is_ready());
    }

    fn of_two_tasks_that_poll_one_direction_none_is_lost(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let (first, first_waker) = counting_waker();
        let (second, second_waker) = counting_waker();
        assert!(io.poll_read_ready(&mut Context::from_waker(&first_waker)).is_pending());
        assert!(io.poll_read_ready(&mut Context::from_waker(&second_waker)).is_pending());
        assert_eq!((first.get(), second.get()), (1, 0));
        put(&theirs, b"!");
        settle(&mut reactor);
        assert_eq!(second.get(), 1);
        let Poll::Ready(guard) = io.poll_read_ready(&mut Context::from_waker(&second_waker)) else {
            panic!("woken for nothing");
        };
        assert!(guard.unwrap().ready().is_readable());
    }

    fn a_task_that_polls_and_tasks_that_await_are_served_alike(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let (awaiting, waker) = counting_waker();
        let mut task = pin!(io.readable());
        assert!(poll_with(task.as_mut(), &waker).is_pending());
        let (polling, polling_waker) = counting_waker();
        assert!(io.poll_read_ready(&mut Context::from_waker(&polling_waker)).is_pending());
        // The place was taken over; the task that had it comes again and waits elsewhere.
        assert_eq!(awaiting.get(), 1);
        assert!(poll_with(task.as_mut(), &waker).is_pending());
        put(&theirs, b"!");
        settle(&mut reactor);
        assert_eq!((awaiting.get(), polling.get()), (2, 1));
        assert!(poll_with(task, &waker).is_ready());
        assert!(io.poll_read_ready(&mut Context::from_waker(&polling_waker)).is_ready());
    }

    fn the_two_directions_wait_independently(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        fill(&ours);
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let (reading, read_waker) = counting_waker();
        let (writing, write_waker) = counting_waker();
        assert!(io.poll_read_ready(&mut Context::from_waker(&read_waker)).is_pending());
        assert!(io.poll_write_ready(&mut Context::from_waker(&write_waker)).is_pending());
        drain(&theirs);
        settle(&mut reactor);
        assert_eq!((reading.get(), writing.get()), (0, 1));
        let Poll::Ready(guard) = io.poll_write_ready(&mut Context::from_waker(&write_waker)) else {
            panic!("woken for nothing");
        };
        assert!(guard.unwrap().ready().is_writable());
        put(&theirs, b"!");
        settle(&mut reactor);
        assert_eq!(reading.get(), 1);
    }

    fn awaiting_what_is_not_in_the_interest_adds_it(backend: Backend) {
        let mut reactor = reactor(backend);
        let handle = reactor.handle();
        let (ours, theirs) = tcp_pair();
        let io = AsyncFd::with_handle_and_interest(ours, &handle, Interest::PRIORITY).unwrap();
        assert!(reactor.block_on(io.writable()).unwrap().unwrap().ready().is_writable());
        let mut task = pin!(io.readable());
        assert!(poll_once(task.as_mut()).is_pending());
        settle(&mut reactor);
        put(&theirs, b"!");
        assert!(reactor.block_on(task).unwrap().unwrap().ready().is_readable());
    }

    fn priority_events_come_where_they_are_awaited(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = tcp_pair();
        let io = async_fd(ours, &reactor);
        let mut task = pin!(io.ready(Interest::PRIORITY));
        assert!(poll_once(task.as_mut()).is_pending());
        put(&theirs, b"not urgent");
        settle(&mut reactor);
        assert!(poll_once(task.as_mut()).is_pending());
        send_urgent(&theirs);
        let mut guard = reactor.block_on(task).unwrap().unwrap();
        assert_eq!(guard.ready(), Ready::PRIORITY);
        guard.clear_ready();
        assert!(!is_waiting(&io, Interest::READABLE));
    }

    fn a_hang_up_cannot_be_cleared(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        drop(theirs);
        let hung_up = Ready::HUP | Ready::READ_CLOSED;
        turn_until(&mut reactor, || match poll_once(io.readable()) {
            Poll::Ready(guard) => guard.unwrap().ready().contains(hung_up),
            Poll::Pending => false,
        });
        let mut guard = reactor.block_on(io.readable()).unwrap().unwrap();
        guard.clear_ready();
        assert!(guard.ready().contains(hung_up));
        assert!(!is_waiting(&io, Interest::READABLE));
        assert!(!is_waiting(&io, Interest::WRITABLE));
    }

    fn a_half_closed_peer_ends_reading_and_not_writing(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        reactor.block_on(async {
            let mut guard = io.readable().await.unwrap();
            while !guard.ready().is_read_closed() {
                guard.clear_ready();
                guard = io.readable().await.unwrap();
            }
            let mut guard = io.writable().await.unwrap();
            guard.clear_ready();
        }).unwrap();
        assert!(is_waiting(&io, Interest::WRITABLE));
    }

    fn io_that_contradicts_a_hang_up_yields_rather_than_spins(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        drop(theirs);
        settle(&mut reactor);
        let (count, waker) = counting_waker();
        let calls = Cell::new(0);
        let mut task = pin!(io.async_io(Interest::READABLE, |_| {
            calls.set(calls.get() + 1);
            would_block::<()>()
        }));
        assert!(poll_with(task.as_mut(), &waker).is_pending());
        assert_eq!(count.get(), 1);
        assert!(calls.get() < 100);
    }

    fn a_file_that_cannot_be_polled_is_refused_where_it_is_awaited(backend: Backend) {
        let mut reactor = reactor(backend);
        let io = async_fd(tempfile::tempfile().unwrap(), &reactor);
        for _ in 0..2 {
            let error = reactor.block_on(io.readable()).unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
        let error = io.try_io(Interest::WRITABLE, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        drop(io);
        settle(&mut reactor);
        assert!(reactor.is_idle());
    }

    fn the_end_of_the_reactor_wakes_every_task(backend: Backend) {
        let mut reactor = reactor(backend);
        let (ours, _theirs) = unix_pair();
        let io = async_fd(ours, &reactor);
        settle(&mut reactor);
        let mut tasks: Vec<_> = (0..10).map(|_| {
            let (count, waker) = counting_waker();
            (Box::pin(io.readable()), count, waker)
        }).collect();
        for (task, _, waker) in &mut tasks {
            assert!(poll_with(task.as_mut(), waker).is_pending());
        }
        drop(reactor);
        for (task, count, waker) in &mut tasks {
            assert_eq!(count.get(), 1);
            let Poll::Ready(Err(error)) = poll_with(task.as_mut(), waker) else {
                panic!("the reactor is gone");
            };
            assert!(matches!(reason(&error), Some(Error::ReactorGone)));
        }
        drop(tasks);
        let error = io.try_io(Interest::WRITABLE, |_| Ok(())).unwrap_err();
        assert!(matches!(reason(&error), Some(Error::ReactorGone)));
        let error = poll_once(poll_fn(|cx| io.poll_write_ready(cx).map_ok(drop)));
        assert!(matches!(error, Poll::Ready(Err(_))));
        put(io.into_inner(), b"still open");
    }

    fn a_pipe_whose_reader_is_gone_wakes_its_writer(backend: Backend) {
        let mut reactor = reactor(backend);
        let (reader, writer) = pipe_pair();
        fill(&writer);
        let io = async_fd(writer, &reactor);
        settle(&mut reactor);
        let mut task = pin!(io.async_io(Interest::WRITABLE, |mut io| io.write(b"!")));
        assert!(poll_once(task.as_mut()).is_pending());
        drop(reader);
        let error = reactor.block_on(task).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }

    fn a_background_reactor_serves_tasks_of_other_threads(backend: Backend) {
        let background = reactor(backend).background().unwrap();
        let io = AsyncFd::with_handle(event_fd(), &background.handle()).unwrap();
        thread::scope(|scope| {
            let reader = scope.spawn(|| futures_lite::future::block_on(async {
                let mut seen = 0;
                while seen < 100 {
                    let mut count = [0; 8];
                    let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, &mut count)?);
                    io.async_io(Interest::READABLE, read).await.unwrap();
                    seen += u64::from_ne_bytes(count);
                }
            }));
            for _ in 0..100 {
                signal(&io);
            }
            reader.join().unwrap();
        });
    }
}

/// The only way to have one is to meet it.
fn blocked() -> WouldBlock {
    let mut reactor = Reactor::new().unwrap();
    let io = async_fd(event_fd(), &reactor);
    let mut guard = reactor.block_on(io.writable()).unwrap().unwrap();
    guard.try_io(|_| would_block::<()>()).unwrap_err()
}

#[test]
fn would_block_is_an_error_of_its_kind() {
    let error = blocked();
    assert!(!error.to_string().is_empty());
    assert_eq!(io::Error::from(error).kind(), ErrorKind::WouldBlock);
}

#[test]
fn what_is_awaited_is_send() {
    fn send<T: Send>(_: &T) {}
    fn send_and_sync<T: Send + Sync + Unpin>(_: &T) {}

    let reactor = Reactor::new().unwrap();
    let io = async_fd(event_fd(), &reactor);
    send_and_sync(&io);
    send(&io.readable());
    send(&io.writable());
    send(&io.ready(Interest::PRIORITY));
    send(&io.async_io(Interest::READABLE, |_| Ok(())));
    send(&io.close());
}

#[test]
fn guards_may_cross_threads() {
    fn send_and_sync<T: Send + Sync + Unpin>() {}

    send_and_sync::<ReadyGuard<'static, UnixStream>>();
}

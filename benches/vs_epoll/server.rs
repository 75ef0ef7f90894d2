//! The side under test, where it is a server: on a thread of its own, whose CPU time is the measure.

use crate::measure::Side;
use crate::peers::{Make, Want, Watcher};
use crate::runtimes::Runtime;
use crate::services::Service;
use crate::system::{Place, ThreadView, pin};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What a server reads at once: more than any request, so that a short read says "drained".
pub(crate) const BUFFER: usize = 32 * 1024;

/// What a server's thread shares with whoever started it.
#[derive(Debug, Default)]
pub(crate) struct Control {
    stopped: AtomicBool,
    /// System calls, where they are known.
    calls: AtomicU64,
}

impl Control {
    /// To be asked after every `accept`: the last connection is there to say so.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    control: Arc<Control>,
    view: ThreadView,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A server in a loop of its own.
    pub(crate) fn bare<W: Watcher>(watcher: impl Make<W>, style: Style) -> Server {
        Server::start(move |listener, control| Loop::new(watcher(), listener, style).run(control))
    }

    /// A server of tasks.
    pub(crate) fn of_tasks(runtime: Runtime, service: impl Service) -> Server {
        Server::start(move |listener, control| runtime.serve(listener, service, control))
    }

    fn start(serve: impl FnOnce(TcpListener, &Control) + Send + 'static) -> Server {
        let listener = listen();
        let address = listener.local_addr().expect("it is bound");
        let control = Arc::new(Control::default());
        let shared = Arc::clone(&control);
        let (send_view, view) = mpsc::channel();
        let thread = thread::spawn(move || {
            pin(Place::Measured);
            send_view
                .send(ThreadView::of_this_thread())
                .expect("the creator waits for it");
            drop(send_view);
            serve(listener, &shared);
        });
        Server {
            address,
            control,
            view: view.recv().expect("the thread starts"),
            thread: Some(thread),
        }
    }

    /// CPU time that the thread has used so far.
    pub(crate) fn cpu(&self) -> Duration {
        self.view.cpu()
    }

    pub(crate) fn await_sleep(&self) {
        self.view.await_sleep();
    }

    /// System calls so far. Known of bare loops only, and exact while the server sleeps.
    pub(crate) fn system_calls(&self) -> u64 {
        self.control.calls.load(Ordering::Acquire)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control.stopped.store(true, Ordering::Release);
        // A server that is awake may see it without this, and be gone already.
        let last = TcpStream::connect(self.address);
        let result = self.thread.take().map(JoinHandle::join);
        drop(last);
        assert!(
            thread::panicking() || matches!(result, Some(Ok(()))),
            "the server panicked"
        );
    }
}

/// A listener with room for as many as may come at once.
fn listen() -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback is there");
    rustix::net::listen(&listener, 4096).expect("a listener may listen again");
    listener
}

/// A server with a load, measured by what its thread uses.
pub(crate) struct Loaded<L> {
    // The connections end before the server does.
    pub(crate) load: L,
    pub(crate) server: Server,
}

/// What keeps a server busy.
pub(crate) trait Load {
    /// The whole work, so many times, with every answer checked.
    fn run(&mut self, iterations: u32);
}

impl<L: Load> Side for Loaded<L> {
    fn run(&mut self, iterations: u32) -> Duration {
        self.server.await_sleep();
        let before = self.server.cpu();
        self.load.run(iterations);
        self.server.await_sleep();
        self.server.cpu() - before
    }
}

/// When a server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// When the client has.
    Keep,
    /// After the first answer.
    OneAnswer,
}

const LISTENER: usize = 0;

/// An echo server around a watcher. It is the same for all of them, so whatever differs is the
/// watcher's.
struct Loop<W> {
    watcher: W,
    listener: TcpListener,
    style: Style,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
    /// System calls other than the watcher's.
    calls: u64,
}

struct Connection {
    socket: OwnedFd,
    /// What could not be written yet.
    unsent: Vec<u8>,
}

/// What a connection waits for, or that it waits no more.
enum Next {
    Event(Want),
    End,
}

impl<W: Watcher> Loop<W> {
    fn new(watcher: W, listener: TcpListener, style: Style) -> Loop<W> {
        listener.set_nonblocking(true).expect("a socket can be");
        Loop {
            watcher,
            listener,
            style,
            // The listener has the first key.
            connections: vec![None],
            free: Vec::new(),
            buffer: vec![0; BUFFER],
            calls: 0,
        }
    }

    fn run(mut self, control: &Control) {
        self.watcher
            .add(LISTENER, self.listener.as_fd(), Want::Read);
        self.watcher.await_again(LISTENER, Want::Read);
        let mut ready = Vec::new();
        while !control.is_stopped() {
            ready.clear();
            self.watcher.wait_for_keys(&mut ready);
            for &key in &ready {
                if key == LISTENER {
                    self.accept();
                } else {
                    self.serve(key);
                }
            }
            let waiting = self.watcher.system_calls().unwrap_or_default();
            control.calls.store(waiting + self.calls, Ordering::Release);
        }
        for key in 1..self.connections.len() {
            self.end(key);
        }
        self.watcher.remove(LISTENER, self.listener.as_fd());
        self.watcher.settle();
    }

    fn accept(&mut self) {
        loop {
            self.calls += 1;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match accept_with(&self.listener, flags) {
                Ok(socket) => self.welcome(socket),
                Err(Errno::AGAIN) => break,
                Err(error) => panic!("accept: {error}"),
            }
        }
        self.watcher.await_again(LISTENER, Want::Read);
    }

    fn welcome(&mut self, socket: OwnedFd) {
        let key = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.watcher.add(key, socket.as_fd(), Want::Both);
        self.watcher.await_again(key, Want::Read);
        self.connections[key] = Some(Connection {
            socket,
            unsent: Vec::new(),
        });
    }

    fn serve(&mut self, key: usize) {
        // An event may come after the end of its connection.
        let Some(connection) = &mut self.connections[key] else {
            return;
        };
        match connection.serve(&mut self.buffer, self.style, &mut self.calls) {
            Next::Event(want) => self.watcher.await_again(key, want),
            Next::End => self.end(key),
        }
    }

    fn end(&mut self, key: usize) {
        if let Some(connection) = self.connections[key].take() {
            self.watcher.close(key, connection.socket);
            self.free.push(key);
        }
    }
}

impl Connection {
    fn serve(&mut self, buffer: &mut [u8], style: Style, calls: &mut u64) -> Next {
        loop {
            if !self.unsent.is_empty() {
                *calls += 1;
                match rustix::io::write(&self.socket, &self.unsent) {
                    Ok(count) => drop(self.unsent.drain(..count)),
                    Err(Errno::AGAIN) => return Next::Event(Want::Both),
                    Err(_) => return Next::End,
                }
                continue;
            }
            *calls += 1;
            let count = match rustix::io::read(&self.socket, &mut *buffer) {
                Ok(0) => return Next::End,
                Ok(count) => count,
                Err(Errno::AGAIN) => return Next::Event(Want::Read),
                Err(_) => return Next::End,
            };
            *calls += 1;
            let written = match rustix::io::write(&self.socket, &buffer[..count]) {
                Ok(written) => written,
                Err(Errno::AGAIN) => 0,
                Err(_) => return Next::End,
            };
            if written < count {
                self.unsent.extend_from_slice(&buffer[written..count]);
            } else if style == Style::OneAnswer {
                return Next::End;
            } else if count < buffer.len() {
                // A short read has drained the socket, and what comes later is a new edge. An end
                // that came together with data would be missed, but no client here does that.
                return Next::Event(Want::Read);
            }
        }
    }
}

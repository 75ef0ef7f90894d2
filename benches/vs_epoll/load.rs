//! The clients: one epoll loop on the measuring thread, the same for all servers.
//!
//! With a processor to itself it does not sleep. A server pays for waking whoever sleeps on the same
//! machine, which is more than all of its own waiting costs, and no client elsewhere makes it pay.

use crate::server::Load;
use crate::system::separate_places;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// What answers have to be.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// The request.
    Echo,
    /// So many bytes that begin like this.
    Prefix { length: usize, text: &'static [u8] },
}

/// Requests on connections that stay.
pub(crate) struct KeptAlive {
    clients: Vec<Client>,
    exchange: Exchange,
    events: Events,
    buffer: Vec<u8>,
}

struct Exchange {
    request: Vec<u8>,
    expected: Expected,
}

struct Client {
    stream: TcpStream,
    sent: usize,
    received: usize,
    /// Requests that are still to be sent, after the one under way.
    left: u32,
}

impl KeptAlive {
    pub(crate) fn connect(address: SocketAddr, count: u32, request: Vec<u8>) -> KeptAlive {
        KeptAlive::expecting(address, count, request, Expected::Echo)
    }

    pub(crate) fn expecting(
        address: SocketAddr,
        count: u32,
        request: Vec<u8>,
        expected: Expected,
    ) -> KeptAlive {
        let events = Events::new();
        let clients = (0..count).map(|index| {
            let stream = TcpStream::connect(address).expect("the server has room");
            stream.set_nonblocking(true).expect("a socket can be");
            stream.set_nodelay(true).expect("a TCP socket can be");
            events.add(&stream, u64::from(index), EventFlags::IN | EventFlags::OUT);
            Client {
                stream,
                sent: 0,
                received: 0,
                left: 0,
            }
        });
        let clients = clients.collect();
        KeptAlive {
            clients,
            exchange: Exchange { request, expected },
            events,
            buffer: vec![0; 64 * 1024],
        }
    }
}

impl Load for KeptAlive {
    /// Every client sends one request after the other, so many in all.
    fn run(&mut self, iterations: u32) {
        let KeptAlive {
            clients,
            exchange,
            events,
            buffer,
        } = self;
        for client in &mut *clients {
            client.left = iterations - 1;
            client.begin(exchange);
        }
        let mut unfinished = clients.len();
        while unfinished > 0 {
            events.wait(|index| {
                if clients[index as usize].go_on(exchange, buffer) {
                    unfinished -= 1;
                }
            });
        }
    }
}

impl Exchange {
    fn answer_length(&self) -> usize {
        match self.expected {
            Expected::Echo => self.request.len(),
            Expected::Prefix { length, .. } => length,
        }
    }

    fn check(&self, from: usize, bytes: &[u8]) {
        assert!(from + bytes.len() <= self.answer_length(), "too much");
        let right = match self.expected {
            Expected::Echo => bytes == &self.request[from..from + bytes.len()],
            Expected::Prefix { text, .. } => bytes
                .iter()
                .zip(text.get(from..).unwrap_or_default())
                .all(|(have, want)| have == want),
        };
        assert!(right, "the answer is wrong");
    }
}

impl Client {
    fn begin(&mut self, exchange: &Exchange) {
        self.sent = 0;
        self.received = 0;
        self.send(exchange);
    }

    fn send(&mut self, exchange: &Exchange) {
        while self.sent < exchange.request.len() {
            match rustix::io::write(&self.stream, &exchange.request[self.sent..]) {
                Ok(count) => self.sent += count,
                // There will be an edge.
                Err(Errno::AGAIN) => return,
                Err(error) => panic!("a client cannot write: {error}"),
            }
        }
    }

    /// True if that was its last answer.
    fn go_on(&mut self, exchange: &Exchange, buffer: &mut [u8]) -> bool {
        if self.sent < exchange.request.len() {
            self.send(exchange);
        }
        loop {
            let count = match rustix::io::read(&self.stream, &mut *buffer) {
                Ok(0) => panic!("the server has closed a connection"),
                Ok(count) => count,
                Err(Errno::AGAIN) => return false,
                Err(error) => panic!("a client cannot read: {error}"),
            };
            exchange.check(self.received, &buffer[..count]);
            self.received += count;
            if self.received == exchange.answer_length() {
                if self.left == 0 {
                    return true;
                }
                self.left -= 1;
                self.begin(exchange);
            }
            if count < buffer.len() {
                return false;
            }
        }
    }
}

/// Connections that come, ask once, and are closed by the server.
pub(crate) struct ShortLived {
    address: SocketAddr,
    /// Connections at a time.
    width: usize,
    request: Vec<u8>,
    events: Events,
    clients: Vec<Option<(TcpStream, usize)>>,
}

impl ShortLived {
    pub(crate) fn new(address: SocketAddr, width: usize, request: Vec<u8>) -> ShortLived {
        ShortLived {
            address,
            width,
            request,
            events: Events::new(),
            clients: (0..width).map(|_| None).collect(),
        }
    }

    fn connect(&mut self, index: usize) {
        let mut stream = TcpStream::connect(self.address).expect("the server has room");
        // Closed with a reset, which leaves nothing behind: the server has closed first, and would
        // otherwise have tens of thousands of sockets in TIME_WAIT soon.
        set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket can");
        stream
            .write_all(&self.request)
            .expect("the server is there");
        stream.set_nonblocking(true).expect("a socket can be");
        self.events.add(&stream, index as u64, EventFlags::IN);
        self.clients[index] = Some((stream, 0));
    }

    /// True if that was the end of the connection.
    fn go_on(&mut self, index: usize) -> bool {
        let Some((stream, received)) = &mut self.clients[index] else {
            return false;
        };
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    assert_eq!(*received, self.request.len(), "an answer, and all of it");
                    self.clients[index] = None;
                    return true;
                }
                Ok(count) => *received += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
                Err(error) => panic!("a client cannot read: {error}"),
            }
        }
    }
}

impl Load for ShortLived {
    /// `width` connections an iteration.
    fn run(&mut self, iterations: u32) {
        let mut left = self.width * iterations as usize;
        let mut alive = 0;
        for index in 0..self.width {
            self.connect(index);
            left -= 1;
            alive += 1;
        }
        let mut ready = Vec::new();
        while alive > 0 {
            ready.clear();
            self.events.wait(|index| ready.push(index as usize));
            for &index in &ready {
                if self.go_on(index) {
                    alive -= 1;
                    if left > 0 {
                        self.connect(index);
                        left -= 1;
                        alive += 1;
                    }
                }
            }
        }
    }
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

struct Events {
    epoll: OwnedFd,
    buffer: Box<[MaybeUninit<Event>; 1024]>,
}

impl Events {
    fn new() -> Events {
        Events {
            epoll: epoll::create(CreateFlags::CLOEXEC).expect("an epoll instance can be made"),
            buffer: Box::new([MaybeUninit::uninit(); 1024]),
        }
    }

    fn add(&self, stream: &TcpStream, key: u64, flags: EventFlags) {
        let data = EventData::new_u64(key);
        let added = epoll::add(&self.epoll, stream, data, flags | EventFlags::ET);
        added.expect("a socket can be waited for");
    }

    fn wait(&mut self, mut each: impl FnMut(u64)) {
        let patience = if separate_places() { Some(&NOW) } else { None };
        match epoll::wait(&self.epoll, &mut self.buffer[..], patience) {
            Ok((events, _)) => events.iter().for_each(|event| each(event.data.u64())),
            Err(Errno::INTR) => {}
            Err(error) => panic!("epoll_wait: {error}"),
        }
    }
}

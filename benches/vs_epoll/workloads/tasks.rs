//! Servers of tasks: ours with `AsyncFd` and async-executor, tokio's current-thread runtime, and
//! async-io with async-executor.
//!
//! - `echo-tasks/N`: N clients send 64 bytes, one request after the other.
//! - `http`: hyper, one connection each for 64 clients that keep it alive; the service is that of
//!   `examples/http.rs`.
//!
//! Timed is the CPU time of the server's thread, for one request.

use super::Entry;
use super::echo::request;
use crate::load::{Expected, KeptAlive};
use crate::measure::{Contest, Effort};
use crate::report::Row;
use crate::runtimes::{PEERS, Runtime};
use crate::server::{Loaded, Server};
use crate::services::{Echo, Http};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

pub(super) fn entries() -> Vec<Entry> {
    let echo = [1, 64, 512, 4000].map(|clients| {
        Entry::new(
            format!("echo-tasks/{clients}"),
            matches!(clients, 64 | 512),
            move |name, effort| {
                run(name, clients, effort, |runtime| {
                    let server = Server::of_tasks(runtime, Echo);
                    let load = KeptAlive::connect(server.address, clients, request(64));
                    Loaded { load, server }
                })
            },
        )
    });
    let http = [64, 512].map(|clients| {
        let name = match clients {
            64 => "http".to_owned(),
            _ => format!("http/{clients}"),
        };
        Entry::new(name, clients == 64, move |name, effort| {
            run(name, clients, effort, |runtime| {
                let server = Server::of_tasks(runtime, Http);
                let length = answer_length(server.address);
                let expected = Expected::Prefix {
                    length,
                    text: b"HTTP/1.1 200 OK\r\n",
                };
                let request = REQUEST.to_vec();
                let load = KeptAlive::expecting(server.address, clients, request, expected);
                Loaded { load, server }
            })
        })
    });
    echo.into_iter().chain(http).collect()
}

fn run(
    name: &str,
    clients: u32,
    effort: &Effort,
    make: impl Fn(Runtime) -> Loaded<KeptAlive>,
) -> Vec<Row> {
    let contest = Contest {
        workload: name,
        operations: clients,
        peers: &PEERS,
        descriptors: u64::from(clients) * 2,
    };
    contest.run(effort, |runtime| Box::new(make(runtime)))
}

/// What a client of the load sends, with as many headers as wrk has.
const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// All answers have the same length: that of the first.
fn answer_length(address: SocketAddr) -> usize {
    let request = b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".as_slice();
    let mut stream = TcpStream::connect(address).expect("the server has room");
    stream.write_all(request).expect("the server is there");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    assert!(answer.ends_with(b"Hello from uring-reactor!\n"), "in full");
    // A connection that stays does not say so.
    answer.len() - "connection: close\r\n".len()
}

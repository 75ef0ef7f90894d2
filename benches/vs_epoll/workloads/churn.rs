//! Connections that come, ask once, get their answer, and are closed by the server; 64 at a time.
//!
//! Timed is the CPU time of the server's thread, for one connection.

use super::Entry;
use super::echo::request;
use crate::load::ShortLived;
use crate::measure::{Contest, Side};
use crate::peers::{Make, Peer, Wakers, Watcher, Workload};
use crate::server::{Loaded, Server, Style};

const PEERS: [Peer; 5] = [
    Peer::Epoll,
    Peer::Mio,
    Peer::Polling,
    Peer::Ring,
    Peer::OursOnEpoll,
];
const WIDTH: usize = 64;

pub(super) fn entries() -> Vec<Entry> {
    vec![Entry::new("churn", true, |name, effort| {
        let contest = Contest {
            workload: name,
            operations: WIDTH as u32,
            peers: &PEERS,
            descriptors: 4 * WIDTH as u64,
        };
        contest.run(effort, |peer| peer.side(&Churn))
    })]
}

struct Churn;

impl Workload for Churn {
    const WAKERS: Wakers = Wakers::Enqueue;

    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let server = Server::bare(watcher, Style::OneAnswer);
        let load = ShortLived::new(server.address, WIDTH, request(64));
        Box::new(Loaded { load, server })
    }
}

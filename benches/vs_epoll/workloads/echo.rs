//! An echo server in a loop of its own, and N clients that each send one request after the other.
//!
//! `echo/N` has requests of 64 bytes, `echo/N/16k` of 16 KiB. Timed is the CPU time of the server's
//! thread, in the kernel and out of it: a request a nanosecond of that, upside down, is requests per
//! CPU second. All servers are one program that differs in how it waits (`server.rs`), and all
//! clients are one (`load.rs`). Ours learns by wakers what is ready, as a task's waker would say it.

use super::Entry;
use crate::load::KeptAlive;
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

pub(super) fn entries() -> Vec<Entry> {
    let sizes = [(64, ""), (16 * 1024, "/16k")];
    let entries = sizes.into_iter().flat_map(|(size, suffix)| {
        [1, 64, 512, 4000].map(|clients| {
            let name = format!("echo/{clients}{suffix}");
            let short = (clients == 64) || (clients == 512 && size == 64);
            Entry::new(name, short, move |name, effort| {
                let contest = Contest {
                    workload: name,
                    operations: clients,
                    peers: &PEERS,
                    descriptors: u64::from(clients) * 2,
                };
                contest.run(&effort.patient(), |peer| peer.side(&Echo { clients, size }))
            })
        })
    });
    entries.collect()
}

/// Bytes that tell if one of them is in the wrong place.
pub(super) fn request(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index % 251) as u8).collect()
}

struct Echo {
    clients: u32,
    size: usize,
}

impl Workload for Echo {
    const WAKERS: Wakers = Wakers::Enqueue;

    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let server = Server::bare(watcher, Style::Keep);
        let load = KeptAlive::connect(server.address, self.clients, request(self.size));
        Box::new(Loaded { load, server })
    }
}

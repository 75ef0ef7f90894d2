//! System calls: of a server in a loop of its own, for one request. Counted, not timed; of ours
//! by its metrics.
//!
//! - `syscalls/echo/N`: as `echo/N`.
//! - `syscalls/churn`: as `churn`, for one connection.

use super::Entry;
use super::echo::request;
use crate::load::{KeptAlive, ShortLived};
use crate::measure::{Contender, Effort, Side, Spread, has_room, median};
use crate::peers::{Make, Peer, Wakers, Watcher, Workload};
use crate::report::{Row, Unit};
use crate::server::{Load, Server, Style};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

const PEERS: [Peer; 4] = [Peer::Epoll, Peer::Mio, Peer::Ring, Peer::OursOnEpoll];
const ROUNDS: usize = 11;
const WIDTH: u32 = 64;
const ITERATIONS: u32 = 16;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Echo { clients: u32 },
    Churn,
}

pub(super) fn entries() -> Vec<Entry> {
    let kinds = [
        ("syscalls/echo/64", true, Kind::Echo { clients: 64 }),
        ("syscalls/echo/512", false, Kind::Echo { clients: 512 }),
        ("syscalls/churn", true, Kind::Churn),
    ];
    let entries = kinds.map(|(name, short, kind)| {
        Entry::new(name, short, move |name, effort| run(name, kind, effort))
    });
    entries.into()
}

fn run(name: &str, kind: Kind, effort: &Effort) -> Vec<Row> {
    let contenders: Vec<Peer> = std::iter::once(Peer::OURS).chain(PEERS).collect();
    let clients = match kind {
        Kind::Echo { clients } => clients,
        Kind::Churn => WIDTH,
    };
    if !has_room(2 * u64::from(clients) * contenders.len() as u64) {
        return Vec::new();
    }
    let calls = Rc::new(Cell::new(0.0));
    let counting = Counting {
        kind,
        calls: Rc::clone(&calls),
    };
    let mut sides: Vec<_> = contenders.iter().map(|peer| peer.side(&counting)).collect();
    let mut count = |side: &mut Box<dyn Side>| {
        side.run(ITERATIONS);
        calls.get()
    };
    let begun = Instant::now();
    let mut counted: Vec<Vec<f64>> = Vec::new();
    while counted.len() < ROUNDS && !effort.is_enough(counted.len(), begun.elapsed()) {
        counted.push(sides.iter_mut().map(&mut count).collect());
    }
    let rows = contenders.iter().enumerate().skip(1).map(|(index, peer)| {
        let ratios = counted.iter().map(|calls| calls[index] / calls[0]);
        Row {
            workload: name.to_owned(),
            peer: peer.name(),
            spread: Spread::of(ratios.collect()),
            ours: median(counted.iter().map(|calls| calls[0]).collect()),
            theirs: median(counted.iter().map(|calls| calls[index]).collect()),
            of_limit: None,
            unit: Unit::SystemCalls,
        }
    });
    rows.collect()
}

struct Counting {
    kind: Kind,
    /// For a request, of the side that ran last.
    calls: Rc<Cell<f64>>,
}

impl Workload for Counting {
    const WAKERS: Wakers = Wakers::Enqueue;

    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        match self.kind {
            Kind::Echo { clients } => {
                let server = Server::bare(watcher, Style::Keep);
                let load = KeptAlive::connect(server.address, clients, request(64));
                Box::new(CountingSide {
                    load,
                    server,
                    requests: clients,
                    calls: Rc::clone(&self.calls),
                })
            }
            Kind::Churn => {
                let server = Server::bare(watcher, Style::OneAnswer);
                let load = ShortLived::new(server.address, WIDTH as usize, request(64));
                Box::new(CountingSide {
                    load,
                    server,
                    requests: WIDTH,
                    calls: Rc::clone(&self.calls),
                })
            }
        }
    }
}

struct CountingSide<L> {
    // The connections end before the server does.
    load: L,
    server: Server,
    /// Of an iteration.
    requests: u32,
    calls: Rc<Cell<f64>>,
}

impl<L: Load> Side for CountingSide<L> {
    fn run(&mut self, iterations: u32) -> Duration {
        self.server.await_sleep();
        let before = self.server.system_calls();
        self.load.run(iterations);
        self.server.await_sleep();
        let calls = self.server.system_calls() - before;
        self.calls
            .set(calls as f64 / f64::from(self.requests * iterations));
        Duration::ZERO
    }
}

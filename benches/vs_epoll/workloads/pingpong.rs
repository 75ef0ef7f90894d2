//! One client that sends 64 bytes and waits for them: how long that takes, by percentile.
//!
//! Both threads sleep in between, so most of this is the kernel waking them. In `pingpong/spin` ours
//! looks for a while before it sleeps, which the others cannot. Rows are percentiles: `ours` and
//! `peer's` of all samples, the ratio and its spread of blocks of five hundred.

use super::Entry;
use super::echo::request;
use crate::measure::{Contender, Effort, Side, Spread, order, percentile, timed};
use crate::peers::{Make, Peer, Wakers, Watcher, Workload};
use crate::report::{Row, Unit};
use crate::server::{Server, Style};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

const PEERS: [Peer; 5] = [
    Peer::Epoll,
    Peer::Mio,
    Peer::Polling,
    Peer::Ring,
    Peer::OursOnEpoll,
];
const BLOCK: u32 = 500;
/// Longer than the answer to an answer takes to come.
const SPIN: Duration = Duration::from_micros(100);
const PERCENTILES: [(&str, f64); 4] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

pub(super) fn entries() -> Vec<Entry> {
    vec![
        Entry::new("pingpong", true, run::<false>),
        Entry::new("pingpong/spin", true, run::<true>),
    ]
}

fn run<const SPINS: bool>(name: &str, effort: &Effort) -> Vec<Row> {
    let contenders: Vec<Peer> = std::iter::once(Peer::OURS).chain(PEERS).collect();
    let games: Vec<PingPong<SPINS>> = contenders.iter().map(|_| PingPong::default()).collect();
    let mut sides: Vec<_> = contenders
        .iter()
        .zip(&games)
        .map(|(peer, game)| peer.side(game))
        .collect();

    // The first block is the warm-up.
    for side in &mut sides {
        side.run(BLOCK);
    }
    for game in &games {
        game.samples.borrow_mut().clear();
    }
    let begun = Instant::now();
    let mut rounds = 0;
    while !effort.is_enough(rounds, begun.elapsed()) {
        for index in order(rounds, sides.len()) {
            sides[index].run(BLOCK);
        }
        rounds += 1;
    }

    let rows = PERCENTILES.iter().flat_map(|&(suffix, percent)| {
        let ours = &games[0];
        let peers = contenders.iter().zip(&games).skip(1);
        peers.map(move |(peer, game)| {
            let blocks = game.by_block(percent).into_iter();
            let ratios = blocks.zip(ours.by_block(percent)).map(|(a, b)| a / b);
            Row {
                workload: format!("{name}/{suffix}"),
                peer: peer.name(),
                spread: Spread::of(ratios.collect()),
                ours: ours.overall(percent),
                theirs: game.overall(percent),
                of_limit: None,
                unit: Unit::Nanoseconds,
            }
        })
    });
    rows.collect()
}

/// Samples of one side, in the order in which they were taken.
#[derive(Default)]
struct PingPong<const SPINS: bool> {
    samples: Rc<RefCell<Vec<f64>>>,
}

impl<const SPINS: bool> PingPong<SPINS> {
    fn overall(&self, percent: f64) -> f64 {
        of(&self.samples.borrow(), percent)
    }

    fn by_block(&self, percent: f64) -> Vec<f64> {
        let samples = self.samples.borrow();
        let blocks = samples.chunks(BLOCK as usize);
        blocks.map(|block| of(block, percent)).collect()
    }
}

fn of(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    percentile(&sorted, percent)
}

impl<const SPINS: bool> Workload for PingPong<SPINS> {
    const WAKERS: Wakers = Wakers::Enqueue;
    const SPIN: Duration = if SPINS { SPIN } else { Duration::ZERO };

    fn side<W: Watcher>(&self, watcher: impl Make<W>) -> Box<dyn Side> {
        let server = Server::bare(watcher, Style::Keep);
        let stream = TcpStream::connect(server.address).expect("the server has room");
        stream.set_nodelay(true).expect("a TCP socket can be");
        Box::new(Game {
            stream,
            _server: server,
            request: request(64),
            samples: Rc::clone(&self.samples),
        })
    }
}

struct Game {
    // The connection ends before the server does.
    stream: TcpStream,
    _server: Server,
    request: Vec<u8>,
    samples: Rc<RefCell<Vec<f64>>>,
}

impl Side for Game {
    fn run(&mut self, iterations: u32) -> Duration {
        let mut total = Duration::ZERO;
        let mut answer = vec![0; self.request.len()];
        let mut samples = self.samples.borrow_mut();
        for _ in 0..iterations {
            let mut time = Duration::ZERO;
            timed(&mut time, || {
                self.stream.write_all(&self.request).expect("it is there");
                self.stream.read_exact(&mut answer).expect("it answers");
            });
            assert_eq!(answer, self.request, "what was sent comes back");
            samples.push(time.as_nanos() as f64);
            total += time;
        }
        total
    }
}

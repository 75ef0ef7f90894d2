//! Clients and servers on both backends, with faults, for as long as one likes.
//!
//! ```text
//! cargo run --release --example soak [SECONDS]
//! ```
//!
//! Every byte is checked, every event of the counted descriptors is counted. Meanwhile signals rain
//! on the reactors' threads, reactors are woken for nothing and move between threads, descriptors run
//! out, processes start, connections are reset half-way, thousands of descriptors become ready at
//! once. In the end every registration and every descriptor must be gone and the memory must not have
//! grown. One line sums it up; the exit status says whether all of it held.

use async_executor::LocalExecutor;
use futures_lite::future;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::cell::Cell;
use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};
use uring_reactor::{AsyncFd, Backend, Handle, Interest, Metrics, Reactor, Registration};

/// Connections at a time, of each client.
const CLIENTS: usize = 48;
/// The longest conversation, in bytes each way.
const LONGEST: u64 = 256 * 1024;
/// Counted descriptors of each reactor that counts, each with a thread that makes it ready.
const COUNTED: usize = 2;
/// Descriptors that become ready at once.
const FLOOD: usize = 2000;
/// Nothing takes that long unless it is broken.
const STALL: Duration = Duration::from_secs(60);
/// Growth of the memory, after a fifth of the time, that is no leak.
const SLACK: u64 = 48 << 20;

const HEADER: usize = 16;

/// How a conversation ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    InOrder,
    ClientResets,
    ServerDrops,
    ServerStops,
}

impl Ending {
    const ALL: [Ending; 4] = [
        Ending::InOrder,
        Ending::ClientResets,
        Ending::ServerDrops,
        Ending::ServerStops,
    ];
}

#[derive(Default)]
struct Totals {
    conversations: AtomicU64,
    cut_short: AtomicU64,
    bytes: AtomicU64,
    sent_edges: AtomicU64,
    edges: AtomicU64,
    signals: AtomicU64,
    moves: AtomicU64,
    processes: AtomicU64,
    shortages: AtomicU64,
    floods: AtomicU64,
}

impl Totals {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// What everybody shares.
struct Soak {
    over: AtomicBool,
    end: Instant,
    totals: Totals,
}

impl Soak {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed) && Instant::now() < self.end
    }
}

/// A small generator of random numbers (Marsaglia's xorshift).
struct Random(Cell<u64>);

impl Random {
    fn new(seed: u64) -> Random {
        Random(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    fn next(&self) -> u64 {
        let mut word = self.0.get();
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        self.0.set(word);
        word
    }

    fn below(&self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// The byte at that position of a conversation, and what the server answers to it.
fn question(seed: u64, position: u64) -> u8 {
    (seed
        .wrapping_add(position)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        >> 56) as u8
}

fn answer(byte: u8) -> u8 {
    byte ^ 0x5a
}

/// A stream of either kind.
trait Stream: AsFd + 'static {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn finish(&self) -> io::Result<()>;
    fn reset_on_close(&self) {}
}

impl Stream for TcpStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, bytes)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }

    /// Also spares us `TIME_WAIT`, and so the want of ports.
    fn reset_on_close(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(self, Some(Duration::ZERO));
    }
}

impl Stream for UnixStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, bytes)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }
}

async fn read<S: Stream>(stream: &AsyncFd<S>, buffer: &mut [u8]) -> io::Result<usize> {
    stream
        .async_io(Interest::READABLE, |io| io.read(buffer))
        .await
}

async fn write_all<S: Stream>(stream: &AsyncFd<S>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = stream
            .async_io(Interest::WRITABLE, |io| io.write(bytes))
            .await?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// The server's part. True if the client asked for the end of the server.
async fn serve<S: Stream>(stream: AsyncFd<S>) -> io::Result<bool> {
    let mut header = [0; HEADER];
    let mut filled = 0;
    while filled < HEADER {
        match read(&stream, &mut header[filled..]).await? {
            0 => return stream.close().await.map(|()| false),
            n => filled += n,
        }
    }
    let ending = Ending::ALL[usize::from(header[0]) % Ending::ALL.len()];
    if ending == Ending::ServerStops {
        return stream.close().await.map(|()| true);
    }
    let limit = u64::from_le_bytes(header[8..].try_into().unwrap_or_default());
    let mut buffer = vec![0; 16 * 1024];
    let mut total = 0;
    loop {
        let n = read(&stream, &mut buffer).await?;
        if n == 0 {
            return stream.close().await.map(|()| false);
        }
        for byte in &mut buffer[..n] {
            *byte = answer(*byte);
        }
        write_all(&stream, &buffer[..n]).await?;
        total += n as u64;
        if ending == Ending::ServerDrops && total >= limit / 2 {
            return Ok(false);
        }
    }
}

/// The client's part: says how it will end, sends its questions, and checks the answers.
async fn converse<S: Stream>(
    stream: AsyncFd<S>,
    ending: Ending,
    random: &Random,
    soak: &Soak,
) -> io::Result<()> {
    let length = random.below(LONGEST);
    let seed = random.next();
    let mut header = [0; HEADER];
    header[0] = ending as u8;
    header[8..].copy_from_slice(&length.to_le_bytes());
    write_all(&stream, &header).await?;
    let mut piece = [0; 4096];
    let ask = async {
        let mut position = 0;
        while position < length {
            let n = piece.len().min((length - position) as usize);
            for (index, byte) in piece[..n].iter_mut().enumerate() {
                *byte = question(seed, position + index as u64);
            }
            write_all(&stream, &piece[..n]).await?;
            position += n as u64;
            if ending == Ending::ClientResets && position > length / 2 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        stream.get_ref().finish()
    };
    let mut buffer = [0; 8192];
    let hear = async {
        let mut position = 0;
        loop {
            let n = read(&stream, &mut buffer).await?;
            if n == 0 {
                return Ok(position);
            }
            for (index, byte) in buffer[..n].iter().enumerate() {
                let expected = answer(question(seed, position + index as u64));
                if *byte != expected {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            position += n as u64;
            Totals::add(&soak.totals.bytes, n as u64);
        }
    };
    let heard = if ending == Ending::InOrder {
        let (asked, heard) = future::zip(ask, hear).await;
        asked?;
        heard?
    } else {
        let outcome = future::try_zip(ask, hear).await;
        stream.get_ref().reset_on_close();
        drop(stream);
        return match outcome {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error),
            _ => Ok(()),
        };
    };
    if heard != length {
        return Err(io::Error::other(format!(
            "{heard} of {length} bytes came back"
        )));
    }
    stream.get_ref().reset_on_close();
    stream.close().await
}

/// No descriptors left, which is one of the faults.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::EADDRNOTAVAIL)
    )
}

#[derive(Clone)]
struct Addresses {
    tcp: SocketAddr,
    unix: PathBuf,
}

/// Announces a thread that takes turns, for signals to be sent to.
fn announce(threads: &mpsc::Sender<libc::pthread_t>) {
    // SAFETY: no precondition.
    let _ = threads.send(unsafe { libc::pthread_self() });
}

fn check(reactor: &mut Reactor) -> io::Result<Metrics> {
    let start = Instant::now();
    while !reactor.is_idle() {
        reactor.turn(Some(Duration::ZERO))?;
        if start.elapsed() > STALL {
            return Err(io::Error::other("registrations are left over"));
        }
    }
    Ok(reactor.metrics())
}

/// A server that serves until a client asks for its end.
fn server(
    mut reactor: Reactor,
    unix: &Path,
    addresses: &mpsc::Sender<Addresses>,
) -> io::Result<Metrics> {
    let executor = LocalExecutor::new();
    reactor.block_on(executor.run(async {
        let tcp = AsyncFd::<TcpListener>::bind((Ipv4Addr::LOCALHOST, 0))?;
        let local = AsyncFd::<UnixListener>::bind(unix)?;
        let address = Addresses {
            tcp: tcp.get_ref().local_addr()?,
            unix: unix.to_owned(),
        };
        addresses.send(address).map_err(io::Error::other)?;
        let (stop, stopped) = async_channel::bounded::<()>(1);
        let (alive, all_gone) = async_channel::bounded::<()>(1);
        loop {
            let accept_tcp = async { Some(tcp.accept().await.map(|(stream, _)| Ok(stream))) };
            let accept_local = async { Some(local.accept().await.map(|(stream, _)| Err(stream))) };
            let stopped = async {
                let _ = stopped.recv().await;
                None
            };
            let accepted = future::or(stopped, future::race(accept_tcp, accept_local)).await;
            let (stop, alive) = (stop.clone(), alive.clone());
            let connection = match accepted {
                None => break,
                Some(Ok(Ok(stream))) => executor.spawn(async move {
                    let _alive = alive;
                    if matches!(serve(stream).await, Ok(true)) {
                        let _ = stop.send(()).await;
                    }
                }),
                Some(Ok(Err(stream))) => executor.spawn(async move {
                    let _alive = alive;
                    if matches!(serve(stream).await, Ok(true)) {
                        let _ = stop.send(()).await;
                    }
                }),
                Some(Err(error)) if is_shortage(&error) => {
                    future::yield_now().await;
                    continue;
                }
                Some(Err(error)) => return Err(error),
            };
            connection.detach();
        }
        drop(alive);
        let _ = all_gone.recv().await;
        tcp.close().await?;
        local.close().await
    }))??;
    check(&mut reactor)
}

async fn talk(to: &Addresses, ending: Ending, random: &Random, soak: &Soak) -> io::Result<()> {
    if random.below(2) == 0 {
        let stream = AsyncFd::<TcpStream>::connect(to.tcp).await?;
        converse(stream, ending, random, soak).await
    } else {
        let stream = AsyncFd::<UnixStream>::connect(&to.unix).await?;
        converse(stream, ending, random, soak).await
    }
}

fn client(mut reactor: Reactor, to: &Addresses, soak: &Soak) -> io::Result<Metrics> {
    let executor = LocalExecutor::new();
    reactor.block_on(executor.run(async {
        let tasks: Vec<_> = (0..CLIENTS)
            .map(|index| {
                executor.spawn(async move {
                    let random = Random::new(index as u64 + 1);
                    while soak.goes_on() {
                        let ending = match random.below(10) {
                            0 => Ending::ClientResets,
                            1 => Ending::ServerDrops,
                            _ => Ending::InOrder,
                        };
                        match talk(to, ending, &random, soak).await {
                            Ok(()) if ending == Ending::InOrder => {
                                Totals::add(&soak.totals.conversations, 1);
                            }
                            Ok(()) => Totals::add(&soak.totals.cut_short, 1),
                            Err(error)
                                if is_shortage(&error)
                                    || error.kind() == io::ErrorKind::WouldBlock =>
                            {
                                // Or the unix listener's queue is full.
                                future::yield_now().await;
                            }
                            Err(error) => return Err(error),
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        let random = Random::new(1);
        loop {
            match talk(to, Ending::ServerStops, &random, soak).await {
                Err(error) if is_shortage(&error) => future::yield_now().await,
                outcome => return outcome,
            }
        }
    }))??;
    check(&mut reactor)
}

/// A reactor that moves from thread to thread, with descriptors whose every event is counted.
fn nomad(mut reactor: Reactor, soak: &Soak) -> io::Result<Metrics> {
    let events: Vec<OwnedFd> = (0..COUNTED)
        .map(|_| eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC))
        .collect::<Result<_, _>>()?;
    let registrations: Vec<Registration> = events
        .iter()
        .map(|event| {
            let registration = Registration::new();
            registration
                .register_interest(event, Interest::READABLE, &reactor.handle())
                .map(|_| registration)
        })
        .collect::<io::Result<_>>()?;
    let sent: Vec<AtomicU64> = events.iter().map(|_| AtomicU64::new(0)).collect();
    let received: Vec<AtomicU64> = events.iter().map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for (index, event) in events.iter().enumerate() {
            let (sent, received) = (&sent[index], &received[index]);
            scope.spawn(move || {
                while soak.goes_on() {
                    // Each waits until the last one was heard of: a lost event would end it here.
                    let n = sent.fetch_add(1, Ordering::Relaxed) + 1;
                    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
                    Totals::add(&soak.totals.sent_edges, 1);
                    let start = Instant::now();
                    while received.load(Ordering::Acquire) < n {
                        if start.elapsed() > STALL {
                            eprintln!("an event was lost");
                            soak.over.store(true, Ordering::Relaxed);
                            return;
                        }
                        thread::yield_now();
                    }
                }
            });
        }
        let all_heard = || {
            sent.iter().zip(&received).all(|(sent, received)| {
                sent.load(Ordering::Acquire) == received.load(Ordering::Acquire)
            })
        };
        let mut seen = reactor.metrics().turns;
        while soak.goes_on() || !all_heard() {
            let (moving, received) = (&mut reactor, &received);
            let (events, registrations) = (&events, &registrations);
            let stage = thread::scope(|scope| {
                let stage = scope.spawn(move || {
                    for _ in 0..2000 {
                        match moving.turn(Some(Duration::from_millis(1))) {
                            // No ring without descriptors: a later turn makes one.
                            Err(error) if is_shortage(&error) => continue,
                            turned => turned?,
                        };
                        for (index, registration) in registrations.iter().enumerate() {
                            if registration.take_read_ready()?.is_some() {
                                let mut count = [0; 8];
                                if rustix::io::read(&events[index], &mut count).is_ok() {
                                    let count = u64::from_ne_bytes(count);
                                    received[index].fetch_add(count, Ordering::AcqRel);
                                    Totals::add(&soak.totals.edges, count);
                                }
                            }
                        }
                    }
                    Ok::<_, io::Error>(())
                });
                stage.join()
            });
            match stage {
                Ok(staged) => staged?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
            Totals::add(&soak.totals.moves, 1);
            if reactor.metrics().turns == seen {
                return Err(io::Error::other("no turn was taken"));
            }
            seen = reactor.metrics().turns;
        }
        Ok(())
    })?;
    drop(registrations);
    check(&mut reactor)
}

/// Thousands that are ready at once, again and again.
fn flood(mut reactor: Reactor, soak: &Soak) -> io::Result<Metrics> {
    while soak.goes_on() {
        let mut waiting = Vec::new();
        while waiting.len() < FLOOD {
            let Ok(event) = eventfd(1, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC) else {
                break;
            };
            let registration = Registration::new();
            registration.register_with(&event, &reactor.handle())?;
            waiting.push((event, registration));
        }
        let start = Instant::now();
        while !waiting.is_empty() {
            reactor.turn(Some(Duration::from_millis(100)))?;
            let mut failed = None;
            waiting.retain(|(_, registration)| match registration.take_read_ready() {
                Ok(ready) => !ready.is_some_and(|ready| ready.is_readable()),
                Err(error) => {
                    failed = Some(error);
                    true
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            if start.elapsed() > STALL {
                return Err(io::Error::other("an event of a flood was lost"));
            }
        }
        Totals::add(&soak.totals.floods, 1);
        thread::sleep(Duration::from_millis(50));
    }
    check(&mut reactor)
}

extern "C" fn ignore(_: libc::c_int) {}

/// Signals, wakes, processes and shortages, until it is over.
fn faults(soak: &Soak, threads: &mpsc::Receiver<libc::pthread_t>, handles: &[Handle]) {
    let mut targets: Vec<libc::pthread_t> = Vec::new();
    let random = Random::new(7);
    while soak.goes_on() {
        targets.extend(threads.try_iter());
        for target in &targets {
            // SAFETY: the threads that are announced here outlive this one.
            unsafe { libc::pthread_kill(*target, libc::SIGUSR1) };
            Totals::add(&soak.totals.signals, 1);
        }
        for handle in handles {
            handle.wake();
        }
        if random.below(3000) == 0 && Command::new("/bin/true").status().is_ok() {
            Totals::add(&soak.totals.processes, 1);
        }
        if random.below(4000) == 0 {
            let limit = getrlimit(Resource::Nofile);
            let none = Rlimit {
                current: Some(3),
                ..limit
            };
            if setrlimit(Resource::Nofile, none).is_ok() {
                thread::sleep(Duration::from_millis(20));
                let _ = setrlimit(Resource::Nofile, limit);
                Totals::add(&soak.totals.shortages, 1);
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
}

fn descriptors() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// Resident memory, in bytes.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = resident.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
    kibibytes.unwrap_or(0_u64) << 10
}

/// Ends the process if nothing moves any more, and tells how much memory there was early on.
fn watch(soak: &Soak, running: &AtomicBool, seconds: u64) -> u64 {
    let start = Instant::now();
    let mut early = 0;
    let mut last = (0, Instant::now());
    while running.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
        let now = Totals::get(&soak.totals.bytes) + Totals::get(&soak.totals.floods);
        if now != last.0 {
            last = (now, Instant::now());
        }
        if last.1.elapsed() > STALL {
            println!("soak: FAILED, nothing has moved for {STALL:?}");
            process::exit(1);
        }
        if early == 0 && start.elapsed() > Duration::from_secs(seconds) / 5 {
            early = memory();
        }
    }
    early
}

type Joined<'scope> = thread::ScopedJoinHandle<'scope, io::Result<Metrics>>;

fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    threads: &mpsc::Sender<libc::pthread_t>,
    soak: &'env Soak,
    run: impl FnOnce() -> io::Result<Metrics> + Send + 'scope,
) -> Joined<'scope> {
    let threads = threads.clone();
    scope.spawn(move || {
        announce(&threads);
        let outcome = run();
        if let Err(error) = &outcome {
            eprintln!("{error}");
            soak.over.store(true, Ordering::Relaxed);
        }
        outcome
    })
}

fn soak(seconds: u64, directory: &Path) -> Result<String, Box<dyn Error>> {
    let soak = Soak {
        over: AtomicBool::new(false),
        end: Instant::now() + Duration::from_secs(seconds),
        totals: Totals::default(),
    };
    let running = AtomicBool::new(true);
    let (metrics, early) = thread::scope(|scope| -> Result<_, Box<dyn Error>> {
        let soak = &soak;
        let watcher = scope.spawn(|| watch(soak, &running, seconds));
        let (threads, targets) = mpsc::channel();
        let mut joined = Vec::new();
        let mut handles = Vec::new();
        for backend in [Backend::Uring, Backend::Epoll] {
            let mut reactor = || {
                let reactor = Reactor::builder().backend(backend).build()?;
                handles.push(reactor.handle());
                Ok::<_, io::Error>(reactor)
            };
            let (addresses, address) = mpsc::channel();
            let path = directory.join(format!("{backend:?}"));
            let serving = reactor()?;
            joined.push(start(scope, &threads, soak, move || {
                server(serving, &path, &addresses)
            }));
            let to = address.recv()?;
            let asking = reactor()?;
            joined.push(start(scope, &threads, soak, move || {
                client(asking, &to, soak)
            }));
            let flooded = reactor()?;
            joined.push(start(scope, &threads, soak, move || flood(flooded, soak)));
            let moving = reactor()?;
            joined.push(start(scope, &threads, soak, move || nomad(moving, soak)));
        }
        let faults = scope.spawn(move || faults(soak, &targets, &handles));
        let ended: Vec<_> = {
            // Nobody may end while signals are on their way to it.
            let _ = faults.join();
            joined.into_iter().map(|thread| thread.join()).collect()
        };
        running.store(false, Ordering::Relaxed);
        let early = watcher.join().unwrap_or(0);
        let mut metrics = Vec::new();
        for outcome in ended {
            metrics.push(outcome.map_err(|_| "a thread panicked")??);
        }
        Ok((metrics, early))
    })?;
    let grown = memory().saturating_sub(early);
    if early > 0 && grown > SLACK {
        return Err(format!("the memory has grown by {} MiB", grown >> 20).into());
    }
    let sum = |field: fn(&Metrics) -> u64| metrics.iter().map(field).sum::<u64>();
    let registered = sum(|metrics| metrics.registered);
    let totals = &soak.totals;
    let (sent, edges) = (Totals::get(&totals.sent_edges), Totals::get(&totals.edges));
    if registered != 0 || sent != edges {
        return Err(format!("{registered} registrations, {edges} of {sent} events").into());
    }
    Ok(format!(
        "{} conversations and {} cut short, {} MiB checked, {edges} of {sent} events counted, {} \
         dispatched; faults: {} signals, {} moves, {} floods, {} processes, {} shortages; \
         {registered} registrations left, memory +{} KiB",
        Totals::get(&totals.conversations),
        Totals::get(&totals.cut_short),
        Totals::get(&totals.bytes) >> 20,
        sum(|metrics| metrics.events),
        Totals::get(&totals.signals),
        Totals::get(&totals.moves),
        Totals::get(&totals.floods),
        Totals::get(&totals.processes),
        Totals::get(&totals.shortages),
        grown >> 10,
    ))
}

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = match std::env::args().nth(1) {
        Some(seconds) => seconds.parse()?,
        None => 600,
    };
    let handler: extern "C" fn(libc::c_int) = ignore;
    // SAFETY: the handler does nothing. Without `SA_RESTART` it interrupts what waits.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, most)?;
    let directory = std::env::temp_dir().join(format!("soak-{}", process::id()));
    fs::create_dir_all(&directory)?;
    let before = descriptors()?;
    let outcome = soak(seconds, &directory);
    fs::remove_dir_all(&directory)?;
    let after = descriptors()?;
    match outcome {
        Ok(summary) if before == after => {
            println!("soak: {seconds} s, {summary}, {after} descriptors before and after");
            Ok(())
        }
        Ok(_) => {
            println!("soak: FAILED, {before} descriptors before and {after} after");
            process::exit(1);
        }
        Err(error) => {
            println!("soak: FAILED, {error}");
            process::exit(1);
        }
    }
}

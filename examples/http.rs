//! An HTTP/1.1 server: hyper, with one reactor and one executor on each core.
//!
//! ```text
//! cargo run --release --example http [ADDRESS]
//! ```
//!
//! Nothing is shared between the cores but the counters. Each has a listener of its own on the same
//! address (`SO_REUSEPORT`), so the kernel deals the connections out, and a connection lives and
//! dies on the thread that accepted it.
//!
//! Ctrl-C and `SIGTERM` end the server gracefully: it accepts no more connections, answers the
//! requests that are on their way, closes idle connections, and prints its counters. A second Ctrl-C
//! ends it at once.
//!
//! What a server on the open internet needs beyond this: a timeout for clients that never finish
//! their request, and a limit of connections.

use async_channel::{Receiver, Sender};
use async_executor::LocalExecutor;
use futures_lite::future;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::{Domain, SockRef, Socket, Type};
use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;
use uring_reactor::{AsyncFd, Handle, Interest, Reactor};

/// How long a stopping server waits for answers that are on their way.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a core that cannot accept, for want of descriptors, waits before it tries again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    // As text, not as `Debug`: a refused io_uring is explained, with what to do about it.
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    // The reactor says through `tracing` if it had to fall back to epoll, and why.
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();

    // Before the first thread, because threads inherit the mask: a signal that one of them has not
    // blocked would end the process instead of waiting in the signalfd.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;

    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let first = listen(address.parse().map_err(io::Error::other)?)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..thread::available_parallelism()?.get() {
        listeners.push(listen(address)?);
    }
    // Built here and turned on other threads, so that whatever can fail at the start fails here.
    let reactors = listeners
        .iter()
        .map(|_| Reactor::new())
        .collect::<io::Result<Vec<_>>>()?;
    let cores: Vec<Core> = reactors
        .iter()
        .map(|reactor| Core {
            reactor: reactor.handle(),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        })
        .collect();

    println!("http://{address} on {} cores. Try:", cores.len());
    println!("  a browser on         http://{address}/");
    println!("  the counters         curl http://{address}/metrics");
    println!("  some load            wrk -t2 -c64 -d10 http://{address}/hello");
    println!("Ctrl-C stops.");

    // A channel that carries nothing but its own end. Whichever way the scope is left, `stop` goes
    // with it, and the cores hear of it.
    let (stop, stopped) = async_channel::bounded(1);
    let everyone = &cores;
    thread::scope(move |scope| {
        for (index, (reactor, listener)) in reactors.into_iter().zip(listeners).enumerate() {
            let stopped = stopped.clone();
            thread::Builder::new()
                .name(format!("core-{index}"))
                .spawn_scoped(scope, move || {
                    if let Err(error) = run_core(reactor, listener, everyone, index, &stopped) {
                        eprintln!("core {index}: {error}");
                    }
                    // A server that lacks a core would be a puzzle, so an error of one ends all.
                    stopped.close();
                })?;
        }
        Reactor::new()?.block_on(future::or(first_signal(signals), async {
            closed(&stopped).await;
            Ok(())
        }))??;
        drop(stop);
        // From here on, a signal does again what it does by default.
        signals.thread_unblock()?;
        io::Result::Ok(())
    })?;

    println!("\nstopped; the counters:");
    for (index, core) in cores.iter().enumerate() {
        let counters = core
            .counters()
            .map(|(name, value)| format!("{name} {value}"));
        println!("  core {index}: {}", counters.join(", "));
    }
    Ok(())
}

/// A listener beside others on the same address: the kernel spreads connections over all of them.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Waits for a signal as for any other input: a signalfd is readable when there is one.
async fn first_signal(signals: SigSet) -> io::Result<()> {
    let signals = AsyncFd::new(SignalFd::new(&signals)?)?;
    signals
        .async_io(Interest::READABLE, |fd| {
            fd.read_signal()?.ok_or(io::ErrorKind::WouldBlock.into())
        })
        .await?;
    println!("\nanswering the requests that are on their way");
    Ok(())
}

/// Completes when the channel is closed.
async fn closed(channel: &Receiver<Infallible>) {
    let _ = channel.recv().await;
}

/// What one core has to show.
struct Core {
    reactor: Handle,
    connections: AtomicU64,
    requests: AtomicU64,
}

impl Core {
    fn counters(&self) -> [(&'static str, u64); 13] {
        let reactor = self.reactor.metrics();
        [
            ("requests", self.requests.load(Ordering::Relaxed)),
            ("connections", self.connections.load(Ordering::Relaxed)),
            ("registered", reactor.registered),
            ("turns", reactor.turns),
            ("enters", reactor.enters),
            ("entries", reactor.entries),
            ("completions", reactor.completions),
            ("events", reactor.events),
            ("spurious", reactor.spurious),
            ("rearms", reactor.rearms),
            ("overflows", reactor.overflows),
            ("wakes", reactor.wakes),
            ("rebuilds", reactor.rebuilds),
        ]
    }
}

fn run_core(
    mut reactor: Reactor,
    listener: TcpListener,
    cores: &[Core],
    index: usize,
    stopped: &Receiver<Infallible>,
) -> io::Result<()> {
    let executor = LocalExecutor::new();
    reactor.block_on(executor.run(serve(&executor, listener, cores, &cores[index], stopped)))?
}

async fn serve<'a>(
    executor: &LocalExecutor<'a>,
    listener: TcpListener,
    cores: &'a [Core],
    core: &'a Core,
    stopped: &Receiver<Infallible>,
) -> io::Result<()> {
    let listener = AsyncFd::new(listener)?;
    let timer = Timer::new()?;
    // Two more of these channels: closing the first tells the connections of this core to finish,
    // and the second closes itself when the last of them is gone.
    let (finish, finishing) = async_channel::bounded(1);
    let (alive, ended) = async_channel::bounded(1);

    loop {
        // `accept` is asked first, so that a connection which the kernel has already accepted for us
        // is served before we stop; it would be reset otherwise.
        let accepted = future::or(async { Some(listener.accept().await) }, async {
            closed(stopped).await;
            None
        });
        match accepted.await {
            None => break,
            Some(Ok((stream, _))) => {
                let connection = connection(stream, cores, core, finishing.clone(), alive.clone());
                executor.spawn(connection).detach();
            }
            // No descriptors, most likely. Connections that end will free some.
            Some(Err(error)) => {
                eprintln!("accept: {error}");
                timer.sleep(ACCEPT_PAUSE).await?;
            }
        }
    }

    listener.close().await?;
    finish.close();
    drop(alive);
    let all_ended = async {
        closed(&ended).await;
        Ok(())
    };
    future::or(all_ended, timer.sleep(DRAIN)).await
}

async fn connection(
    stream: AsyncFd<TcpStream>,
    cores: &[Core],
    core: &Core,
    finishing: Receiver<Infallible>,
    _alive: Sender<Infallible>,
) {
    core.connections.fetch_add(1, Ordering::Relaxed);
    // hyper writes an answer in one piece, so there is nothing to wait for.
    let _ = stream.get_ref().set_nodelay(true);

    let service = service_fn(|request| {
        core.requests.fetch_add(1, Ordering::Relaxed);
        future::ready(Ok::<_, Infallible>(respond(&request, cores)))
    });
    let mut http = http1::Builder::new().serve_connection(Io(stream), service);
    let mut finish = pin!(closed(&finishing));
    let mut told = false;
    // An error here is a client that vanished, or one that does not speak HTTP and was told so.
    let _ = future::poll_fn(|cx| {
        if !told && finish.as_mut().poll(cx).is_ready() {
            told = true;
            Pin::new(&mut http).graceful_shutdown();
        }
        http.poll_without_shutdown(cx)
    })
    .await;

    // Closed by the reactor together with the end of the registration, in the batch of its next
    // turn. On a ring that takes no system call of its own.
    let _ = http.into_parts().io.0.close().await;
    core.connections.fetch_sub(1, Ordering::Relaxed);
}

fn respond(request: &Request<Incoming>, cores: &[Core]) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const PAGE: &str = include_str!("http.html");

    let known_method = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, content, body) = match request.uri().path() {
        _ if !known_method => (
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "GET and HEAD only\n".into(),
        ),
        "/" => (StatusCode::OK, "text/html; charset=utf-8", PAGE.into()),
        "/hello" => (StatusCode::OK, TEXT, "Hello from uring-reactor!\n".into()),
        "/metrics" => (StatusCode::OK, "application/json", metrics(cores).into()),
        _ => (
            StatusCode::NOT_FOUND,
            TEXT,
            "there are /, /hello and /metrics\n".into(),
        ),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !known_method {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// Names that need no escaping and plain numbers: not worth a JSON library.
fn metrics(cores: &[Core]) -> String {
    let object = |core: &Core| {
        core.counters()
            .map(|(name, value)| format!("\"{name}\":{value}"))
            .join(",")
    };
    let objects: Vec<String> = cores
        .iter()
        .map(|core| format!("{{{}}}", object(core)))
        .collect();
    format!("{{\"cores\":[{}]}}\n", objects.join(","))
}

/// A socket in hyper's terms. Both traits follow one pattern: wait until the socket is ready, try,
/// and if the kernel says `WouldBlock`, let the guard take the readiness back and wait again.
struct Io(AsyncFd<TcpStream>);

impl hyper::rt::Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            // SAFETY: `recv` only writes bytes that are initialised, so it never undoes that.
            let spare = unsafe { buffer.as_mut() };
            if let Ok(result) = guard.try_io(|socket| SockRef::from(socket.get_ref()).recv(spare)) {
                // SAFETY: the kernel has written that many bytes at the start of `spare`.
                return Poll::Ready(result.map(|read| unsafe { buffer.advance(read) }));
            }
        }
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|socket| socket.get_ref().write(bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.get_ref().shutdown(Shutdown::Write))
    }
}

/// Time, through the reactor: a timerfd is readable when its time has come.
struct Timer(AsyncFd<TimerFd>);

impl Timer {
    fn new() -> io::Result<Timer> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        Ok(Timer(AsyncFd::new(timer)?))
    }

    async fn sleep(&self, duration: Duration) -> io::Result<()> {
        let once = Expiration::OneShot(duration.into());
        self.0.get_ref().set(once, TimerSetTimeFlags::empty())?;
        self.0
            .async_io(Interest::READABLE, |timer| Ok(timer.wait()?))
            .await
    }
}

//! The smallest honest server: every byte that a client sends goes back to it.
//!
//! ```text
//! cargo run --release --example echo [ADDRESS]
//! nc 127.0.0.1 7777
//! ```
//!
//! One thread, one reactor, one task a connection. The executor is async-executor's, as it comes:
//! the reactor has none of its own and needs no more of it than that it calls wakers.

use async_executor::LocalExecutor;
use futures_lite::future;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;
use uring_reactor::{AsyncFd, Interest, Reactor};

/// Sends back what comes, until the client has sent everything.
async fn echo(stream: AsyncFd<TcpStream>) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = stream
            .async_io(Interest::READABLE, |mut s| s.read(&mut buffer))
            .await?;
        if read == 0 {
            return stream.close().await;
        }
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let written = stream
                .async_io(Interest::WRITABLE, |mut s| s.write(rest))
                .await?;
            rest = &rest[written..];
        }
    }
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1);
    let address = address.as_deref().unwrap_or("127.0.0.1:7777");
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let executor = LocalExecutor::new();
    Reactor::new()?.block_on(executor.run(async {
        let listener = AsyncFd::<TcpListener>::bind(address)?;
        println!("listening on {}", listener.get_ref().local_addr()?);
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let connection = async move {
                        if let Err(error) = echo(stream).await {
                            eprintln!("{peer}: {error}");
                        }
                    };
                    executor.spawn(connection).detach();
                }
                // Out of descriptors, most likely. A moment's rest for all (examples/http has a timer
                // for that), and the connections go on; some will end.
                Err(error) => {
                    eprintln!("accept: {error}");
                    thread::sleep(Duration::from_millis(10));
                    future::yield_now().await;
                }
            }
        }
    }))?
}

//! What servers with tasks do with a connection: echo, or hyper.

use crate::runtimes::{Spare, Stream};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use std::convert::Infallible;
use std::future::{Future, poll_fn, ready};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

pub(crate) trait Service: Copy + Send + Sync + 'static {
    /// Serves a connection to its end. The stream was just accepted.
    fn serve<S: Stream>(self, stream: S) -> impl Future<Output = ()> + Send + 'static;
}

/// Every byte goes back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Echo;

impl Service for Echo {
    async fn serve<S: Stream>(self, mut stream: S) {
        let mut buffer = vec![MaybeUninit::uninit(); crate::server::BUFFER];
        // An error is a client that has gone, which is how every connection ends here.
        let _ = echo(&mut stream, &mut buffer).await;
        stream.close().await;
    }
}

async fn echo(stream: &mut impl Stream, buffer: &mut Spare) -> io::Result<()> {
    loop {
        let count = poll_fn(|cx| stream.poll_read(cx, buffer)).await?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: so many bytes were put there, and bytes they are whatever they say.
        let mut rest = unsafe { &*(std::ptr::from_ref(&buffer[..count]) as *const [u8]) };
        while !rest.is_empty() {
            let written = poll_fn(|cx| stream.poll_write(cx, rest)).await?;
            rest = &rest[written..];
        }
    }
}

/// The answer of `examples/http.rs` to `/hello`, by the same hyper.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http;

impl Service for Http {
    async fn serve<S: Stream>(self, stream: S) {
        let service = service_fn(|request| ready(Ok::<_, Infallible>(respond(&request))));
        let mut http = http1::Builder::new().serve_connection(Io(stream), service);
        let _ = poll_fn(|cx| http.poll_without_shutdown(cx)).await;
        http.into_parts().io.0.close().await;
    }
}

fn respond(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match request.uri().path() {
        "/hello" => (StatusCode::OK, "Hello from uring-reactor!\n"),
        _ => (StatusCode::NOT_FOUND, "there is /hello\n"),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A stream in hyper's terms.
struct Io<S>(S);

impl<S: Stream> hyper::rt::Read for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: `poll_read` only writes bytes that are initialised, so it never undoes that.
        let spare = unsafe { buffer.as_mut() };
        self.0.poll_read(cx, spare).map_ok(|count| {
            // SAFETY: so many bytes were put at the start of `spare`.
            unsafe { buffer.advance(count) };
        })
    }
}

impl<S: Stream> hyper::rt::Write for Io<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

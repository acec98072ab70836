//! How a stand-in backend treats a connection: honestly, or in one of the ways real backends misbehave.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use clap::ValueEnum;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::servers::Counts;

thread_local! {
    // One buffer a thread: ten thousand idle connections hold no memory in it.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 * 1024]);
}

/// The ways to treat a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Sends everything back, and closes after the client has closed its direction
    Echo,
    /// Echoes each piece it reads after --delay
    Slow,
    /// Reads, and never answers
    Silent,
    /// Holds its port without listening, so that connects are refused
    Refuse,
    /// Resets the connection after its first bytes
    Reset,
    /// Echoes the first piece, closes its own direction, and goes on reading
    HalfClose,
    /// Answers HTTP/1.1 requests with 200 and its name, and keeps the connection
    Http,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Echo => "echo",
            Mode::Slow => "slow",
            Mode::Silent => "silent",
            Mode::Refuse => "refuse",
            Mode::Reset => "reset",
            Mode::HalfClose => "half-close",
            Mode::Http => "http",
        })
    }
}

/// One server's way, and its name for those who ask.
pub struct Temper {
    /// The way.
    pub mode: Mode,
    /// How long `slow` waits.
    pub delay: Duration,
    /// `backend-1` and so on.
    pub name: String,
}

impl Temper {
    /// Treats one connection to its end. What the client does wrong ends it and is nobody else's concern.
    pub async fn serve(&self, stream: Counted) {
        let _ = match self.mode {
            Mode::Echo => echo(stream, None).await,
            Mode::Slow => echo(stream, Some(self.delay)).await,
            // Refusing sockets never get here: they do not listen.
            Mode::Silent | Mode::Refuse => silent(stream).await,
            Mode::Reset => reset(stream).await,
            Mode::HalfClose => half_close(stream).await,
            Mode::Http => self.http(stream).await,
        };
    }

    async fn http(&self, stream: Counted) -> io::Result<()> {
        let answer = service_fn(async |request: Request<Incoming>| {
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.frame().await {} // an unread body would cost the connection
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("{}\n", self.name)))))
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).half_close(true);
        server.serve_connection(TokioIo::new(stream), answer).await.map_err(io::Error::other)
    }
}

async fn echo(mut stream: Counted, delay: Option<Duration>) -> io::Result<()> {
    while let Some(piece) = stream.piece().await? {
        if let Some(delay) = delay {
            sleep(delay).await;
        }
        stream.write_all(&piece).await?;
    }
    stream.shutdown().await
}

async fn silent(mut stream: Counted) -> io::Result<()> {
    while stream.piece().await?.is_some() {}
    Ok(())
}

async fn reset(mut stream: Counted) -> io::Result<()> {
    stream.piece().await?;
    stream.inner.set_zero_linger()
}

async fn half_close(mut stream: Counted) -> io::Result<()> {
    if let Some(piece) = stream.piece().await? {
        stream.write_all(&piece).await?;
    }
    stream.shutdown().await?;
    silent(stream).await
}

/// A connection that counts its bytes.
pub struct Counted {
    inner: TcpStream,
    counts: Arc<Counts>,
}

impl Counted {
    /// Counts into `counts`; small writes are sent at once.
    pub fn new(inner: TcpStream, counts: Arc<Counts>) -> Self {
        let _ = inner.set_nodelay(true); // fails only where the peer is gone already
        Self { inner, counts }
    }

    /// What can be read now, at most a buffer full; `None` at the peer's end.
    async fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        poll_fn(|cx| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(&mut *self).poll_read(cx, &mut buffer))?;
                let piece = buffer.filled();
                Poll::Ready(Ok((!piece.is_empty()).then(|| piece.to_vec())))
            })
        })
        .await
    }
}

fn count(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(bytes as u64, Ordering::Relaxed);
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        count(&self.counts.received, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        count(&self.counts.sent, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

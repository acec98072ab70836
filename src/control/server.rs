//! The daemon's side of the socket: takes requests off it within bounds of size, number and time,
//! hands each to the supervisor, and writes the answer back. It decides nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{MsgFlags, recv};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::names::Names;
use super::noted::Noted;
use super::roll::{Entry, Roll};
use super::{Reply, Request, Unroutable, parse};

/// The longest request line with its headers.
const MAX_HEAD: usize = 16 * 1024;

/// The longest document of a request.
const MAX_BODY: usize = 64 * 1024;

/// How long no connection is taken after an accept failed: EMFILE repeats at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long an answer may take to be written to whom a predecessor left waiting: it fits into the socket's buffer.
const LATE: Duration = Duration::from_millis(200);

/// Connections of any kind, as a multiple of those that may be silent.
const MOST: usize = 4;

/// One request on its way to the supervisor.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Who asks.
    pub peer: Peer,
    /// Where the answer goes. Closed when the client has gone.
    pub answer: oneshot::Sender<Reply>,
    /// The connection itself: a program that takes over answers there ([`answer_late`]). Not to be used while this one runs.
    pub connection: RawFd,
}

/// Who is at the other end of a connection, by the kernel's word (SO_PEERCRED, unix(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The user's number.
    pub uid: u32,
    /// The user's name, where this machine knows one.
    pub user: Option<String>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(name) => f.write_str(name),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

/// What the server allows a client. The supervisor may take as long as it needs: a drain is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections that have asked nothing yet; one more ends the oldest. Of all there are at most four times as many,
    /// more wait in the kernel's queue.
    pub connections: usize,
    /// The longest a client may take to send its headers, and again to send its document.
    pub request: Duration,
    /// The longest a client may take to read its answer, and how long the last answers may take at the stop.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, request: Duration::from_secs(5), answer: Duration::from_secs(5) }
    }
}

/// Serves until the receiver of `asks` is dropped; then it takes no more connections and returns when the last
/// answers are written, at most `limits.answer` later. Dropping the future cuts every connection.
///
/// Requests not yet answered then are answered with a refusal. While `asks` is full, clients wait. `roll` tells who is
/// connected; whom it has already, from a predecessor, is served like those who come. `names` tells who asks.
pub async fn serve(listener: UnixListener, roll: Roll, asks: mpsc::Sender<Asked>, limits: Limits, names: Names) {
    let mut connections = JoinSet::new();
    // Those that have asked nothing yet, oldest first. Who waits for the supervisor is the supervisor's to bound.
    let mut silent: VecDeque<(Arc<AtomicBool>, AbortHandle)> = VecDeque::new();
    let mut is_failing = false;
    for stream in roll.take_inherited() {
        let Ok(stream) = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)) else { continue };
        let asked = Arc::new(AtomicBool::new(false));
        let serving = serve_connection(stream, roll.clone(), asks.clone(), Arc::clone(&asked), limits, names.clone());
        silent.push_back((asked, connections.spawn(serving)));
    }
    loop {
        tokio::select! {
            () = asks.closed() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MOST * limits.connections => match accepted {
                Ok((stream, _)) => {
                    is_failing = false;
                    silent.retain(|(asked, task)| !asked.load(Relaxed) && !task.is_finished());
                    if silent.len() >= limits.connections
                        && let Some((_, oldest)) = silent.pop_front()
                    {
                        oldest.abort(); // an operator is not to wait for those who say nothing
                    }
                    let asked = Arc::new(AtomicBool::new(false));
                    let serving = serve_connection(stream, roll.clone(), asks.clone(), Arc::clone(&asked), limits, names.clone());
                    silent.push_back((asked, connections.spawn(serving)));
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "control socket: accept fails; trying on");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    // Those still at work after this are cut by the set's drop.
    let _ = timeout(limits.answer, async { while connections.join_next().await.is_some() {} }).await;
}

/// One request, one answer. Errors of the connection concern nobody else: the client has gone or speaks no HTTP.
async fn serve_connection(
    stream: UnixStream,
    roll: Roll,
    asks: mpsc::Sender<Asked>,
    asked: Arc<AtomicBool>,
    limits: Limits,
    names: Names,
) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let uid = credentials.uid();

    let answered = Arc::new(Notify::new());
    let entry = Arc::new(roll.enter(stream.as_raw_fd()));
    let service = service_fn(|request| {
        let (asks, names, entry) = (asks.clone(), names.clone(), Arc::clone(&entry));
        let (asked, answered) = (Arc::clone(&asked), Arc::clone(&answered));
        async move {
            let response = respond(request, uid, &names, &asks, &asked, &entry, limits).await;
            entry.is_answered();
            answered.notify_one();
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Noted::new(stream, Arc::clone(&entry))), service);

    let mut connection = pin!(connection);
    tokio::select! {
        _ = &mut connection => {}
        () = answered.notified() => {
            let _ = timeout(limits.answer, connection.as_mut()).await;
        }
    }
    drop(entry); // before the connection is closed
}

type Answer = Response<Full<Bytes>>;

async fn respond(
    request: hyper::Request<Incoming>,
    uid: u32,
    names: &Names,
    asks: &mpsc::Sender<Asked>,
    asked: &AtomicBool,
    entry: &Entry,
    limits: Limits,
) -> Answer {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or(head.uri.path(), |path| path.as_str());
    let body = match timeout(limits.request, read_body(body)).await {
        Ok(Ok(body)) => body,
        Ok(Err(answer)) => return answer,
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the document did not come in time"),
    };
    match parse(head.method.as_str(), path, &body) {
        Ok(request) => {
            asked.store(true, Relaxed);
            entry.asks();
            let user = if request.is_signed() { names.of(uid).await } else { None };
            let peer = Peer { uid, user };
            ask(request, peer, asks, entry.connection()).await
        }
        Err(error) => {
            let mut answer = refusal(status(error.http_status()), error.to_string());
            if let Unroutable::Method(right) = error {
                answer.headers_mut().insert(ALLOW, HeaderValue::from_static(right));
            }
            answer
        }
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, Answer> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("the document is longer than {MAX_BODY} bytes");
            Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Err(error) => Err(refusal(StatusCode::BAD_REQUEST, format!("the document is cut short: {error}"))),
    }
}

/// Waits as long as the supervisor needs. The wait ends with the client: hyper drops this future then.
async fn ask(request: Request, peer: Peer, asks: &mpsc::Sender<Asked>, connection: RawFd) -> Answer {
    let (answer, answered) = oneshot::channel();
    if asks.send(Asked { request, peer, answer, connection }).await.is_err() {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "lbd is stopping and takes no more requests");
    }
    match answered.await {
        Ok(reply) => written(status(reply.http_status()), &reply),
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "lbd stopped before it could answer"),
    }
}

/// Answers a request that a predecessor has read. Nothing else has been or will be sent there.
///
/// # Errors
/// The client has gone, or does not read.
pub fn answer_late(mut connection: &std::os::unix::net::UnixStream, reply: &Reply) -> io::Result<()> {
    let (status, text) = (status(reply.http_status()), reply.to_json());
    let head = format!(
        "HTTP/1.1 {status}\r\n{CONTENT_TYPE}: application/json\r\n{CONTENT_LENGTH}: {}\r\n{CONNECTION}: close\r\n\r\n",
        text.len() + 1
    );
    connection.set_nonblocking(false)?;
    connection.set_write_timeout(Some(LATE))?;
    connection.write_all(format!("{head}{text}\n").as_bytes())
}

/// Whether the client of such a request has gone.
pub fn has_gone(connection: RawFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(connection, &mut [0], flags) {
        Ok(bytes) => bytes == 0,
        Err(e) => e != nix::Error::EAGAIN,
    }
}

fn refusal(status: StatusCode, message: impl Into<String>) -> Answer {
    written(status, &Reply::refused(message))
}

fn written(status: StatusCode, reply: &Reply) -> Answer {
    let mut answer = Response::new(Full::from(reply.to_json() + "\n"));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // One request a connection: no idle connection ever holds a place.
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

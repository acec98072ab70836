//! lbctl's side of the socket: one request, one answer, and errors that say whether there is no
//! daemon, no permission, or no answer in time.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout as within};

use super::{Reply, Request, Wire, build};

/// The longest answer: some tens of thousands of backends.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens at these sockets, or there are none.
    NoDaemon(Vec<PathBuf>),
    /// The socket's mode or its folder keeps us out.
    Denied(PathBuf),
    /// The answer did not come within this time.
    Late(PathBuf, Duration),
    /// What answers is no lbd, or broke off; says how.
    Nonsense(PathBuf, String),
}

impl ClientError {
    /// What `lbctl` exits with: 1 refused, 3 no daemon, 4 timed out.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Denied(_) | Self::Nonsense(..) => 1,
            Self::NoDaemon(_) => 3,
            Self::Late(..) => 4,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDaemon(sockets) => {
                let sockets: Vec<_> = sockets.iter().map(|socket| socket.display().to_string()).collect();
                write!(f, "no lbd listens at {}; start it, or name its socket with --socket", sockets.join(" or "))
            }
            Self::Denied(socket) => write!(
                f,
                "{}: permission denied; use sudo, or join the group that `control.group` names",
                socket.display()
            ),
            Self::Late(socket, time) => {
                write!(
                    f,
                    "{}: no answer within {} s; is lbd stopped or overloaded?",
                    socket.display(),
                    time.as_secs_f64()
                )
            }
            Self::Nonsense(socket, how) => write!(f, "{}: {how}", socket.display()),
        }
    }
}

impl std::error::Error for ClientError {}

/// Sends a request and waits for its answer. `timeout` bounds all of it; `None`: no bound, the wait ends when the
/// daemon answers or goes. Dropping the future drops the request.
pub async fn ask(socket: &Path, request: &Request, timeout: Option<Duration>) -> Result<Reply, ClientError> {
    let asked = exchange(socket, build(request));
    match timeout {
        None => asked.await,
        Some(time) => within(time, asked).await.unwrap_or_else(|_| Err(ClientError::Late(socket.to_owned(), time))),
    }
}

async fn exchange(socket: &Path, wire: Wire) -> Result<Reply, ClientError> {
    let nonsense = |how: String| ClientError::Nonsense(socket.to_owned(), how);
    let broke_off = |error: hyper::Error| nonsense(format!("the connection broke off before the answer: {error}"));

    let stream = connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke_off)?;
    let request = hyper::Request::builder()
        .method(wire.method)
        .uri(wire.path)
        .header(HOST, "lbd")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::<Bytes>::from(wire.body))
        .map_err(|error| nonsense(format!("the request cannot be written: {error}")))?;

    let answer = async {
        let response = sender.send_request(request).await.map_err(broke_off)?;
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        body.map_err(|error| nonsense(format!("the connection broke off within the answer: {error}")))
    };
    // Dropping `connection` when the answer is there closes it.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    let mut is_open = true;
    let body = loop {
        tokio::select! {
            body = &mut answer => break body?,
            _ = &mut connection, if is_open => is_open = false,
        }
    };
    Reply::from_json(&body.to_bytes()).map_err(|error| nonsense(format!("what answers there is no lbd: {error}")))
}

async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    loop {
        let error = match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match error.kind() {
            // The daemon's queue is full: unix sockets say so at once instead of waiting.
            ErrorKind::WouldBlock => sleep(Duration::from_millis(20)).await,
            _ => return Err(why_not_connected(socket, error)),
        }
    }
}

fn why_not_connected(socket: &Path, error: io::Error) -> ClientError {
    let socket = socket.to_owned();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
            ClientError::NoDaemon(vec![socket])
        }
        ErrorKind::PermissionDenied => ClientError::Denied(socket),
        _ => ClientError::Nonsense(socket, error.to_string()),
    }
}

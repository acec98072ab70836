//! One request on a connection: sends and receives at the same time, compares every byte, and never tries again.
//! It decides what is a fault; `verdict` counts.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::fault::Fault;
use crate::payload::Payload;
use crate::target::{Stream, Target};

/// Bytes moved by one system call; many megabytes are not held up by their number.
const PIECE: usize = 64 * 1024;

thread_local! {
    // One buffer a thread, not one a connection: ten thousand idle clients hold no memory in it.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// Connects within `limit`.
pub async fn connect(target: &Target, limit: Duration) -> Result<Stream, Fault> {
    match timeout(limit, target.connect()).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Fault::connecting(&error)),
        Err(_) => Err(Fault::connect_timeout(limit)),
    }
}

/// Sends the payload and expects the same bytes back, whole within `limit`. `seen` is shown every byte that comes,
/// wrong ones too.
pub async fn exchange(
    stream: &mut Stream,
    payload: &Payload,
    limit: Duration,
    mut seen: impl FnMut(&[u8]),
) -> Result<(), Fault> {
    let size = payload.size();
    let (mut sent, mut got) = (0, 0);
    let both = poll_fn(|cx| {
        // Both directions at each turn: if one waited for the other, a payload larger than the socket buffers on the
        // way would stop for ever.
        while got < size {
            let sending = if sent < size { poll_send(stream, cx, payload, &mut sent, got) } else { Poll::Pending };
            let receiving = poll_receive(stream, cx, payload, &mut got, &mut seen);
            match (sending, receiving) {
                // What was received tells more than the reset that follows it.
                (_, Poll::Ready(Err(fault))) | (Poll::Ready(Err(fault)), Poll::Pending) => {
                    return Poll::Ready(Err(fault));
                }
                (Poll::Pending, Poll::Pending) => return Poll::Pending,
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    });
    timeout(limit, both).await.unwrap_or_else(|_| Err(Fault::timeout(limit, size)))
}

/// Ends the connection as a well-behaved client does: shuts its own direction, then reads to the peer's end. That proves
/// that nothing follows the answer and that the half-close was passed on.
pub async fn close(
    mut stream: Stream,
    payload: &Payload,
    limit: Duration,
    mut seen: impl FnMut(&[u8]),
) -> Result<(), Fault> {
    let size = payload.size();
    let mut extra = [0; 512];
    let end = async {
        stream.shutdown().await?;
        stream.read(&mut extra).await
    };
    match timeout(limit, end).await {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(count)) => {
            seen(&extra[..count]);
            Err(Fault::extra_bytes(count, size))
        }
        Ok(Err(error)) => Err(Fault::exchanging(&error, size, size)),
        Err(_) => Err(Fault::not_closed(limit)),
    }
}

fn poll_send(
    stream: &mut Stream,
    cx: &mut Context<'_>,
    payload: &Payload,
    sent: &mut u64,
    got: u64,
) -> Poll<Result<(), Fault>> {
    let fault = |error| Fault::exchanging(&error, got, payload.size());
    ready!(stream.poll_write_ready(cx)).map_err(fault)?;
    BUFFER.with_borrow_mut(|buffer| {
        let length = payload.fill(*sent, buffer);
        *sent += ready!(Pin::new(stream).poll_write(cx, &buffer[..length])).map_err(fault)? as u64;
        Poll::Ready(Ok(()))
    })
}

fn poll_receive(
    stream: &mut Stream,
    cx: &mut Context<'_>,
    payload: &Payload,
    got: &mut u64,
    seen: &mut impl FnMut(&[u8]),
) -> Poll<Result<(), Fault>> {
    let size = payload.size();
    BUFFER.with_borrow_mut(|buffer| {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(stream).poll_read(cx, &mut buffer)).map_err(|error| Fault::exchanging(&error, *got, size))?;
        let answer = buffer.filled();
        if answer.is_empty() {
            return Poll::Ready(Err(Fault::closed_early(*got, size)));
        }
        seen(answer);
        if let Some(offset) = payload.mismatch(*got, answer) {
            return Poll::Ready(Err(Fault::wrong_byte(offset, size)));
        }
        *got += answer.len() as u64;
        match got.checked_sub(size) {
            Some(extra) if extra > 0 => Poll::Ready(Err(Fault::extra_bytes(extra as usize, size))),
            _ => Poll::Ready(Ok(())),
        }
    })
}

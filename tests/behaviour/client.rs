//! Clients: they connect, send what can be verified by position, and take every error for one.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// Longer than anything takes; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Connects over TCP.
pub fn connect(to: SocketAddr) -> Socket {
    connect_from(None, to).unwrap()
}

/// The same from an address of this machine, and with the error.
pub fn connect_from(from: Option<IpAddr>, to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(ip) = from {
        socket.bind(&SocketAddr::from((ip, 0)).into())?;
    }
    ready(socket, &to.into())
}

/// Connects to a Unix socket.
pub fn connect_unix(path: &Path) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    ready(socket, &SockAddr::unix(path).unwrap()).unwrap()
}

fn ready(socket: Socket, to: &SockAddr) -> io::Result<Socket> {
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a request, shuts the side, reads the answer to its end.
pub fn ask(mut socket: Socket, request: &[u8]) -> io::Result<String> {
    socket.write_all(request)?;
    socket.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Which backend answers a new client.
pub fn who(to: SocketAddr) -> String {
    ask(connect(to), b"?").unwrap()
}

/// Sends a few bytes and expects them back; the connection stays open.
pub fn echoes(mut socket: &Socket) -> io::Result<()> {
    let mut answer = [0; 5];
    socket.write_all(b"hello")?;
    socket.read_exact(&mut answer)?;
    if &answer == b"hello" { Ok(()) } else { Err(io::Error::other(format!("other bytes: {answer:?}"))) }
}

/// Closes so that the peer sees a reset.
pub fn reset(socket: Socket) {
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// How a connection ended, after everything it brought was read.
pub fn end_of(mut socket: &Socket) -> End {
    let mut buffer = [0; 64 * 1024];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return End::Closed,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return End::Reset,
            Err(e) => panic!("neither an end nor a reset: {e}"),
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Closed,
    Reset,
}

/// Bytes that are checked by their position: loss, repetition, another order and invention all show. The period is
/// prime, so that no multiple of a buffer's size looks right.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..1_048_583).map(next).collect()
    })
}

/// The pattern's next bytes at a position, as many as are in one piece.
pub fn pattern_from(position: usize) -> &'static [u8] {
    &pattern()[position % pattern().len()..]
}

/// Writes so many bytes of the pattern.
pub fn send_pattern(socket: &Socket, bytes: usize) -> io::Result<()> {
    send_pattern_part(socket, 0..bytes)
}

/// Writes the bytes of the pattern at these positions.
pub fn send_pattern_part(mut socket: &Socket, positions: Range<usize>) -> io::Result<()> {
    let mut at = positions.start;
    while at < positions.end {
        let next = pattern_from(at);
        let part = &next[..next.len().min(positions.end - at)];
        socket.write_all(part)?;
        at += part.len();
    }
    Ok(())
}

/// Reads to the end and checks each byte; returns how many there were.
pub fn receive_pattern(mut socket: &Socket) -> io::Result<usize> {
    let mut buffer = vec![0; 256 * 1024];
    let mut got = 0;
    loop {
        let wanted = pattern_from(got);
        let most = buffer.len().min(wanted.len());
        match socket.read(&mut buffer[..most])? {
            0 => return Ok(got),
            n if buffer[..n] == wanted[..n] => got += n,
            n => return Err(io::Error::other(format!("a wrong byte among the {n} after {got}"))),
        }
    }
}

/// Sends the pattern through an echo and checks all that comes back.
pub fn exchange(socket: &Socket, bytes: usize) -> io::Result<()> {
    thread::scope(|s| {
        let sender = s.spawn(|| send_pattern(socket, bytes).and_then(|()| socket.shutdown(Shutdown::Write)));
        let got = receive_pattern(socket)?;
        sender.join().unwrap()?;
        if got == bytes { Ok(()) } else { Err(io::Error::other(format!("{got} of {bytes} bytes came back"))) }
    })
}

/// Asks again and again, with short waits, until there is an answer. The only place here that polls.
pub fn until<T>(what: &str, mut question: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

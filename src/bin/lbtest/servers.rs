//! Stand-in backends: binds them all or none, accepts through every lack of descriptors, and counts. What a connection
//! is then answered is `temper`'s.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::time::sleep;

use crate::interrupt::Interrupts;
use crate::report::{amount, grouped};
use crate::temper::{Counted, Mode, Temper};

/// After a failed accept. A lack of descriptors fails again at once: without a pause it burns a core.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that wait in the kernel; a thousand clients may come at the same moment.
const BACKLOG: i32 = 4096;

/// Which servers to run.
pub struct Plan {
    /// How many.
    pub count: u16,
    /// Where all of them bind.
    pub ip: IpAddr,
    /// The first one's port, the next ones follow; 0: free ports.
    pub first_port: u16,
    /// How they answer.
    pub mode: Mode,
    /// How long `slow` waits.
    pub delay: Duration,
}

/// One server's name, address and counts.
struct Server {
    name: String,
    address: SocketAddr,
    counts: Arc<Counts>,
}

/// What a server has seen. Relaxed everywhere: read once, at the end.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Bytes that came.
    pub received: AtomicU64,
    /// Bytes that went.
    pub sent: AtomicU64,
}

/// Serves until SIGINT or SIGTERM, then returns the summary. Fails, having announced nothing, if one cannot be bound.
pub async fn run(plan: &Plan) -> io::Result<String> {
    let mut interrupts = Interrupts::new()?;
    let (mut servers, mut sockets) = (Vec::new(), Vec::new());
    for index in 0..plan.count {
        let port = if plan.first_port == 0 { 0 } else { plan.first_port + index };
        let wanted = SocketAddr::new(plan.ip, port);
        let socket = bind(wanted, plan.mode).map_err(|error| explain(wanted, error))?;
        let address = socket.local_addr()?.as_socket().unwrap_or(wanted);
        servers.push(Server { name: format!("backend-{}", index + 1), address, counts: Arc::default() });
        sockets.push(socket);
    }
    // Bound but never listened on, and held to the end: connects are refused, and nobody else takes the port.
    let _refusing = if plan.mode == Mode::Refuse { sockets } else { serve(plan, &servers, sockets)? };

    let mut out = io::stdout().lock();
    for server in &servers {
        writeln!(out, "{} server {} on {}", plan.mode, server.name, server.address)?;
    }
    out.flush()?;
    drop(out);
    interrupts.next().await;
    Ok(servers.iter().map(Server::summary).collect())
}

fn bind(address: SocketAddr, mode: Mode) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // a restarted backend must not wait for its old connections' TIME_WAIT
    socket.bind(&address.into())?;
    if mode != Mode::Refuse {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

fn explain(address: SocketAddr, error: io::Error) -> io::Error {
    let mend = match error.kind() {
        io::ErrorKind::AddrInUse => "in use by another process; stop it or choose another port".into(),
        io::ErrorKind::AddrNotAvailable => "no address of this machine; see `ip address`".into(),
        io::ErrorKind::PermissionDenied => "not permitted; choose a port from 1024 on".into(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("{address}: {mend}"))
}

/// Spreads the servers over one thread a core. The threads end with the process.
fn serve(plan: &Plan, servers: &[Server], sockets: Vec<Socket>) -> io::Result<Vec<Socket>> {
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get()).min(servers.len());
    let runtimes = (0..threads).map(|_| Builder::new_current_thread().enable_all().build());
    let runtimes = runtimes.collect::<io::Result<Vec<_>>>()?;
    for (index, (server, socket)) in servers.iter().zip(sockets).enumerate() {
        let runtime = &runtimes[index % threads];
        let _inside = runtime.enter();
        let listener = TcpListener::from_std(socket.into())?;
        let temper = Temper { mode: plan.mode, delay: plan.delay, name: server.name.clone() };
        runtime.spawn(accept(listener, Arc::new(temper), server.counts.clone()));
    }
    for (index, runtime) in runtimes.into_iter().enumerate() {
        let name = format!("servers-{index}");
        thread::Builder::new().name(name).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    }
    Ok(Vec::new())
}

async fn accept(listener: TcpListener, temper: Arc<Temper>, counts: Arc<Counts>) {
    let mut complained = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                counts.connections.fetch_add(1, Ordering::Relaxed);
                let (temper, stream) = (temper.clone(), Counted::new(stream, counts.clone()));
                tokio::spawn(async move { temper.serve(stream).await });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {} // that client's affair alone
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    // A closed stderr is no reason to stop serving.
                    let _ = writeln!(io::stderr(), "lbtest: {}: accept: {error}; trying on", temper.name);
                }
                sleep(PAUSE).await;
            }
        }
    }
}

impl Server {
    fn summary(&self) -> String {
        let Counts { connections, received, sent } = &*self.counts;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "{} on {}: {} connections, {} received, {} sent\n",
            self.name,
            self.address,
            grouped(load(connections)),
            amount(load(received)),
            amount(load(sent))
        )
    }
}

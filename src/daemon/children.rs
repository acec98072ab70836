//! Short-lived child processes: each is bounded in time, ended where nobody waits for it any more, waited for in any case, and
//! counted. A child is its parent's: a program that is executed in place of this one would not know it, and it would stay for
//! ever, running or defunct. So nothing is executed while one is under way. A thread of the runtime's starts it, for the file system
//! that its program is on may hang. Children that are not lbd's doing (orphans of a container in which it is PID 1, and what a shell had
//! begun before it executed lbd) are waited for too, or they would stay defunct.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::signals;

/// The longest that is heard of what one says, in bytes; who says more finds nobody listening.
const MOST_SAID: u64 = 64 * 1024;

static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

/// Whether there is any.
pub fn are_under_way() -> bool {
    UNDER_WAY.load(SeqCst) > 0
}

/// How one ended.
#[derive(Debug)]
pub struct Ended {
    /// As the kernel tells.
    pub status: ExitStatus,
    /// What it said.
    pub out: Vec<u8>,
    /// What it complained of.
    pub err: Vec<u8>,
}

/// Why it is not known what one would have said.
#[derive(Debug)]
pub enum Unheard {
    /// The kernel does not start it.
    NotStarted(io::Error),
    /// It was started and is lost.
    Lost(io::Error),
    /// It took too long, and was ended.
    Late,
}

/// How much longer the start of one may take, than what it then does.
const STARTS: Duration = Duration::from_secs(1);

/// Makes a call that may hang, on a thread of its own. The runtime's own pool panics where no thread can be had.
///
/// # Errors
/// No thread can be had.
pub async fn beside<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (give, given) = oneshot::channel();
    let runtime = Handle::current(); // a child is waited for by it
    let beside = move || {
        let _entered = runtime.enter();
        drop(give.send(call())); // nobody may want to know any more
    };
    signals::beginning(|| thread::Builder::new().name("lbd-beside".into()).spawn(beside))?;
    given.await.map_err(|_| io::Error::other("its thread has panicked"))
}

/// Runs a command with `input` to read. Dropping the future ends the child too.
pub async fn run(mut command: Command, input: Vec<u8>, patience: Duration) -> Result<Ended, Unheard> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let counted = Counted::begins();
    let (tell, told) = oneshot::channel();
    // A task of its own: whoever asked may go, and the child must be waited for all the same.
    tokio::spawn(async move {
        match beside(move || signals::beginning_child(|| command.spawn())).await {
            Ok(Ok(child)) => see_to_its_end(child, input, patience, tell, counted).await,
            Ok(Err(e)) => drop(tell.send(Err(Unheard::NotStarted(e)))),
            Err(e) => drop(tell.send(Err(Unheard::NotStarted(e)))),
        }
    });
    match timeout(patience + STARTS, told).await {
        Ok(heard) => heard.unwrap_or_else(|_| Err(Unheard::Lost(io::ErrorKind::BrokenPipe.into()))),
        Err(_) => Err(Unheard::Late),
    }
}

/// How soon to look again where a child of ours may be among those that have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Waits for children that nobody else waits for, for ever. Must run beside what begins ours, on one thread.
pub async fn reap_others() {
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(e) => return warn!("processes that others leave to lbd stay defunct: {e}"),
    };
    loop {
        // Those of before, first. While one of ours is under way, whose end somebody waits for, it may be the one that has ended.
        if are_under_way() {
            sleep(LOOK_AGAIN).await;
            continue;
        }
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
        ended.recv().await;
    }
}

async fn see_to_its_end(
    mut child: Child,
    input: Vec<u8>,
    patience: Duration,
    mut tell: oneshot::Sender<Result<Ended, Unheard>>,
    counted: Counted,
) {
    let heard = tokio::select! {
        heard = timeout(patience, hear(&mut child, &input)) => heard.map_err(|_| Unheard::Late),
        () = tell.closed() => Err(Unheard::Late),
    };
    let heard = match heard {
        Ok(heard) => heard.map_err(Unheard::Lost),
        Err(late) => Err(late),
    };
    if heard.is_err() {
        let _ = child.kill().await; // and waits for its end
    }
    drop(counted);
    let _ = tell.send(heard); // nobody may want to know any more
}

async fn hear(child: &mut Child, input: &[u8]) -> io::Result<Ended> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let say = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(input).await; // it may not want it
        }
    };
    let ((), out, err) = tokio::join!(say, heard(stdout), heard(stderr));
    Ok(Ended { status: child.wait().await?, out: out?, err: err? })
}

async fn heard(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST_SAID).read_to_end(&mut text).await?;
    }
    Ok(text)
}

struct Counted;

impl Counted {
    fn begins() -> Self {
        UNDER_WAY.fetch_add(1, SeqCst);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(text: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(text);
        shell
    }

    #[tokio::test]
    async fn what_one_says_is_heard_and_one_that_says_nothing_is_ended() {
        let ended = run(shell("cat; echo no >&2; exit 3"), b"yes".into(), LONG).await.unwrap();
        assert_eq!((ended.status.code(), &ended.out[..], &ended.err[..]), (Some(3), &b"yes"[..], &b"no\n"[..]));
        let late = run(shell("exec sleep 600"), Vec::new(), Duration::from_millis(1)).await;
        assert!(matches!(late, Err(Unheard::Late)), "{late:?}");
        let none = run(Command::new("/nowhere/to/be/found"), Vec::new(), LONG).await;
        assert!(matches!(none, Err(Unheard::NotStarted(_))), "{none:?}");
    }

    #[test]
    fn one_takes_signals_though_the_thread_that_begins_it_takes_none() {
        use std::os::unix::process::ExitStatusExt;
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().on_thread_start(signals::leave_to_others).build().unwrap();
        let ended = runtime.block_on(run(shell("kill -TERM $$; echo lives on"), Vec::new(), LONG)).unwrap();
        assert_eq!(ended.status.signal(), Some(15), "{ended:?}");
    }

    #[tokio::test]
    async fn one_that_nobody_waits_for_any_more_is_ended_and_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("pid");
        let asking =
            tokio::spawn(run(shell(&format!("echo $$ >{}; exec sleep 600", said.display())), Vec::new(), LONG));
        let pid = loop {
            match std::fs::read_to_string(&said) {
                Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
                _ => tokio::task::yield_now().await,
            }
        };
        assert!(are_under_way());
        asking.abort();
        // Defunct, it would still be there.
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            tokio::task::yield_now().await;
        }
    }
}

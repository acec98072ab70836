//! Runs probes beside each other, a task each, a bounded number at a time, and sends their results to one receiver.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::{ProbeError, probe};
use crate::words::{Address, CheckSpec};

/// Probes that run at a time, of all pools. Others wait their turn, their timeout not yet begun.
const AT_A_TIME: usize = 128;

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed<K> {
    /// What the probe was started under. Of a backend that is gone by now it is for the receiver to know.
    pub key: K,
    /// How long it took, or why it did not succeed.
    pub result: Result<Duration, ProbeError>,
}

/// Starts probes.
#[derive(Debug)]
pub struct Prober<K> {
    places: Arc<Semaphore>,
    results: mpsc::Sender<Probed<K>>,
}

impl<K: Send + 'static> Prober<K> {
    /// A prober whose results go to `results`; where that is full, probes that are done wait with their place kept.
    pub fn new(results: mpsc::Sender<Probed<K>>) -> Self {
        Self::with_places(results, AT_A_TIME)
    }

    fn with_places(results: mpsc::Sender<Probed<K>>, places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), results }
    }

    /// Starts one probe. There is one result, unless the receiver is dropped first, which ends the probe.
    /// Must be called within a tokio runtime.
    pub fn start(&self, key: K, address: Address, spec: CheckSpec) {
        let (places, results) = (Arc::clone(&self.places), self.results.clone());
        tokio::spawn(async move {
            let probing = async {
                let _place = places.acquire().await;
                let result = probe(&address, &spec).await;
                let _ = results.send(Probed { key, result }).await;
            };
            tokio::select! {
                () = probing => {}
                () = results.closed() => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Percent;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    const LONG: Duration = Duration::from_secs(20);

    fn expecting(answer: &str) -> CheckSpec {
        CheckSpec {
            port: None,
            send_proxy: None,
            send: None,
            expect: Some(answer.as_bytes().into()),
            interval: LONG,
            fast_interval: LONG,
            down_interval: LONG,
            timeout: LONG,
            rise: 2,
            fall: 3,
            jitter: Percent::new(0).unwrap(),
        }
    }

    async fn listen() -> (TcpListener, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        (listener, address)
    }

    async fn answer(mut probe: TcpStream) {
        probe.write_all(b"ok").await.unwrap();
    }

    #[tokio::test]
    async fn each_probe_started_has_one_result_under_its_key() {
        let (send, mut results) = mpsc::channel(1);
        let prober = Prober::new(send);
        let (listener, address) = listen().await;
        prober.start("silent", address, expecting("ok"));
        prober.start("gone", Address::Unix("/nowhere".into()), expecting("ok"));
        let probed = results.recv().await.unwrap();
        assert_eq!(probed.key, "gone");
        assert!(matches!(probed.result, Err(ProbeError::Failed(_))));
        answer(listener.accept().await.unwrap().0).await;
        let probed = results.recv().await.unwrap();
        assert!(probed.key == "silent" && probed.result.is_ok(), "{probed:?}");
    }

    #[tokio::test]
    async fn no_more_run_at_a_time_than_there_are_places() {
        let (send, mut results) = mpsc::channel(10);
        let prober = Prober::with_places(send, 2);
        let (listener, address) = listen().await;
        for key in 0..5 {
            prober.start(key, address.clone(), expecting("ok"));
        }
        let mut running = vec![listener.accept().await.unwrap().0, listener.accept().await.unwrap().0];
        for _ in 0..3 {
            // A third would have come by now, had it been let: all are tasks of this one thread.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(tokio::time::timeout(Duration::from_millis(1), listener.accept()).await.is_err());
            answer(running.remove(0)).await;
            assert!(results.recv().await.unwrap().result.is_ok());
            running.push(listener.accept().await.unwrap().0);
        }
    }

    #[tokio::test]
    async fn probes_end_when_nobody_wants_their_results() {
        use tokio::io::AsyncReadExt;
        let (send, results) = mpsc::channel(1);
        let (listener, address) = listen().await;
        Prober::new(send).start((), address, expecting("ok"));
        let mut probe = listener.accept().await.unwrap().0;
        drop(results);
        assert_eq!(tokio::time::timeout(LONG / 2, probe.read(&mut [0])).await.unwrap().unwrap(), 0);
    }
}

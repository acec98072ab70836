//! One request with the user's own words: what came back, and how long it took.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::exchange::{close, connect, exchange};
use crate::fault::Fault;
use crate::payload::Payload;
use crate::report::{document, human, key, micros};
use crate::target::Target;

/// What came of it.
pub struct Answer {
    target: Target,
    bytes: Vec<u8>,
    connect: Option<Duration>,
    latency: Option<Duration>,
    fault: Option<Fault>,
}

/// Connects, sends the text, expects it back, and closes; each of the three within `timeout`.
pub async fn ask(target: Target, text: String, timeout: Duration) -> Answer {
    let mut answer = Answer { target, bytes: Vec::new(), connect: None, latency: None, fault: None };
    answer.fault = answer.fetch(&Payload::Text(text), timeout).await.err();
    answer
}

impl Answer {
    async fn fetch(&mut self, payload: &Payload, timeout: Duration) -> Result<(), Fault> {
        let began = Instant::now();
        let mut stream = connect(&self.target, timeout).await?;
        self.connect = Some(began.elapsed());
        let sent = Instant::now();
        exchange(&mut stream, payload, timeout, |bytes| self.bytes.extend(bytes)).await?;
        self.latency = Some(sent.elapsed());
        close(stream, payload, timeout, |bytes| self.bytes.extend(bytes)).await
    }

    /// What was wrong, if anything.
    pub fn fault(&self) -> Option<String> {
        self.fault.as_ref().map(|fault| format!("{}: {}: {fault}", self.target, fault.kind))
    }

    /// For people: the answer as it came, and its time if it was whole.
    pub fn text(&self) -> String {
        let mut out = String::from_utf8_lossy(&self.bytes).into_owned();
        if !out.is_empty() {
            out.push('\n');
        }
        if let (Some(connect), Some(latency)) = (self.connect, self.latency) {
            out += &format!("{} answered in {}, connected in {}\n", self.target, human(latency), human(connect));
        }
        out
    }

    /// For programs.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Document<'a> {
            command: &'static str,
            target: String,
            answer: &'a str,
            connect_us: Option<f64>,
            latency_us: Option<f64>,
            fault: Option<String>,
            detail: Option<String>,
            ok: bool,
        }
        document(&Document {
            command: "single",
            target: self.target.to_string(),
            answer: &String::from_utf8_lossy(&self.bytes),
            connect_us: self.connect.map(micros),
            latency_us: self.latency.map(micros),
            fault: self.fault.as_ref().map(|fault| key(fault.kind)),
            detail: self.fault.as_ref().map(|fault| fault.detail.clone()),
            ok: self.fault.is_none(),
        })
    }
}

//! How large the scenarios are: small in every run of the tests, full where `LBD_TRIAL=full` asks for it.

use std::sync::LazyLock;
use std::time::Duration;

/// The size of each scenario.
pub struct Trial {
    pub restarts: usize,
    pub kills: usize,
    /// New connections a second.
    pub rate: u32,
    /// Sessions that stay.
    pub long: usize,
    /// The slowest that one in a thousand new connections may be, from the moment it is due to its last byte.
    pub p999: Duration,
    /// How long the download takes during which the service is stopped.
    pub download: Duration,
    /// The longest that nobody may accept during a restart.
    pub gap: Duration,
    /// One machine at a time.
    pub alone: bool,
}

/// In every run: enough to see a refused connection. Other tests have the processors too, so times say little.
const SMALL: Trial = Trial {
    restarts: 2,
    kills: 2,
    rate: 200,
    long: 10,
    p999: Duration::from_secs(5),
    download: Duration::from_secs(4),
    gap: Duration::from_secs(3),
    alone: false,
};

/// As operators are promised.
const FULL: Trial = Trial {
    restarts: 20,
    kills: 10,
    rate: 500,
    long: 100,
    p999: Duration::from_secs(1),
    download: Duration::from_secs(20),
    gap: Duration::from_secs(1),
    alone: true,
};

/// `None` where the scenarios are to be left out.
pub static ASKED: LazyLock<Option<&Trial>> = LazyLock::new(|| match std::env::var("LBD_TRIAL") {
    Ok(size) if size == "full" => Some(&FULL),
    Ok(size) if size == "skip" => None,
    Ok(size) => panic!("LBD_TRIAL={size} is not known; it may be `full` or `skip`"),
    Err(_) => Some(&SMALL),
});

/// The size of those that are not left out.
pub static TRIAL: LazyLock<&Trial> = LazyLock::new(|| ASKED.expect("there is no machine without it"));

//! What many measurements say: medians, spreads and ratios. Pure.

/// The middle of the measurements, and how far they lie apart.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// None of no values.
pub fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let upper = sorted[sorted.len() / 2];
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(Spread { median: (lower + upper) / 2.0, min, max })
}

/// The median of the rounds' ratios: what slowed one round down slowed both sides of its ratio.
pub fn ratio(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    Some(spread(&ratios)?.median)
}

/// A figure of all peers in one row, with what is told of it.
pub struct Compared {
    pub peer: &'static str,
    pub values: Vec<f64>,
    pub spread: Spread,
    pub to_haproxy: Option<f64>,
    /// To the best of the others.
    pub to_best: Option<f64>,
}

/// Compares the values of the peers, round by round. `lbd` is not its own rival.
pub fn compare(all: &[(&'static str, Vec<f64>)]) -> Vec<Compared> {
    let medians: Vec<_> = all.iter().filter_map(|(peer, values)| Some((*peer, values, spread(values)?))).collect();
    let rivals = medians.iter().filter(|(peer, ..)| *peer != "lbd");
    let best = rivals.clone().min_by(|a, b| a.2.median.total_cmp(&b.2.median));
    let haproxy = medians.iter().find(|(peer, ..)| *peer == "haproxy");
    let told = medians.iter().map(|(peer, values, spread)| Compared {
        peer,
        values: values.to_vec(),
        spread: *spread,
        to_haproxy: haproxy.and_then(|(_, theirs, _)| ratio(values, theirs)),
        to_best: best.and_then(|(_, theirs, _)| ratio(values, theirs)),
    });
    told.collect()
}

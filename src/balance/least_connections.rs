//! The candidate with the fewest live sessions for its weight (nginx, HAProxy `lb_fwlc.c`). Among the tied the round
//! robin decides where it names one of them, else the lot by weight: an idle pool is spread exactly by weight, and
//! nobody gains from standing behind a busy neighbour.

use std::cmp::Ordering;

use super::draw::Draw;
use super::round_robin::Schedule;
use super::{Ask, Candidate, weights};

#[derive(Debug)]
pub(super) struct LeastConnections {
    schedule: Schedule,
    weights: Box<[u32]>,
}

impl LeastConnections {
    pub(super) fn new(candidates: &[Candidate<'_>]) -> Self {
        let weights = weights(candidates);
        Self { schedule: Schedule::new(&weights), weights }
    }

    pub(super) fn pick(&self, ask: &Ask<'_>) -> Option<usize> {
        let turn = self.schedule.turn(ask.ticket)?;
        let mut turn_is_tied = false;
        let mut tied = Draw::new(ask.ticket);
        let mut fewest = (1, 0); // live sessions and weight of the tied; a weight of 0 stands for infinitely many sessions
        for (i, &weight) in self.weights.iter().enumerate() {
            if weight == 0 || !(ask.usable)(i) {
                continue;
            }
            let load = ((ask.live)(i), weight);
            match compare(load, fewest) {
                Ordering::Greater => continue,
                Ordering::Equal => {}
                Ordering::Less => {
                    fewest = load;
                    turn_is_tied = false;
                    tied.restart();
                }
            }
            turn_is_tied |= i == turn;
            tied.offer(i, weight);
        }
        if turn_is_tied { Some(turn) } else { tied.winner() }
    }
}

/// Compares live sessions per weight, cross-multiplied.
pub(super) fn compare((live_a, weight_a): (u32, u32), (live_b, weight_b): (u32, u32)) -> Ordering {
    (u64::from(live_a) * u64::from(weight_b)).cmp(&(u64::from(live_b) * u64::from(weight_a)))
}

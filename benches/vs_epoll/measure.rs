//! Rounds, clocks, and what becomes of them.
//!
//! All sides of a workload live in this process at the same time and take rounds in turn, so that
//! whatever the machine does meanwhile happens to all of them. What is compared is a round of one
//! side with *the same* round of another: the result is the median of these ratios, and the 10th and
//! 90th percentile tell how they spread. Where they spread far, more rounds are taken, until the
//! median is known or time is up.

use crate::report::{Row, Unit};
use crate::system::descriptors_to_spare;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What is to be known of a median, as a part of it.
const PRECISION: f64 = 0.01;

/// How much time a run takes for each figure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// What a round of the slowest side should last, preparation included.
    round: Duration,
    /// For all rounds of all sides that are measured together.
    budget: Duration,
    /// The same, where a ratio is not known to `PRECISION` by then.
    limit: Duration,
    /// How many times that long, for a workload that spreads so far that it would not be known by then.
    patience: u32,
    least_rounds: usize,
    most_rounds: usize,
    /// Only our side takes rounds, and nothing is compared: for a profiler.
    alone: bool,
}

impl Effort {
    /// To see whether everything works.
    pub(crate) const SMOKE: Effort = Effort {
        round: Duration::from_millis(1),
        budget: Duration::from_millis(50),
        limit: Duration::from_millis(50),
        patience: 1,
        least_rounds: 3,
        most_rounds: 5,
        alone: false,
    };
    pub(crate) const SHORT: Effort = Effort {
        round: Duration::from_millis(4),
        budget: Duration::from_millis(2500),
        limit: Duration::from_secs(6),
        patience: 1,
        least_rounds: 15,
        most_rounds: 301,
        alone: false,
    };
    pub(crate) const FULL: Effort = Effort {
        round: Duration::from_millis(8),
        budget: Duration::from_secs(6),
        limit: Duration::from_secs(12),
        patience: 4,
        least_rounds: 25,
        most_rounds: 1001,
        alone: false,
    };
    pub(crate) const ALONE: Effort = Effort {
        most_rounds: usize::MAX,
        alone: true,
        ..Effort::FULL
    };

    /// Whether so many rounds, in that time, will do.
    pub(crate) fn is_enough(&self, rounds: usize, spent: Duration) -> bool {
        rounds >= self.most_rounds
            || rounds >= self.least_rounds && spent >= self.budget
            // On a machine that has much else to do, nothing is gained by insisting.
            || rounds >= 3 && spent >= 4 * self.budget
    }

    fn is_precise(&self, rounds: &[Vec<f64>], spent: Duration) -> bool {
        let ratios = |side: usize| rounds.iter().map(move |times| times[side] / times[0]);
        rounds.len() >= self.most_rounds
            || spent >= self.limit
            || (1..rounds[0].len()).all(|side| uncertainty(ratios(side).collect()) < PRECISION)
    }

    /// For a workload that spreads far.
    pub(crate) fn patient(self) -> Effort {
        Effort {
            limit: self.patience * self.limit,
            ..self
        }
    }

    /// What each of that many groups of sides gets. Together they take no longer than one would, unless
    /// their ratios are not known: half of that time is what it may take each to know them.
    fn share(self, parts: usize) -> Effort {
        Effort {
            budget: self.budget / parts as u32,
            limit: self.limit / parts.min(2) as u32,
            ..self
        }
    }
}

/// One of those that do the work.
pub(crate) trait Side {
    /// Does the work so many times and returns the time that counts, which may be a part of the time
    /// that it took, or the CPU time of another thread. Panics if the work was not done.
    fn run(&mut self, iterations: u32) -> Duration;
}

/// Who is compared: ours first, then everybody else.
pub(crate) trait Contender: Copy {
    const OURS: Self;
    fn name(self) -> &'static str;
    /// Not a peer but a limit: the same mechanism as ours with nothing around it.
    fn is_limit(self) -> bool;
}

/// Descriptors of a side that shares a process with one other at most.
pub(crate) const PAIRS: u64 = u64::MAX;

/// One workload and who takes part in it.
pub(crate) struct Contest<'a, C> {
    pub(crate) workload: &'a str,
    /// Operations of an iteration. Figures are told for one.
    pub(crate) operations: u32,
    pub(crate) peers: &'a [C],
    /// Descriptors that each side takes. With many, not all sides fit into the process at once.
    pub(crate) descriptors: u64,
}

impl<C: Contender> Contest<'_, C> {
    /// Sets the sides up, as many at once as there are descriptors for, and lets them take rounds.
    pub(crate) fn run(&self, effort: &Effort, make: impl Fn(C) -> Box<dyn Side>) -> Vec<Row> {
        if effort.alone {
            take_rounds(vec![make(C::OURS)], effort);
            return Vec::new();
        }
        if self.descriptors != PAIRS && !has_room(2 * self.descriptors) {
            return Vec::new();
        }
        let at_once = descriptors_to_spare() / self.descriptors.max(1);
        let at_once = (at_once as usize).saturating_sub(1).max(1);
        let groups = self.peers.chunks(at_once);
        let effort = effort.share(groups.len());
        let mut rows = Vec::new();
        for group in groups {
            let contenders: Vec<C> = std::iter::once(C::OURS)
                .chain(group.iter().copied())
                .collect();
            let sides = contenders.iter().map(|&contender| make(contender));
            let times = take_rounds(sides.collect(), &effort);
            rows.extend(self.compare(&contenders, &times));
        }
        share_limit(&mut rows);
        rows
    }

    fn compare(&self, contenders: &[C], rounds: &[Vec<f64>]) -> Vec<Row> {
        let of = |index: usize| rounds.iter().map(move |times| times[index]);
        let scale = f64::from(self.operations);
        let ours = median(of(0).collect()) / scale;
        let limit = (1..contenders.len())
            .filter(|&index| contenders[index].is_limit())
            .map(|index| median(rounds.iter().map(|times| times[0] / times[index]).collect()))
            .reduce(f64::max);
        (1..contenders.len())
            .map(|index| {
                let ratios = rounds.iter().map(|times| times[index] / times[0]).collect();
                Row {
                    workload: self.workload.to_owned(),
                    peer: contenders[index].name(),
                    spread: Spread::of(ratios),
                    ours,
                    theirs: median(of(index).collect()) / scale,
                    of_limit: limit,
                    unit: Unit::Nanoseconds,
                }
            })
            .collect()
    }
}

/// Whether there can be so many more descriptors; says so if not.
pub(crate) fn has_room(descriptors: u64) -> bool {
    let enough = descriptors <= descriptors_to_spare();
    if !enough {
        eprint!("left out: there are not enough descriptors. ");
    }
    enough
}

/// The best limit is everybody's, whichever group it was in.
fn share_limit(rows: &mut [Row]) {
    let limit = rows.iter().filter_map(|row| row.of_limit).reduce(f64::max);
    for row in rows {
        row.of_limit = limit;
    }
}

/// The times of all sides, in nanoseconds for one iteration, round by round.
pub(crate) fn take_rounds(mut sides: Vec<Box<dyn Side>>, effort: &Effort) -> Vec<Vec<f64>> {
    // Doubled until a round is long enough, which is the warm-up as well. Two runs must say so: one
    // may have been interrupted.
    let mut iterations = 1;
    loop {
        let begun = Instant::now();
        let slowest = sides
            .iter_mut()
            .map(|side| wall_time(side, iterations).min(wall_time(side, iterations)))
            .max();
        if slowest.unwrap_or_default() * 2 > effort.round || begun.elapsed() * 4 > effort.budget {
            break;
        }
        iterations *= 2;
    }

    let begun = Instant::now();
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    while !effort.is_enough(rounds.len(), begun.elapsed())
        || !effort.is_precise(&rounds, begun.elapsed())
    {
        let mut times = vec![0.0; sides.len()];
        for index in order(rounds.len(), sides.len()) {
            let time = sides[index].run(iterations);
            times[index] = time.as_nanos() as f64 / f64::from(iterations);
        }
        // The CPU clock of another thread may not have moved in a very short round.
        if times.iter().all(|&time| time > 0.0) {
            rounds.push(times);
        }
    }
    rounds
}

fn wall_time(side: &mut Box<dyn Side>, iterations: u32) -> Duration {
    let begun = Instant::now();
    side.run(iterations);
    begun.elapsed()
}

/// Forwards and backwards in turn, and everybody is first at some time: whoever comes first finds
/// other caches than who comes second.
pub(crate) fn order(round: usize, sides: usize) -> impl Iterator<Item = usize> {
    (0..sides).map(move |position| {
        let position = if round.is_multiple_of(2) {
            position
        } else {
            sides - 1 - position
        };
        (position + round / 2) % sides
    })
}

/// Adds the time that `work` takes to `total`, less what looking at the clock takes.
pub(crate) fn timed<R>(total: &mut Duration, work: impl FnOnce() -> R) -> R {
    let clock = clock_cost();
    let begun = Instant::now();
    let result = work();
    *total += begun.elapsed().saturating_sub(clock);
    result
}

/// What a pair of looks at the clock shows when nothing is between them. A wait for one event takes
/// ten times as long, so this would be seen.
fn clock_cost() -> Duration {
    static COST: OnceLock<Duration> = OnceLock::new();
    *COST.get_or_init(|| {
        let mut pairs: Vec<Duration> = (0..10_001).map(|_| Instant::now().elapsed()).collect();
        pairs.sort_unstable();
        pairs[pairs.len() / 2]
    })
}

/// A median with its 10th and 90th percentile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) p10: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Spread {
        values.sort_unstable_by(f64::total_cmp);
        Spread {
            p10: percentile(&values, 10.0),
            median: percentile(&values, 50.0),
            p90: percentile(&values, 90.0),
        }
    }

    /// Of something that was counted and is the same every time.
    pub(crate) fn exact(value: f64) -> Spread {
        Spread {
            p10: value,
            median: value,
            p90: value,
        }
    }
}

pub(crate) fn median(values: Vec<f64>) -> f64 {
    Spread::of(values).median
}

/// Half of the interval that has the true median in it with a confidence of 95 percent, as a part of the
/// median. By ranks, so nothing is supposed of how the values are distributed.
fn uncertainty(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = (values.len() - 1) as f64 / 2.0;
    let reach = 0.98 * (values.len() as f64).sqrt();
    let at = |rank: f64| values[rank.clamp(0.0, 2.0 * middle).round() as usize];
    (at(middle + reach) - at(middle - reach)) / 2.0 / at(middle)
}

/// Of sorted values, interpolated between the two that are nearest.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> f64 {
    assert!(!sorted.is_empty(), "no round was taken");
    let position = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    below + (above - below) * position.fract()
}

//! Rounds in which everything that is compared has its turn, repeated while others use the machine.

use std::io::{Error, Result};
use std::time::Duration;

use prism_loadtest::report::Report;
use serde::Serialize;

use crate::quiet::{OTHERS_MAX, Watch};
use crate::report::median;

/// Rounds that are repeated at most because of others, over the whole run.
const DISTURBED_MAX: usize = 4;

/// What the command line asks for: `--quick`, `--rounds <n>`, `--seconds <n>` per turn, `--no-build`.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A smoke run whose figures mean nothing.
    pub quick: bool,
    /// Rounds that count.
    pub rounds: usize,
    /// What a turn has before it counts.
    pub warmup: Duration,
    /// What of a turn counts.
    pub length: Duration,
    /// The binaries are built first.
    pub build: bool,
}

impl Options {
    /// Those of this process.
    pub fn read() -> Result<Self> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let has = |name: &str| arguments.iter().any(|word| word == name);
        let number = |name: &str, otherwise: f64| {
            let at = arguments.iter().position(|word| word == name);
            let text = at.and_then(|at| arguments.get(at + 1));
            text.map_or(Ok(otherwise), |text| text.parse().map_err(Error::other))
        };
        let quick = has("--quick");
        Ok(Options {
            quick,
            rounds: number("--rounds", if quick { 1.0 } else { 5.0 })? as usize,
            warmup: Duration::from_millis(if quick { 50 } else { 500 }),
            length: Duration::from_secs_f64(number("--seconds", if quick { 0.2 } else { 2.0 })?),
            build: !has("--no-build"),
        })
    }
}

/// What one turn came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    /// Calls that were answered.
    pub requests_per_second: f64,
    /// Half of them within that.
    pub p50_us: f64,
    /// All but a hundredth of them within that.
    pub p99_us: f64,
    /// The measured process's CPU time per call, where it is known.
    pub server_cpu_us: Option<f64>,
}

impl From<&Report> for Round {
    fn from(report: &Report) -> Self {
        Round {
            requests_per_second: report.requests_per_second,
            p50_us: report.latency.p50_us,
            p99_us: report.latency.p99_us,
            server_cpu_us: report.server_cpu_us,
        }
    }
}

impl Round {
    /// The medians of several.
    pub fn median(rounds: &[Round]) -> Round {
        let of = |field: fn(&Round) -> f64| median(&rounds.iter().map(field).collect::<Vec<_>>());
        let cpu: Vec<f64> = rounds.iter().filter_map(|round| round.server_cpu_us).collect();
        Round {
            requests_per_second: of(|round| round.requests_per_second),
            p50_us: of(|round| round.p50_us),
            p99_us: of(|round| round.p99_us),
            server_cpu_us: (!cpu.is_empty()).then(|| median(&cpu)),
        }
    }
}

/// Rounds, and how much others have disturbed them.
#[derive(Debug, Default)]
pub struct Rounds {
    disturbed: usize,
    /// The largest share of the machine that others had in a round that counts.
    pub others_max: f64,
}

impl Rounds {
    /// Gives each of `paths` its turn, round after round; what they made, by path. What `processes` use is not "others".
    pub fn alternate<P: Copy>(
        &mut self,
        options: &Options,
        processes: &[u32],
        paths: &[P],
        turn: impl Fn(P) -> Result<Round>,
    ) -> Result<Vec<Vec<Round>>> {
        let mut made = vec![Vec::new(); paths.len()];
        while made.iter().any(|rounds| rounds.len() < options.rounds) {
            let watch = Watch::begin(processes)?;
            let round = paths.iter().map(|path| turn(*path)).collect::<Result<Vec<_>>>()?;
            let others = watch.others()?;
            if others > OTHERS_MAX && !options.quick && self.disturbed < DISTURBED_MAX {
                self.disturbed += 1;
                eprintln!("others used {:.0} % of the machine: repeated", others * 100.0);
                continue;
            }
            self.others_max = self.others_max.max(others);
            made.iter_mut().zip(round).for_each(|(rounds, one)| rounds.push(one));
        }
        Ok(made)
    }
}

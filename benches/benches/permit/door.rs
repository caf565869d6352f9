//! Route, permit and quota in process.

use std::alloc::System;
use std::hint::black_box;
use std::io::{Error, Result};
use std::process::{Command, Stdio};
use std::time::Instant;

use prism_benches::aims::Row;
use prism_benches::report::{Table, folder, median};
use prism_core::measure::Permits;
use serde::Serialize;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use crate::Plan;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Calls that callgrind counts.
const COUNTED_CALLS: u64 = 20_000;
/// Calls of one round.
const CALLS: u64 = 2_000_000;
/// Namespaces of a server with many.
const MANY: usize = 1000;

/// What a call costs at the door.
#[derive(Serialize)]
pub(crate) struct Cost {
    namespaces: usize,
    /// Median of all rounds.
    ns: f64,
    /// Instructions of user code; nothing where there is no valgrind.
    instructions: Option<f64>,
    allocations: f64,
}

/// With one namespace, and with many.
#[derive(Serialize)]
pub(crate) struct Figures {
    one: Cost,
    many: Cost,
}

fn permits(namespaces: usize) -> Result<(Permits, tempfile::TempDir)> {
    let scratch = tempfile::tempdir_in(folder()?)?;
    Ok((Permits::new(scratch.path(), namespaces)?, scratch))
}

fn let_in(permits: &mut Permits, calls: u64) -> Result<()> {
    for _ in 0..calls {
        if !black_box(permits.permit_one()) {
            return Err(Error::other("a call was not let in"));
        }
    }
    Ok(())
}

/// What callgrind runs.
pub(crate) fn run(namespaces: usize) -> Result<()> {
    let (mut permits, _scratch) = permits(namespaces)?;
    let_in(&mut permits, COUNTED_CALLS)
}

pub(crate) fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<Figures> {
    let figures = Figures { one: cost(plan, 1)?, many: cost(plan, MANY)? };
    let columns = ["namespaces", "ns", "instructions", "allocations"];
    let mut table = Table::new("Route, permit and quota of a call, identities known", &columns);
    for cost in [&figures.one, &figures.many] {
        table.row(vec![
            cost.namespaces.to_string(),
            format!("{:.1}", cost.ns),
            cost.instructions.map_or_else(|| "-".to_owned(), |count| format!("{count:.0}")),
            format!("{:.3}", cost.allocations),
        ]);
    }
    println!("{table}");
    rows.push(Row::at_most("permit, route and quota", figures.one.ns, 150.0, 80.0, "ns"));
    if let Some(instructions) = figures.one.instructions {
        rows.push(Row::at_most("the same", instructions, 600.0, 600.0, "instructions"));
    }
    let allocations = figures.one.allocations.max(figures.many.allocations);
    rows.push(Row::at_most("the same", allocations, 0.0, 0.0, "allocations"));
    Ok(figures)
}

fn cost(plan: &Plan, namespaces: usize) -> Result<Cost> {
    let calls = if plan.quick { CALLS / 100 } else { CALLS };
    let (mut permits, _scratch) = permits(namespaces)?;
    let_in(&mut permits, calls)?;
    let mut rounds = Vec::new();
    let before = ALLOCATOR.stats();
    for _ in 0..plan.rounds {
        let begun = Instant::now();
        let_in(&mut permits, calls)?;
        rounds.push(begun.elapsed().as_nanos() as f64 / calls as f64);
    }
    let used = ALLOCATOR.stats() - before;
    // The list of rounds itself grows a few times.
    let own = usize::BITS - plan.rounds.leading_zeros();
    let allocations = used.allocations.saturating_sub(own as usize) as f64;
    Ok(Cost {
        namespaces,
        ns: median(&rounds),
        instructions: counted(namespaces)?,
        allocations: allocations / (calls * plan.rounds as u64) as f64,
    })
}

/// None, with a word about it, where there is no valgrind.
fn counted(namespaces: usize) -> Result<Option<f64>> {
    let version = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        eprintln!("instructions are not counted: there is no valgrind (apt install valgrind)");
        return Ok(None);
    }
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*permit_one*")
        .arg(std::env::current_exe()?)
        .args(["calls", &namespaces.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    let collected = collected.and_then(|(_, count)| count.trim().parse::<f64>().ok());
    match collected {
        Some(instructions) if instructions > 0.0 => Ok(Some(instructions / COUNTED_CALLS as f64)),
        _ => Err(Error::other(format!("callgrind counted nothing: {text}"))),
    }
}

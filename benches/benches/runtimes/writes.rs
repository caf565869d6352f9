//! The durable log write: 4 KiB to 64 KiB, one and four in flight.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use prism_benches::report::{Table, median};
use prism_benches::write::{self, Figures, Offsets, aligned};
use serde::Serialize;

use crate::Plan;
use crate::echo::in_words;

const DRIVERS: [&str; 4] = ["pwrite", "monoio", "glommio", "tokio"];
const SIZES: [usize; 3] = [4 << 10, 16 << 10, 64 << 10];
const DEPTHS: [usize; 2] = [1, 4];

/// One runtime, one size, one depth.
#[derive(Serialize)]
pub(crate) struct Row {
    driver: &'static str,
    bytes: usize,
    depth: usize,
    /// One entry for each round, in order.
    rounds: Vec<Figures>,
}

pub(crate) fn compare(plan: &Plan) -> Result<Vec<Row>> {
    let milliseconds = if plan.quick { "100" } else { "1500" };
    let scratch = tempfile::tempdir_in(&plan.folder)?;
    let file = scratch.path().join("segment");
    write::prepare(&file)?;
    let core = plan.server_core.to_string();
    let mut rows = Vec::new();
    for depth in DEPTHS {
        for bytes in SIZES {
            let mut group: Vec<Row> = DRIVERS
                .into_iter()
                .filter(|&driver| driver != "pwrite" || depth == 1)
                .map(|driver| Row { driver, bytes, depth, rounds: Vec::new() })
                .collect();
            // A B C D, A B C D, …: what drifts, drifts for all of them.
            for _ in 0..plan.rounds {
                for row in &mut group {
                    row.rounds.push(run_child(row, &file, &core, milliseconds)?);
                }
            }
            rows.append(&mut group);
        }
    }
    Ok(rows)
}

pub(crate) fn table(rows: &[Row]) -> Table {
    let columns = ["", "p50 µs", "p99 µs", "p99.9 µs", "process CPU µs", "p50 against pwrite"];
    let mut table = Table::new("A durable log write (O_DIRECT + O_DSYNC), medians", &columns);
    for row in rows {
        let of = |row: &Row, field: fn(&Figures) -> f64| {
            median(&row.rounds.iter().map(field).collect::<Vec<_>>())
        };
        let raw = rows.iter().find(|other| other.driver == "pwrite" && other.bytes == row.bytes);
        let floor = raw.map_or(f64::NAN, |raw| of(raw, |figures| figures.p50_us));
        table.row(vec![
            format!("{:>2} KiB, {} in flight, {}", row.bytes >> 10, row.depth, row.driver),
            format!("{:.0}", of(row, |figures| figures.p50_us)),
            format!("{:.0}", of(row, |figures| figures.p99_us)),
            format!("{:.0}", of(row, |figures| figures.p999_us)),
            format!("{:.1}", of(row, |figures| figures.cpu_us)),
            format!("{:.2}", of(row, |figures| figures.p50_us) / floor),
        ]);
    }
    table
}

fn run_child(row: &Row, file: &Path, core: &str, milliseconds: &str) -> Result<Figures> {
    let output = Command::new(std::env::current_exe()?)
        .args([
            "write",
            row.driver,
            core,
            &row.bytes.to_string(),
            &row.depth.to_string(),
            milliseconds,
        ])
        .arg(file)
        .output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(Error::other(format!("{} failed: {message}", row.driver)));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// `write <driver> <core> <bytes> <depth> <milliseconds> <file>`: one measurement, its figures as JSON on standard output.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let [driver, core, bytes, depth, milliseconds, file] = arguments else {
        return Err(Error::other("write takes six arguments"));
    };
    let number = |text: &String| text.parse::<usize>().map_err(Error::other);
    let job = Job {
        core: number(core)?,
        bytes: number(bytes)?,
        depth: number(depth)?,
        duration: Duration::from_millis(number(milliseconds)? as u64),
        file: PathBuf::from(file),
    };
    let figures = match driver.as_str() {
        "pwrite" => {
            prism_io::rt::pin(job.core)?;
            write::raw(&job.file, job.bytes, job.duration)?
        }
        "monoio" => on_monoio(job)?,
        "glommio" => on_glommio(job)?,
        "tokio" => on_tokio(job)?,
        other => return Err(Error::other(format!("unknown runtime {other}"))),
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

#[derive(Clone)]
struct Job {
    core: usize,
    bytes: usize,
    depth: usize,
    duration: Duration,
    file: PathBuf,
}

/// Latencies of all writers of one job, with the CPU time of the process from the first write to the last.
struct Tally {
    latencies: Histogram<u64>,
    cpu_before: u64,
}

impl Tally {
    fn start() -> Result<Self> {
        let cpu_before = prism_loadtest::process::cpu_ns(std::process::id())?;
        Ok(Self { latencies: write::histogram(), cpu_before })
    }

    fn end(self) -> Result<Figures> {
        let used = prism_loadtest::process::cpu_ns(std::process::id())? - self.cpu_before;
        Ok(Figures::of(&self.latencies, used))
    }
}

fn on_monoio(job: Job) -> Result<Figures> {
    use monoio::buf::IoBuf;
    prism_io::rt::pin(job.core)?;
    prism_io::rt::run(async move {
        let file = std::rc::Rc::new(monoio::fs::File::from_std(write::open(&job.file)?)?);
        let mut tally = Tally::start()?;
        let begin = Instant::now();
        let writers: Vec<_> = (0..job.depth)
            .map(|writer| {
                let (file, job) = (file.clone(), job.clone());
                monoio::spawn(async move {
                    let mut offsets = Offsets::new(writer, job.depth, job.bytes);
                    let mut latencies = write::histogram();
                    let (buffer, start) = aligned(job.bytes);
                    let mut slice = buffer.slice(start..start + job.bytes);
                    while begin.elapsed() < job.duration {
                        let sent = Instant::now();
                        let (result, same) = file.write_all_at(slice, offsets.take()).await;
                        result?;
                        slice = same;
                        latencies.saturating_record(sent.elapsed().as_nanos() as u64);
                    }
                    Ok::<_, Error>(latencies)
                })
            })
            .collect();
        for writer in writers {
            tally.latencies.add(writer.await?).map_err(Error::other)?;
        }
        tally.end()
    })?
}

fn on_glommio(job: Job) -> Result<Figures> {
    use glommio::io::OpenOptions;
    use glommio::{LocalExecutorBuilder, Placement};
    let executor = LocalExecutorBuilder::new(Placement::Fixed(job.core));
    let handle = executor
        .spawn(|| async move {
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_DSYNC)
                .dma_open(&job.file)
                .await;
            let file = std::rc::Rc::new(file.map_err(in_words)?);
            let mut tally = Tally::start()?;
            let begin = Instant::now();
            let writers: Vec<_> = (0..job.depth)
                .map(|writer| {
                    let (file, job) = (file.clone(), job.clone());
                    glommio::spawn_local(async move {
                        let mut offsets = Offsets::new(writer, job.depth, job.bytes);
                        let mut latencies = write::histogram();
                        let mut buffer = std::rc::Rc::new(file.alloc_dma_buffer(job.bytes));
                        std::rc::Rc::get_mut(&mut buffer)
                            .expect("not shared yet")
                            .as_bytes_mut()
                            .fill(0xa5);
                        while begin.elapsed() < job.duration {
                            let sent = Instant::now();
                            file.write_rc_at(buffer.clone(), offsets.take())
                                .await
                                .map_err(in_words)?;
                            latencies.saturating_record(sent.elapsed().as_nanos() as u64);
                        }
                        Ok::<_, Error>(latencies)
                    })
                })
                .collect();
            for writer in writers {
                tally.latencies.add(writer.await?).map_err(Error::other)?;
            }
            tally.end()
        })
        .map_err(in_words)?;
    handle.join().map_err(in_words)?
}

/// tokio has no files on a ring: the write goes to its blocking pool.
fn on_tokio(job: Job) -> Result<Figures> {
    use std::os::unix::fs::FileExt;
    prism_io::rt::pin(job.core)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let file = std::sync::Arc::new(write::open(&job.file)?);
        let mut tally = Tally::start()?;
        let begin = Instant::now();
        let writers: Vec<_> = (0..job.depth)
            .map(|writer| {
                let (file, job) = (file.clone(), job.clone());
                tokio::spawn(async move {
                    let mut offsets = Offsets::new(writer, job.depth, job.bytes);
                    let mut latencies = write::histogram();
                    let (mut buffer, start) = aligned(job.bytes);
                    while begin.elapsed() < job.duration {
                        let sent = Instant::now();
                        let (file, offset) = (file.clone(), offsets.take());
                        let write = tokio::task::spawn_blocking(move || {
                            let result =
                                file.write_all_at(&buffer[start..start + job.bytes], offset);
                            result.map(|()| buffer)
                        });
                        buffer = write.await.map_err(Error::other)??;
                        latencies.saturating_record(sent.elapsed().as_nanos() as u64);
                    }
                    Ok::<_, Error>(latencies)
                })
            })
            .collect();
        for writer in writers {
            tally.latencies.add(writer.await.map_err(Error::other)??).map_err(Error::other)?;
        }
        tally.end()
    })
}

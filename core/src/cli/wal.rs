//! `prism wal`: looks into the logs of a data directory, says whether a start would accept them, and repairs what it would
//! refuse.
//!
//! Takes the data directory's lock, so that no server writes meanwhile. Inspecting and verifying change nothing; a repair
//! does nothing before it is told `--yes`, and copies what it touches first.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use prism_io::clock::wall_us;
use prism_io::disk::{Directory, DirectoryOptions, Storage};
use prism_wal::inspect::{self, Item};
use prism_wal::repair::{QUARANTINE, repair};
use prism_wal::{LogConfig, RecoverError};
use serde_json::{Value, json};

use super::output::{Format, print};
use super::{Exit, complain};

const AFTER_HELP: &str = "\
Stop the server first; its lock is respected.

Examples:
  prism wal verify                              would a start accept the logs?
  prism wal inspect --shard 0                   every batch and record
  prism wal inspect -o json | jq .type          the same, one JSON object a line
  prism wal repair                              what a repair would do
  prism wal repair --yes                        quarantine the damage and go on without it
";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct WalArgs {
    /// The data directory.
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = "./prism-data")]
    data_dir: PathBuf,
    /// Only the log of this shard.
    #[arg(long, global = true, value_name = "NUMBER")]
    shard: Option<u16>,
    /// The form of the result.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    command: WalCommand,
}

#[derive(Debug, Subcommand)]
enum WalCommand {
    /// Show checkpoints, segments, batches and records.
    Inspect,
    /// Read everything and decide as a start would; exit code 65 where it would refuse.
    Verify,
    /// Keep what is good, copy what is damaged into quarantine, and say what is lost.
    Repair {
        /// Do it; without this it only says what it would do.
        #[arg(long)]
        yes: bool,
    },
}

/// The log of one shard.
struct ShardLog {
    shard: u16,
    path: PathBuf,
}

pub(super) fn run(args: &WalArgs) -> Exit {
    match run_all(args) {
        Ok(exit) => exit,
        Err((exit, message)) => {
            complain(message);
            exit
        }
    }
}

type Failure = (Exit, String);

fn run_all(args: &WalArgs) -> Result<Exit, Failure> {
    if !args.data_dir.is_dir() {
        let message =
            format!("{} is not a directory; name one with --data-dir", args.data_dir.display());
        return Err((Exit::DataDirectory, message));
    }
    let logs = find_logs(&args.data_dir).map_err(|error| {
        (Exit::DataDirectory, format!("{} cannot be read: {error}", args.data_dir.display()))
    })?;
    let logs: Vec<ShardLog> =
        logs.into_iter().filter(|log| args.shard.is_none_or(|shard| shard == log.shard)).collect();
    if logs.is_empty() {
        return Err((Exit::Failure, format!("there is no log in {}", args.data_dir.display())));
    }
    let _lock = open(&args.data_dir)?;
    let mut worst = Exit::Ok;
    for log in &logs {
        let mut storage = open(&log.path)?;
        let config = config_of(&mut storage, log)?;
        let exit = match args.command {
            WalCommand::Inspect => inspect_log(&mut storage, &config, args.output)?,
            WalCommand::Verify => verify_log(&mut storage, &config, log, args.output)?,
            WalCommand::Repair { yes: false } => {
                let exit = verify_log(&mut storage, &config, log, args.output)?;
                if exit == Exit::Damaged {
                    complain(format_args!(
                        "prism wal repair --yes would copy the damaged files into {} and go on without the lost records",
                        log.path.join(QUARANTINE).display()
                    ));
                }
                exit
            }
            WalCommand::Repair { yes: true } => {
                repair_log(&mut storage, &config, log, args.output)?
            }
        };
        if worst == Exit::Ok {
            worst = exit;
        }
    }
    Ok(worst)
}

fn open(path: &Path) -> Result<Directory, Failure> {
    Directory::open(path, DirectoryOptions::default())
        .map_err(|error| (Exit::DataDirectory, error.to_string()))
}

/// Every folder below `shard-NUMBER` that holds files of a log, by number.
fn find_logs(data_dir: &Path) -> std::io::Result<Vec<ShardLog>> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(data_dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("shard-"));
        let Some(shard) = number.and_then(|number| number.parse().ok()) else {
            continue;
        };
        for folder in std::fs::read_dir(entry.path())? {
            let path = folder?.path();
            if path.is_dir() && holds_log(&path)? {
                logs.push(ShardLog { shard, path });
            }
        }
    }
    logs.sort_by_key(|log| log.shard);
    Ok(logs)
}

fn holds_log(folder: &Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        if entry?.file_name().to_str().is_some_and(inspect::is_log_file) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The limits of a log as its files tell them: the segments have the size that they were made with.
fn config_of(storage: &mut dyn Storage, log: &ShardLog) -> Result<LogConfig, Failure> {
    let defaults = LogConfig { shard: log.shard, ..LogConfig::default() };
    let entries = storage.list().map_err(|error| {
        (Exit::DataDirectory, format!("{} cannot be read: {error}", log.path.display()))
    })?;
    let segments = entries.iter().filter(|entry| entry.name.starts_with("segment-"));
    let segment_bytes = segments.filter(|entry| inspect::is_log_file(&entry.name));
    let segment_bytes = segment_bytes.map(|entry| entry.bytes).max();
    Ok(LogConfig { segment_bytes: segment_bytes.unwrap_or(defaults.segment_bytes), ..defaults })
}

fn refused(error: &RecoverError) -> Exit {
    match error {
        RecoverError::Damaged(_) | RecoverError::Gap { .. } => Exit::Damaged,
        _ => Exit::Failure,
    }
}

fn say(text: &str) -> Result<(), Failure> {
    print(text.as_bytes())
        .map_err(|error| (Exit::Failure, format!("stdout cannot be written: {error}")))
}

fn inspect_log(
    storage: &mut dyn Storage,
    config: &LogConfig,
    output: Format,
) -> Result<Exit, Failure> {
    let mut said = Ok(());
    let result = inspect::inspect(storage, config, &mut |item| {
        if said.is_ok() {
            said = match output {
                Format::Text => say(&format!("{item}\n")),
                Format::Json => say(&format!("{}\n", item_json(config.shard, &item))),
            };
        }
    });
    said?;
    result.map_err(|error| (refused(&error), error.to_string()))?;
    Ok(Exit::Ok)
}

fn item_json(shard: u16, item: &Item<'_>) -> Value {
    match item {
        Item::Slot { index, slot } => json!({
            "type": "checkpoint",
            "shard": shard,
            "slot": index,
            "sequence": slot.map(|slot| slot.sequence),
            "epoch": slot.map(|slot| slot.epoch),
            "durable_upto": slot.map(|slot| slot.durable_upto),
            "trim_upto": slot.map(|slot| slot.trim_upto),
            "clean": slot.map(|slot| slot.clean),
        }),
        Item::Segment { name, bytes, header } => json!({
            "type": "segment",
            "shard": shard,
            "file": name,
            "bytes": bytes,
            "epoch": header.map(|header| header.epoch),
            "activation": header.map(|header| header.segment_seq),
            "first_lsn": header.map(|header| header.first_lsn),
        }),
        Item::Batch { offset, header } => json!({
            "type": "batch",
            "shard": shard,
            "offset": offset,
            "first_lsn": header.first_lsn,
            "last_lsn": header.last_lsn(),
            "bytes": header.bytes,
            "durable_upto": header.durable_upto,
            "trim_upto": header.trim_upto,
            "opens_epoch": header.is_open(),
        }),
        Item::Record(record) => json!({
            "type": "record",
            "shard": shard,
            "lsn": record.lsn,
            "kind": format!("{:?}", record.kind),
            "namespace": record.head.lane.namespace,
            "partition": record.head.lane.partition,
            "lane_seq": record.lane_seq,
            "method": record.head.method,
            "idempotency_key": String::from_utf8_lossy(record.head.idempotency_key),
            "log_time_us": record.log_time_us,
            "bytes": record.body.len(),
        }),
        Item::End { offset, reason } => json!({
            "type": "end",
            "shard": shard,
            "offset": offset,
            "reason": reason,
        }),
    }
}

fn verify_log(
    storage: &mut dyn Storage,
    config: &LogConfig,
    log: &ShardLog,
    output: Format,
) -> Result<Exit, Failure> {
    let recovered = match inspect::verify(storage, config) {
        Ok(recovered) => recovered,
        Err(error) => {
            match output {
                Format::Text => say(&format!("shard {}: refused\n  {error}\n", log.shard))?,
                Format::Json => {
                    let refusal = json!({
                        "shard": log.shard, "accepted": false, "error": error.to_string(),
                    });
                    say(&format!("{refusal}\n"))?;
                }
            }
            return Ok(refused(&error));
        }
    };
    let report = &recovered.report;
    let cut = report.cut.as_ref();
    match output {
        Format::Text => {
            let mut text = format!(
                "shard {}: accepted, {} records in {} batches",
                log.shard, report.records, report.batches
            );
            if report.records > 0 {
                text.push_str(&format!(", LSN {} to {}", report.first_lsn, report.last_lsn));
            }
            text.push_str(if report.clean {
                ", closed cleanly\n"
            } else {
                ", not closed cleanly\n"
            });
            if let Some(cut) = cut {
                text.push_str(&format!(
                    "  a torn tail that nobody was promised will be cut: {} at offset {}, from LSN {}\n",
                    cut.file, cut.offset, cut.first_lsn
                ));
            }
            say(&text)?;
        }
        Format::Json => {
            let cut = cut.map(
                |cut| json!({ "file": cut.file, "offset": cut.offset, "first_lsn": cut.first_lsn }),
            );
            let report = json!({
                "shard": log.shard,
                "accepted": true,
                "clean": report.clean,
                "batches": report.batches,
                "records": report.records,
                "first_lsn": report.first_lsn,
                "last_lsn": report.last_lsn,
                "epoch": recovered.epoch,
                "trim_upto": recovered.trim_upto,
                "cut": cut,
            });
            say(&format!("{report}\n"))?;
        }
    }
    Ok(Exit::Ok)
}

fn repair_log(
    storage: &mut dyn Storage,
    config: &LogConfig,
    log: &ShardLog,
    output: Format,
) -> Result<Exit, Failure> {
    let nonce = prism_wal::driver::random_nonce()
        .map_err(|error| (Exit::Failure, format!("there are no random numbers: {error}")))?;
    let report = repair(storage, config, nonce, wall_us())
        .map_err(|error| (Exit::Failure, format!("shard {}: {error}", log.shard)))?;
    match output {
        Format::Text => say(&format!("shard {}: {report}\n", log.shard))?,
        Format::Json => {
            let lost = |range: &prism_wal::LsnRange| json!([range.first, range.last]);
            let report = json!({
                "shard": log.shard,
                "refusals": report.refusals,
                "lost": report.lost.iter().map(lost).collect::<Vec<_>>(),
                "quarantined": report.quarantined,
                "kept_upto": report.kept_upto,
                "next_lsn": report.next_lsn,
            });
            say(&format!("{report}\n"))?;
        }
    }
    Ok(Exit::Ok)
}

//! `prism doctor`: is this machine fit to serve, and what would make it fitter?
//!
//! Every check says what it found and, unless all is well, what to do. It changes nothing, except for a few small writes
//! into a directory of its own beside the data, which it removes.

mod certificate;
mod checks;
mod disk;

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::Exit;
use crate::cli::output::{Format, print};
use crate::config::{self, Config, Flags, Machine};

const AFTER_HELP: &str = "\
Exit code 1 when something fails that Prism needs; warnings do not count.

Examples:
  prism doctor
  prism doctor --config prism.yaml
  prism doctor --data-dir /var/lib/prism -o json
";

/// Arguments of `prism doctor`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DoctorArgs {
    /// Examine the machine for what this file says.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Examine this data directory.
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// Examine this certificate, a PEM file.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// And its key.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// The form of the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Descriptors beside those of connections: logs, snapshots, rings, listeners.
pub(crate) const FILES_BESIDE_CONNECTIONS: u64 = 1_024;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is well.
    Ok,
    /// It works, but worse than it could.
    Warn,
    /// Prism cannot serve like this.
    Fail,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    /// What was looked at.
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do; empty when all is well.
    remedy: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), remedy: remedy.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), remedy: remedy.into() }
    }
}

/// Looks at everything that `config` will need.
fn examine(config: &Config, machine: &Machine) -> Vec<Check> {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = file("/proc/sys/kernel/osrelease");
    let limits = file("/proc/self/limits");
    let kernel = checks::KernelVersion::parse(&release);
    let driver = prism_io::rt::driver();
    let mut found = vec![
        checks::kernel(&release, kernel),
        checks::io_uring(driver, &file("/proc/sys/kernel/io_uring_disabled")),
        checks::open_files(&limits, config.limits.connections_max),
        checks::locked_memory(&limits, kernel),
        checks::cores(config, machine),
        checks::memory(config, machine, &file("/proc/meminfo")),
        checks::backlog(&file("/proc/sys/net/core/somaxconn")),
    ];
    found.extend(disk::examine(config));
    if let Some(tls) = &config.tls {
        found.extend(certificate::examine(tls));
    }
    for (name, address) in [("listen", config.listen), ("admin", config.admin)] {
        found.push(checks::address(name, address, prism_io::probe::can_listen(address)));
    }
    found
}

/// Runs `prism doctor`.
pub(crate) fn run(args: &DoctorArgs) -> Exit {
    let flags = Flags {
        data_dir: args.data_dir.clone(),
        tls_cert: args.tls_cert.clone(),
        tls_key: args.tls_key.clone(),
        ..Flags::default()
    };
    let config = match config::load(args.config.as_deref(), &flags) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return Exit::Config;
        }
    };
    let checks = examine(&config, &Machine::read());
    let text = match args.output {
        Format::Text => as_text(&checks),
        Format::Json => format!("{:#}\n", as_json(&checks)),
    };
    if let Err(error) = print(text.as_bytes()) {
        eprintln!("prism: stdout cannot be written: {error}");
        return Exit::Failure;
    }
    match checks.iter().any(|check| check.verdict == Verdict::Fail) {
        true => Exit::Failure,
        false => Exit::Ok,
    }
}

fn as_text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, verdict, found, remedy } in checks {
        text.push_str(&format!("{:<4}  {name:<width$}  {found}\n", verdict.name()));
        if !remedy.is_empty() {
            text.push_str(&format!("      {:<width$}  → {remedy}\n", ""));
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (fails, warns) = (count(Verdict::Fail), count(Verdict::Warn));
    text.push_str(&match (fails, warns) {
        (0, 0) => "\nAll is well.\n".to_string(),
        (0, warns) => format!("\nFit to serve, with {warns} to look at.\n"),
        (fails, _) => format!("\nNot fit to serve: {fails} to repair.\n"),
    });
    text
}

fn as_json(checks: &[Check]) -> serde_json::Value {
    let check = |check: &Check| {
        let remedy = (!check.remedy.is_empty()).then_some(&check.remedy);
        json!({
            "name": check.name,
            "verdict": check.verdict.name(),
            "found": check.found,
            "remedy": remedy,
        })
    };
    let fit = checks.iter().all(|check| check.verdict != Verdict::Fail);
    json!({ "fit": fit, "checks": checks.iter().map(check).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_told_with_their_remedies() {
        let mut checks = vec![
            Check::ok("kernel", "Linux 6.18"),
            Check::warn("io_uring", "disabled", "sysctl kernel.io_uring_disabled=0"),
        ];
        let expected = "\
ok    kernel    Linux 6.18
warn  io_uring  disabled
                → sysctl kernel.io_uring_disabled=0

Fit to serve, with 1 to look at.
";
        assert_eq!(as_text(&checks), expected);
        checks.push(Check::fail("disk", "read-only", "mount it writable"));
        assert!(as_text(&checks).ends_with("\nNot fit to serve: 1 to repair.\n"));
        let json = as_json(&checks);
        assert_eq!(json["fit"], false);
        assert_eq!(json["checks"][2]["remedy"], "mount it writable");
        assert_eq!(json["checks"][0]["remedy"], serde_json::Value::Null);
    }

    #[test]
    fn this_machine_can_be_examined() {
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::read();
        let flags = Flags {
            data_dir: Some(directory.path().join("data").display().to_string()),
            listen: Some("127.0.0.1:0".into()),
            ..Flags::default()
        };
        let config = config::read(None, &flags, &machine).unwrap();
        let checks = examine(&config, &machine);
        for check in &checks {
            assert!(!check.found.is_empty(), "{check:?}");
            assert_eq!(check.remedy.is_empty(), check.verdict == Verdict::Ok, "{check:?}");
        }
        assert!(checks.iter().any(|check| check.name == "sync"), "{checks:?}");
        let left = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 0, "nothing is left behind");
    }
}

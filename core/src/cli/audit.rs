//! `prism audit`: looks into the audit log and says whether it is as it was written.
//!
//! Reads only, also while a server writes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{Format, line, print};
use super::{Exit, complain};
use crate::audit::chain::{Head, Verifier, parse_hash};
use crate::audit::{files, show};

const AFTER_HELP: &str = "\
Examples:
  prism audit verify                            the audit log of ./prism-data
  prism audit verify --data-dir /var/lib/prism  that of another data directory
  prism audit verify old/*.jsonl                these files
  prism audit verify --head 812:9f2c…           and is line 812 still there, with this hash?

Lines that are missing at the end only a head shows that was kept elsewhere: keep what this command, or /audit on the admin
port, tells.
";

/// Longest line that is read, in bytes; far more than one may have.
const LINE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check every hash and number; exit code 65 where a line was changed, removed, moved, put in or cut off.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// The files, in the order of their lines; without any all of the data directory.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The data directory.
    #[arg(long, value_name = "DIRECTORY", default_value = "./prism-data")]
    data_dir: PathBuf,
    /// Number and hash of a line, as they were kept elsewhere.
    #[arg(long, value_name = "NUMBER:HASH", value_parser = head)]
    head: Option<Head>,
    /// The form of the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

fn head(text: &str) -> Result<Head, String> {
    let read = || {
        let (sequence, hash) = text.split_once(':')?;
        Some(Head { sequence: sequence.parse().ok()?, hash: parse_hash(hash.as_bytes())? })
    };
    read().ok_or_else(|| "write a number, a colon, and 64 hexadecimal digits".to_owned())
}

pub(super) fn run(args: &AuditArgs) -> Exit {
    let AuditCommand::Verify(args) = &args.command;
    match verify(args) {
        Ok(exit) => exit,
        Err((exit, message)) => {
            complain(message);
            exit
        }
    }
}

fn verify(args: &VerifyArgs) -> Result<Exit, (Exit, String)> {
    let paths = match args.files.is_empty() {
        false => args.files.clone(),
        true => {
            let folder = args.data_dir.join(files::FOLDER);
            files::list(&folder).map_err(|error| {
                let text = format!(
                    "{} cannot be read: {error}; name the data directory with --data-dir, or the files",
                    folder.display()
                );
                (Exit::DataDirectory, text)
            })?
        }
    };
    if paths.is_empty() {
        let text = format!("there is no audit log in {}", args.data_dir.display());
        return Err((Exit::Failure, text));
    }
    let mut verifier = Verifier::with_anchor(args.head);
    for path in &paths {
        read(path, &mut verifier).map_err(|error| {
            (Exit::Failure, format!("{} cannot be read: {error}", path.display()))
        })?;
    }
    verifier.finish();
    let text = match args.output {
        Format::Text => as_text(&verifier, paths.len()).into_bytes(),
        Format::Json => line(as_json(&verifier, &paths)),
    };
    print(&text).map_err(|error| (Exit::Failure, error.to_string()))?;
    Ok(if verifier.faults_count == 0 { Exit::Ok } else { Exit::Damaged })
}

fn read(path: &Path, verifier: &mut Verifier) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    verifier.begin_file(&path.display().to_string());
    let mut text = Vec::new();
    while file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text)? > 0 {
        match text.strip_suffix(b"\n") {
            Some(line) => verifier.line(line, true),
            None => verifier.line(&text, false),
        }
        text.clear();
    }
    Ok(())
}

fn as_text(verifier: &Verifier, files: usize) -> String {
    let mut text = String::new();
    for fault in &verifier.faults {
        text.push_str(&format!("{}:{}: {}\n", fault.file, fault.line, fault.what));
    }
    let untold = verifier.faults_count - verifier.faults.len() as u64;
    if untold > 0 {
        text.push_str(&format!("and {untold} more\n"));
    }
    let verdict = match verifier.faults_count {
        0 => "as they were written".to_owned(),
        1 => "DAMAGED in 1 place".to_owned(),
        places => format!("DAMAGED in {places} places"),
    };
    text.push_str(&format!("{} lines in {files} files: {verdict}\n", verifier.lines));
    if let Some((first, false)) = verifier.first {
        text.push_str(&format!("the first is line {first}: what was before it is not here\n"));
    }
    if let Some(head) = verifier.head() {
        text.push_str(&format!("head {}:{}\n", head.sequence, show(&head.hash)));
    }
    text
}

fn as_json(verifier: &Verifier, paths: &[PathBuf]) -> Value {
    let fault = |fault: &crate::audit::chain::Fault| json!({"file": fault.file, "line": fault.line, "what": fault.what});
    let head = |head: Head| json!({"sequence": head.sequence, "hash": show(&head.hash)});
    json!({
        "ok": verifier.faults_count == 0,
        "files": paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "lines": verifier.lines,
        "first": verifier.first.map(|(first, _)| first),
        "from_the_beginning": verifier.first.is_some_and(|(_, is_beginning)| is_beginning),
        "head": verifier.head().map(head),
        "faults_count": verifier.faults_count,
        "faults": verifier.faults.iter().map(fault).collect::<Vec<_>>(),
    })
}

//! `prism schema`: the JSON Schemas of the files that teams write.

use clap::{Args, ValueEnum};

use super::output::print;
use super::{Exit, complain};
use crate::config::{platform, request};

const AFTER_HELP: &str = "\
Examples:
  prism schema request > request.schema.json
  prism schema platform > platform.schema.json

Editors with a YAML language server take it from a first line in the file:
  # yaml-language-server: $schema=request.schema.json
";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct SchemaArgs {
    /// Which file.
    #[arg(value_enum)]
    of: Of,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Of {
    /// A namespace request, the application team's file.
    Request,
    /// platform.yaml, the platform team's file.
    Platform,
}

pub(super) fn run(args: &SchemaArgs) -> Exit {
    let schema = match args.of {
        Of::Request => request::request_schema(),
        Of::Platform => platform::platform_schema(),
    };
    match print(format!("{schema:#}\n").as_bytes()) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(format_args!("stdout cannot be written: {error}"));
            Exit::Failure
        }
    }
}

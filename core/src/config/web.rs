//! The section `web`: who may call from a browser.

use std::fmt;

use prism_io::web::Origins;

use super::error::{Origin, Problem};
use super::tree::{Node, Report, Section, Value};

/// Calls from browsers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Web {
    /// The pages from where a browser may call.
    pub allowed_origins: Origins,
}

/// Reads the section.
pub(super) fn read(section: Option<Section<'_>>, report: &Report) -> Web {
    let nothing = Node { origin: Origin::Default, value: Value::Nothing };
    let section = section.unwrap_or_else(|| Section::new(&nothing, "web", report));
    let allowed_origins = section.list("allowed_origins", origins);
    section.finish();
    Web { allowed_origins: allowed_origins.map_or_else(Origins::default, |setting| setting.value) }
}

fn origins(text: &str) -> Result<Origins, Problem> {
    let mut origins = Origins::none();
    for origin in text.split(',').map(str::trim).filter(|origin| !origin.is_empty()) {
        origins.allow(origin).map_err(|_| {
            let remedy = "write scheme, host and port as browsers do, like https://console.example.com; or loopback, or \"*\"";
            Problem::new(format!("`{origin}` is not an origin"), remedy)
        })?;
    }
    Ok(origins)
}

impl fmt::Display for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // None of them holds what YAML would take for the end of the text.
        let names: Vec<String> =
            self.allowed_origins.names().map(|name| format!("\"{name}\"")).collect();
        writeln!(f, "web:")?;
        writeln!(f, "  allowed_origins: [{}]", names.join(", "))
    }
}

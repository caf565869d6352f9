//! The table of limits in `docs/transport.md` against what it speaks of: settings, defaults, kinds of the metric, and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use prism_io::h2::Refusal;

use super::tests::read_text;

/// One row of the table.
struct Row<'a> {
    setting: &'a str,
    default: &'a str,
    kind: &'a str,
    test: &'a str,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rows(page: &str) -> Vec<Row<'_>> {
    let table = page.lines().skip_while(|line| !line.starts_with("| what | setting")).skip(2);
    table
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [_, setting, default, _, kind, test] = cells[..] else {
                panic!("not six cells: {line}")
            };
            let [setting, kind, test] = [setting, kind, test].map(|cell| cell.trim_matches('`'));
            Row { setting, default, kind, test }
        })
        .collect()
}

/// Every setting that is shown, under its section's name.
fn shown() -> BTreeMap<String, String> {
    let file = root().join("Cargo.toml").display().to_string();
    let config = read_text(&format!("tls: {{certificate: \"{file}\", key: \"{file}\"}}")).unwrap();
    let (mut settings, mut section) = (BTreeMap::new(), String::new());
    for line in config.to_string().lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key.strip_prefix("  ") {
            None => section = key.to_owned(),
            Some(key) => {
                settings.insert(format!("{section}.{key}"), value.to_owned());
            }
        }
    }
    settings
}

/// `16,384`, `4 MiB` and `12,288 (¾ of all)` as the configuration writes them, without spaces.
fn plain(text: &str) -> String {
    let text = text.split(" (").next().unwrap_or_default();
    text.chars().filter(|sign| !sign.is_whitespace() && *sign != ',').collect()
}

#[test]
fn the_page_lists_every_limit_as_it_is() {
    let page = std::fs::read_to_string(root().join("docs/transport.md")).unwrap();
    let (rows, settings) = (rows(&page), shown());
    let full = |setting: &str| match setting.contains('.') {
        true => setting.to_owned(),
        false => format!("transport.{setting}"),
    };
    for Row { setting, default, .. } in &rows {
        let value = settings.get(&full(setting));
        let value = value.unwrap_or_else(|| panic!("there is no setting {setting}"));
        assert_eq!(plain(default), plain(value), "{setting}");
    }
    let listed: BTreeSet<String> = rows.iter().map(|row| full(row.setting)).collect();
    for setting in settings.keys().filter(|setting| setting.starts_with("transport.")) {
        assert!(listed.contains(setting), "the table has no row for {setting}");
    }
    for Row { setting, kind, .. } in &rows {
        assert!(Refusal::ALL.iter().any(|one| one.name() == *kind), "{setting}: no kind {kind}");
    }
    // Kinds that no limit has are those of certificates, of browsers, and of errors.
    let without: Vec<&str> = Refusal::ALL
        .iter()
        .map(|kind| kind.name())
        .filter(|name| !rows.iter().any(|row| row.kind == *name))
        .collect();
    assert_eq!(without, ["revoked", "origin", "malformed_head"]);
}

#[test]
fn every_limit_of_the_page_has_its_test() {
    let page = std::fs::read_to_string(root().join("docs/transport.md")).unwrap();
    let mut tests = String::new();
    for folder in ["core/tests", "io/tests"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                tests.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    for Row { setting, test, .. } in rows(&page) {
        assert!(tests.contains(&format!("\n#[test]\nfn {test}() {{")), "{setting}: no test {test}");
    }
}

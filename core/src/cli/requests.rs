//! The files of namespace requests as one document for a server, and what it says of that as places in the files.

use std::path::Path;

use super::{Exit, complain};
use crate::config::request::{read_requests, request_texts};

/// What a server calls what it was sent.
const DOCUMENT: &str = "document:";

/// Files of requests.
#[derive(Debug)]
pub(super) struct Requests {
    /// Their names, and the line of the document before the first of each.
    files: Vec<(String, u64)>,
    /// All of them, one after the other.
    pub(super) document: String,
    /// The namespaces, in their order.
    pub(super) names: Vec<String>,
}

impl Requests {
    /// Reads a file or a folder, and complains of what is wrong with it before a server is asked.
    pub(super) fn load(path: &Path) -> Result<Self, Exit> {
        let read = request_texts(path).and_then(|texts| {
            let documents = read_requests(&texts)?;
            Ok((texts, documents))
        });
        let (texts, documents) = read.map_err(|wrong| {
            wrong.iter().for_each(|errors| eprintln!("{errors}"));
            Exit::Config
        })?;
        let name = |one: &crate::config::request::Document| one.request.namespace.value.0.clone();
        let names: Vec<_> = documents.iter().map(name).collect();
        let requests = Self::join(&texts, names);
        let joined = read_requests(&[(String::new(), requests.document.clone())]);
        if joined.is_ok_and(|joined| joined.iter().map(name).eq(requests.names.iter().cloned())) {
            return Ok(requests);
        }
        complain(format_args!(
            "{}: these files cannot be sent as one: leave out `...` and directives, or name one file",
            path.display()
        ));
        Err(Exit::Config)
    }

    fn join(texts: &[(String, String)], names: Vec<String>) -> Self {
        let (mut document, mut files, mut lines) = (String::new(), Vec::new(), 0);
        for (name, text) in texts {
            let is_content = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
            let begins = text.lines().find(is_content).is_some_and(|line| line.starts_with("---"));
            if !document.is_empty() && !begins {
                document.push_str("---\n");
                lines += 1;
            }
            files.push((name.clone(), lines));
            document.push_str(text);
            if !text.ends_with('\n') {
                document.push('\n');
            }
            lines += text.lines().count() as u64;
        }
        Self { files, document, names }
    }

    /// What a server says, with places in the files.
    pub(super) fn placed(&self, text: &str) -> String {
        let mut placed = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(DOCUMENT) {
            placed.push_str(before);
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            let line = after[..digits].parse::<u64>().ok();
            let file = line.and_then(|line| {
                let file = self.files.iter().rev().find(|(_, first)| *first < line)?;
                Some(format!("{}:{}", file.0, line - file.1))
            });
            match file {
                Some(file) => {
                    placed.push_str(&file);
                    rest = &after[digits..];
                }
                None => {
                    placed.push_str(DOCUMENT);
                    rest = after;
                }
            }
        }
        placed.push_str(rest);
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_in_the_files() {
        let text = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let files = [
            text("a.yaml", "namespace: a\nteam: t\nclient_api: queue"),
            text("b.yaml", "# says\n---\nnamespace: b\n"),
            text("c.yaml", "namespace: c\n"),
        ];
        let requests = Requests::join(&files, Vec::new());
        assert_eq!(
            requests.document,
            "namespace: a\nteam: t\nclient_api: queue\n# says\n---\nnamespace: b\n---\nnamespace: c\n"
        );
        for (told, placed) in [
            ("document:1:12: x", "a.yaml:1:12: x"),
            ("at document:3:1, document:6:2", "at a.yaml:3:1, b.yaml:3:2"),
            ("document:8:1", "c.yaml:1:1"),
            ("document: none", "document: none"),
            ("document:0:1", "document:0:1"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(requests.placed(told), placed);
        }
    }
}

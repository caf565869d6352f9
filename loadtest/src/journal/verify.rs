//! The comparing half of the witness.

use std::cell::{Cell, RefCell};
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use prism_io::client::{Client, Failure};
use prism_io::clock::monotonic_ns;
use prism_io::grpc::Code;
use prism_io::rt::{self, Signal};
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{GetRequest, GetResponse};
use prost::Message;

use super::Summary;
use super::record::{Contents, Header, History};

/// Reads under way at a time.
const READERS: usize = 64;
/// Pause before an unavailable server is asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// How long one read may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

struct Comparison {
    header: Header,
    /// Keys that have not been read yet.
    todo: RefCell<Vec<(String, History)>>,
    summary: RefCell<Summary>,
    client: Client,
    end_ns: u64,
    reading: Cell<usize>,
    ended: Signal,
    failure: RefCell<Option<Error>>,
}

/// Compares the journal at `path` with what the server at `endpoint` holds, waiting up to `wait` for the server to answer.
/// The summary lists every key that holds what it must not. Fails when the comparison itself is not possible.
pub fn verify(endpoint: SocketAddr, path: &Path, wait: Duration) -> Result<Summary> {
    let contents = Contents::parse(&std::fs::read_to_string(path)?)?;
    rt::run(compare(endpoint, contents, wait))?
}

async fn compare(endpoint: SocketAddr, contents: Contents, wait: Duration) -> Result<Summary> {
    let end_ns = monotonic_ns() + wait.as_nanos() as u64;
    let client = loop {
        match Client::connect(endpoint).await {
            Ok(client) => break client,
            Err(error) if monotonic_ns() >= end_ns => return Err(error),
            Err(_) => rt::sleep(PAUSE).await,
        }
    };
    let mut summary = Summary {
        keys: contents.histories.len() as u64,
        acknowledged: contents.acknowledgements,
        open: contents.histories.values().filter(|history| history.is_open()).count() as u64,
        ..Summary::default()
    };
    for violation in contents.violations {
        summary.violation(format!("{violation} (while writing)"));
    }
    let comparison = Rc::new(Comparison {
        header: contents.header,
        todo: RefCell::new(contents.histories.into_iter().collect()),
        summary: RefCell::new(summary),
        client,
        end_ns,
        reading: Cell::new(READERS),
        ended: Signal::default(),
        failure: RefCell::new(None),
    });
    for _ in 0..READERS {
        let comparison = comparison.clone();
        rt::spawn(async move {
            if let Err(error) = comparison.read_all().await {
                comparison.failure.borrow_mut().get_or_insert(error);
            }
            comparison.reading.set(comparison.reading.get() - 1);
            comparison.ended.set();
        });
    }
    while comparison.reading.get() > 0 {
        comparison.ended.wait().await;
    }
    match comparison.failure.take() {
        Some(error) => Err(error),
        None => Ok(comparison.summary.take()),
    }
}

impl Comparison {
    async fn read_all(&self) -> Result<()> {
        loop {
            let next = self.todo.borrow_mut().pop();
            let Some((key, history)) = next else { return Ok(()) };
            let found = self.read(&key).await?;
            if let Some(text) = judge(&self.header, &key, &history, found.as_deref()) {
                self.summary.borrow_mut().violation(text);
            }
        }
    }

    async fn read(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let request = GetRequest { namespace: self.header.namespace.clone(), key: key.to_owned() };
        let message = request.encode_to_vec();
        loop {
            let path = Method::KEYVALUE_GET.path();
            match self.client.unary(path, &[], &message, READ_TIMEOUT).await {
                Ok(reply) => {
                    let answer = GetResponse::decode(reply.message)?;
                    let value = answer.entry.map(|entry| entry.value.to_vec()).unwrap_or_default();
                    return Ok(answer.found.then_some(value));
                }
                Err(Failure { code: Code::Unavailable | Code::ResourceExhausted, .. })
                    if !self.client.is_closed() && monotonic_ns() < self.end_ns =>
                {
                    rt::sleep(PAUSE).await;
                }
                Err(Failure { code, message, .. }) => {
                    return Err(Error::other(format!("reading {key}: {}: {message}", code.name())));
                }
            }
        }
    }
}

/// What is wrong about `found` under `key`, if anything is.
fn judge(header: &Header, key: &str, history: &History, found: Option<&[u8]>) -> Option<String> {
    let number = match found {
        None => 0,
        Some(value) => match header.number(key, value) {
            Some(number) => number,
            None => return Some(format!("{key}: holds a value that nobody wrote")),
        },
    };
    if history.allows(number) {
        return None;
    }
    let History { acknowledged, sent, refused } = history;
    let what = match number {
        number if number < *acknowledged => "an acknowledged write is lost",
        number if refused.contains(&number) => "a refused write had an effect",
        _ => "it was never sent",
    };
    Some(format!("{key}: holds {number}, acknowledged {acknowledged}, sent {sent}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_wrong_is_named() {
        let header = Header { run: "r".into(), namespace: "n".into(), value_bytes: 40 };
        let history = History { acknowledged: 4, sent: 6, refused: [5].into() };
        let judged = |number| {
            let value = header.value("p-1", number);
            judge(&header, "p-1", &history, Some(&value)).unwrap_or_default()
        };
        assert_eq!((judged(4), judged(6)), (String::new(), String::new()));
        assert!(
            judged(3).contains("lost")
                && judged(5).contains("refused")
                && judged(7).contains("never")
        );
        assert!(judge(&header, "p-1", &history, None).unwrap().contains("lost"));
        assert!(judge(&header, "p-1", &history, Some(b"4 p-1 x")).unwrap().contains("nobody"));
        assert_eq!(judge(&header, "p-1", &History::default(), None), None);
    }
}

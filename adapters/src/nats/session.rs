//! The other end of the bridge: a connection of async-nats, on the thread beside the shards.
//!
//! It carries messages and their answers, and knows nothing of what they mean. Answers come to one subject of the connection's
//! own, with the call's number in it. A client of async-nats lives for one connection: it would make the next one by itself, but
//! then what was not sent yet would be sent late, and a call whose answer is lost would wait for its time to be up. Here every
//! call that is under way when the connection ends is told so at once, and when to try again is for the [`Breaker`] to say.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{
    Auth, AuthError, Client, ConnectOptions, Event, ServerError, Subject, Subscriber,
};
use bytes::Bytes;
use futures_util::StreamExt;
use prism_io::bridge::Foreign;
use prism_io::clock::monotonic_ns;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::config::{Login, NatsConfig};
use super::errors::Outage;
use super::inbox::{Inbox, forward};
use super::link::{Answer, Ask, Asked, Outgoing, State};
use super::table::{ANSWERS_PER_CALL_MAX, Gathering, Table, Waiting};
use crate::breaker::{Breaker, Circuit};

/// The oldest server that has what is asked of it: atomic batches of messages, and their expiry.
const VERSION_MIN: (u64, u64) = (2, 12);

/// Answers that may wait until they are taken. A call that is answered by several asks for a bounded number.
const ANSWERS_MAX: usize = 1 << 18;

/// Messages that may wait until they are written.
const UNSENT_MAX: usize = 4096;

/// Events of the connection that may wait.
const EVENTS_MAX: usize = 64;

type Bridge = Foreign<Asked, Answer>;

/// Connects, serves, and connects again, until the shard has left.
pub(super) async fn drive(config: NatsConfig, bridge: Bridge, state: Arc<State>) {
    let mut breaker = Breaker::new(config.backoff);
    let mut outage = Outage::closed();
    loop {
        breaker.attempt();
        let attempt = connect(&config);
        let connected = match breaker.circuit() {
            Circuit::Closed => Some(attempt.await),
            _ => refuse_during(&bridge, &outage, attempt).await,
        };
        let Some(connected) = connected else { return };
        let due_ns = match connected {
            Ok(session) => {
                breaker.succeeded();
                state.payload_bytes_max.store(session.client.max_payload(), Ordering::Relaxed);
                state.connects.fetch_add(1, Ordering::Relaxed);
                state.is_connected.store(true, Ordering::Relaxed);
                let since_ns = monotonic_ns();
                let ended = session.serve(&bridge).await;
                state.is_connected.store(false, Ordering::Relaxed);
                let Some(reason) = ended else { return };
                outage = reason;
                let now_ns = monotonic_ns();
                breaker.lost(now_ns, now_ns - since_ns)
            }
            Err(reason) => {
                outage = reason;
                breaker.failed(monotonic_ns())
            }
        };
        state.outages.fetch_add(1, Ordering::Relaxed);
        let wait = Duration::from_nanos(due_ns.saturating_sub(monotonic_ns()));
        if !wait.is_zero() {
            let due = tokio::time::sleep(wait);
            if refuse_during(&bridge, &outage, due).await.is_none() {
                return;
            }
        }
    }
}

/// Refuses what is asked until `event`; `None` when the shard has left.
async fn refuse_during<T>(
    bridge: &Bridge,
    outage: &Outage,
    event: impl Future<Output = T>,
) -> Option<T> {
    let refuse = async {
        while let Some((_, ticket)) = bridge.next().await {
            ticket.complete(Answer::Failed(outage.clone()));
        }
    };
    tokio::select! {
        happened = event => Some(happened),
        () = refuse => None,
    }
}

/// One connection.
struct Session {
    client: Client,
    answers: Subscriber,
    events: mpsc::Receiver<Event>,
    /// What the subjects of answers begin with.
    inbox: String,
    answer_timeout: Duration,
    table: Arc<Table>,
}

async fn connect(config: &NatsConfig) -> Result<Session, Outage> {
    // One attempt looks the name up and tries each of its addresses; each of them has the client's own time limit.
    let whole = timeout(config.connect_timeout, open(config)).await;
    whole.unwrap_or_else(|_| Err(Outage::connect_timed_out(config.connect_timeout)))
}

async fn open(config: &NatsConfig) -> Result<Session, Outage> {
    let (events_in, events) = mpsc::channel(EVENTS_MAX);
    let client = options(config, events_in).connect(config.url()).await;
    let client = client.map_err(|error| Outage::of_connecting(&error))?;
    let info = client.server_info();
    if !is_new_enough(&info.version) {
        let (major, minor) = VERSION_MIN;
        return Err(Outage::too_old(&info.version, &format!("{major}.{minor}")));
    }
    let mut inbox = client.new_inbox();
    let answers = client.subscribe(format!("{inbox}.*")).await;
    let answers = answers.map_err(|_| Outage::lost())?;
    inbox.push('.');
    let (answer_timeout, table) = (config.answer_timeout, Arc::default());
    Ok(Session { client, answers, events, inbox, answer_timeout, table })
}

fn options(config: &NatsConfig, events: mpsc::Sender<Event>) -> ConnectOptions {
    let login = config.login.clone();
    let is_used = Arc::new(AtomicBool::new(false));
    // Asked for a login a second time, the client is about to connect by itself: it is refused one, and gives up.
    let options = ConnectOptions::with_auth_callback(move |nonce| {
        let (login, is_again) = (login.clone(), is_used.swap(true, Ordering::Relaxed));
        async move {
            match is_again {
                true => Err(AuthError::new("one connection each")),
                false => authenticate(login.as_ref(), &nonce).map_err(AuthError::new),
            }
        }
    });
    let options = options
        .name(&config.client_name)
        .custom_inbox_prefix(&config.inbox_prefix)
        .connection_timeout(config.connect_timeout)
        .ping_interval(config.ping_after)
        .request_timeout(None)
        .subscription_capacity(ANSWERS_MAX)
        .client_capacity(UNSENT_MAX)
        .max_reconnects(1)
        .reconnect_delay_callback(|_| Duration::ZERO)
        .ignore_discovered_servers()
        .event_callback(move |event| {
            let events = events.clone();
            async move { drop(events.send(event).await) }
        });
    match &config.tls {
        Some(tls) => options.require_tls(true).tls_client_config(tls.connector.client_config()),
        None => options,
    }
}

fn authenticate(login: Option<&Login>, nonce: &[u8]) -> Result<Auth, String> {
    let mut auth = Auth::new();
    match login {
        None => {}
        Some(Login::Password { user, password }) => {
            (auth.username, auth.password) = (Some(user.clone()), Some(password.clone()));
        }
        Some(Login::Token(token)) => auth.token = Some(token.clone()),
        Some(Login::NKey(seed)) => {
            let (key, signature) = sign(seed, nonce)?;
            (auth.nkey, auth.signature) = (Some(key), Some(signature));
        }
        Some(Login::Credentials(file)) => {
            let jwt = section(file, "NATS USER JWT").ok_or("there is no JWT in the credentials")?;
            let seed =
                section(file, "USER NKEY SEED").ok_or("there is no key in the credentials")?;
            let (_, signature) = sign(seed, nonce)?;
            (auth.jwt, auth.signature) = (Some(jwt.to_owned()), Some(signature));
        }
    }
    Ok(auth)
}

fn sign(seed: &str, nonce: &[u8]) -> Result<(String, Vec<u8>), String> {
    let key = nkeys::KeyPair::from_seed(seed.trim()).map_err(|error| error.to_string())?;
    let signature = key.sign(nonce).map_err(|error| error.to_string())?;
    Ok((key.public_key(), signature))
}

/// The line between the marks of a section of a credentials file.
fn section<'a>(file: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = file.lines().skip_while(|line| !line.contains(&format!("BEGIN {name}")));
    lines.next()?;
    lines.map(str::trim).find(|line| !line.is_empty()).filter(|line| !line.starts_with('-'))
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(|number| number.parse::<u64>().ok());
    let found = numbers.next().flatten().zip(numbers.next().flatten());
    found.is_some_and(|found| found >= VERSION_MIN)
}

impl Session {
    /// Serves calls until the connection ends, and tells why; `None` when the shard has left.
    async fn serve(mut self, bridge: &Bridge) -> Option<Outage> {
        let ended = tokio::select! {
            ended = write(&self.client, &self.inbox, &self.table, self.answer_timeout, bridge) => ended,
            () = read(&mut self.answers, self.inbox.len(), &self.table) => Some(Outage::lost()),
            ended = follow(&mut self.events, &self.table) => Some(ended),
            ended = watch(&self.table, self.answer_timeout) => Some(ended),
        };
        let reason = ended.clone().unwrap_or_else(Outage::closed);
        self.table.fail_all(&reason);
        ended
    }
}

/// Sends what is asked; ends when the shard has left (`None`) or the client is gone.
async fn write(
    client: &Client,
    inbox: &str,
    table: &Arc<Table>,
    patience: Duration,
    bridge: &Bridge,
) -> Option<Outage> {
    // They end with the connection.
    let mut subscriptions = JoinSet::new();
    while let Some((Asked { ask, deadline_ns }, ticket)) = bridge.next().await {
        if deadline_ns <= monotonic_ns() {
            ticket.complete(Answer::Failed(Outage::late()));
            continue;
        }
        let gathering = match &ask {
            Ask::Many(_) => Gathering::many(ANSWERS_PER_CALL_MAX),
            Ask::Pull(_, count) => Gathering::many(*count),
            Ask::Each(messages) => Gathering::each(messages.len()),
            Ask::One(_) | Ask::Last(_) | Ask::Tell(_) | Ask::Subscribe(..) => Gathering::One,
        };
        let waiting = Waiting { ticket, subject: ask.subject(), gathering };
        let number = table.put(waiting, patience);
        let sent = match ask {
            Ask::Subscribe(subject, into) => {
                while subscriptions.try_join_next().is_some() {}
                table.subscribed(subject.clone(), &into);
                subscribe(client, subject, into, &mut subscriptions).await
            }
            Ask::Pull(message, _) => {
                while subscriptions.try_join_next().is_some() {}
                let reply = format!("{inbox}pull.{number}");
                match client.subscribe(reply.clone()).await {
                    Ok(pulled) => {
                        // Nobody listens for an answer that is later than this.
                        let gathered = gather(pulled, number, table.clone());
                        subscriptions.spawn(async move { drop(timeout(patience, gathered).await) });
                        publish(client, message, Some(reply)).await.map(|()| Sent::Answered)
                    }
                    Err(_) => Err(None),
                }
            }
            ask => send(client, inbox, number, ask).await,
        };
        let sent = match sent {
            Ok(Sent::Answered) => Ok(()),
            Ok(Sent::Unanswered) => {
                // The server hands us this back after it has taken what came before.
                let echo = Outgoing::plain(format!("{inbox}{number}"), Bytes::new());
                publish(client, echo, None).await
            }
            Err(failed) => Err(failed),
        };
        if let Err(failed) = sent {
            let Some(outage) = failed else { return Some(Outage::lost()) };
            table.fail(number, &outage);
        }
    }
    None
}

/// Whether somebody answers what was sent.
enum Sent {
    Answered,
    Unanswered,
}

async fn subscribe(
    client: &Client,
    subject: Subject,
    into: Arc<Inbox>,
    subscriptions: &mut JoinSet<()>,
) -> Result<Sent, Option<Outage>> {
    let subscriber = client.subscribe(subject).await.map_err(|_| None)?;
    subscriptions.spawn(forward(subscriber, into));
    Ok(Sent::Unanswered)
}

/// Hands the messages of a call to the client. Fails with nothing where the client is gone.
async fn send(client: &Client, inbox: &str, number: u64, ask: Ask) -> Result<Sent, Option<Outage>> {
    match ask {
        Ask::One(message) | Ask::Many(message) => {
            publish(client, message, Some(format!("{inbox}{number}"))).await?;
        }
        Ask::Each(messages) => {
            for (index, message) in messages.into_iter().enumerate() {
                publish(client, message, Some(format!("{inbox}{number}-{index}"))).await?;
            }
        }
        Ask::Last(messages) => {
            let count = messages.len();
            for (index, message) in messages.into_iter().enumerate() {
                let reply = (index + 1 == count).then(|| format!("{inbox}{number}"));
                publish(client, message, reply).await?;
            }
        }
        Ask::Tell(messages) => {
            for message in messages {
                publish(client, message, None).await?;
            }
            return Ok(Sent::Unanswered);
        }
        Ask::Pull(..) | Ask::Subscribe(..) => return Ok(Sent::Unanswered),
    }
    Ok(Sent::Answered)
}

async fn publish(
    client: &Client,
    message: Outgoing,
    reply: Option<String>,
) -> Result<(), Option<Outage>> {
    let Outgoing { subject, reply: own_reply, headers, payload } = message;
    let reply = reply.map(Subject::from).or(own_reply);
    let sent = match (headers, reply) {
        (Some(headers), Some(reply)) => {
            client.publish_with_reply_and_headers(subject, reply, headers, payload).await
        }
        (Some(headers), None) => client.publish_with_headers(subject, headers, payload).await,
        (None, Some(reply)) => client.publish_with_reply(subject, reply, payload).await,
        (None, None) => client.publish(subject, payload).await,
    };
    use async_nats::PublishErrorKind::{InvalidSubject, MaxPayloadExceeded, Send};
    sent.map_err(|error| match error.kind() {
        Send => None,
        InvalidSubject | MaxPayloadExceeded => Some(Outage::not_sent(&error.to_string())),
    })
}

/// Hands out the messages that answer one call, which come under their own subjects, until it has all of them or has ended.
async fn gather(mut pulled: Subscriber, number: u64, table: Arc<Table>) {
    while let Some(message) = pulled.next().await {
        if !table.answer(number, 0, message) {
            return;
        }
    }
}

/// Hands answers out; ends when none can come any more.
async fn read(answers: &mut Subscriber, inbox_len: usize, table: &Table) {
    while let Some(message) = answers.next().await {
        let number = message.subject.get(inbox_len..).unwrap_or_default();
        let (number, index) = match number.split_once('-') {
            Some((number, index)) => (number, index.parse().unwrap_or(usize::MAX)),
            None => (number, 0),
        };
        if let Ok(number) = number.parse() {
            table.answer(number, index, message);
        }
    }
}

/// Follows what the client tells of the connection, until it ends.
async fn follow(events: &mut mpsc::Receiver<Event>, table: &Table) -> Outage {
    let mut said = None;
    while let Some(event) = events.recv().await {
        match event {
            Event::Disconnected | Event::Closed => break,
            Event::ServerError(ServerError::Other(text)) => {
                let lower = text.to_ascii_lowercase();
                if lower.contains("permissions violation") {
                    table.refuse(&text);
                } else if lower.contains("authentication") || lower.contains("authorization") {
                    said = Some(Outage::credentials_refused(&text));
                }
            }
            Event::ServerError(ServerError::AuthorizationViolation) => {
                said = Some(Outage::credentials_refused("authorization violation"));
            }
            _ => {}
        }
    }
    said.unwrap_or_else(Outage::lost)
}

/// Ends calls whose time is up; ends itself when the server has been silent for as long.
async fn watch(table: &Table, patience: Duration) -> Outage {
    loop {
        let Some((due, number)) = table.oldest() else {
            table.work.notified().await;
            continue;
        };
        if due > Instant::now() {
            sleep_until(due).await;
            continue;
        }
        let outage = Outage::unresponsive(patience);
        if table.is_silent_since(due - patience) {
            return outage;
        }
        table.fail(number, &outage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (version, is_enough) in [
            ("2.12.0", true),
            ("2.15.2", true),
            ("3.0.0-beta.1", true),
            ("2.9.25", false),
            ("2.11.99", false),
            ("", false),
            ("two", false),
        ] {
            assert_eq!(is_new_enough(version), is_enough, "{version}");
        }
    }

    #[test]
    fn a_credentials_file_has_a_jwt_and_a_seed() {
        let file = "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.sig\n------END NATS USER JWT------\n\n\
                    ************************* IMPORTANT *************************\n\n\
                    -----BEGIN USER NKEY SEED-----\nSUAB\n------END USER NKEY SEED------\n";
        assert_eq!(section(file, "NATS USER JWT"), Some("eyJ0.eyJq.sig"));
        assert_eq!(section(file, "USER NKEY SEED"), Some("SUAB"));
        assert_eq!(section("", "USER NKEY SEED"), None);
        let empty = "-----BEGIN USER NKEY SEED-----\n------END USER NKEY SEED------\n";
        assert_eq!(section(empty, "USER NKEY SEED"), None);
    }

    #[test]
    fn every_login_is_shown_to_the_server() {
        let key = nkeys::KeyPair::new_user();
        let seed = key.seed().unwrap();
        let auth = authenticate(Some(&Login::NKey(seed.clone())), b"nonce").unwrap();
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
        assert_eq!(auth.nkey, Some(key.public_key()));
        let file = format!(
            "-----BEGIN NATS USER JWT-----\na.b.c\n---\n-----BEGIN USER NKEY SEED-----\n{seed}\n---\n"
        );
        let auth = authenticate(Some(&Login::Credentials(file)), b"nonce").unwrap();
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
        assert_eq!(auth.jwt.as_deref(), Some("a.b.c"));
        assert!(authenticate(Some(&Login::NKey("guess".to_owned())), b"nonce").is_err());
    }
}

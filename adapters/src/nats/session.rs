//! The other end of the bridge: a connection of async-nats, on the thread beside the shards, for what is answered by several messages or
//! goes on.
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

use super::config::NatsConfig;
use super::errors::Outage;
use super::inbox::{Inbox, forward};
use super::link::{Answer, Asked, Beside, Outgoing, State};
use super::login::check_version;
use super::login::{Proof, prove};
use super::table::{ANSWERS_PER_CALL_MAX, Gathering, Table, Waiting};
use crate::breaker::{Breaker, Circuit};

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
        let attempt = connect(&config, state.server.load(Ordering::Relaxed));
        let connected = match breaker.circuit() {
            Circuit::Closed => Some(attempt.await),
            _ if state.is_own_there.load(Ordering::Relaxed) => Some(attempt.await),
            _ => refuse_during(&bridge, &outage, attempt).await,
        };
        let Some(connected) = connected else { return };
        let due_ns = match connected {
            Ok(session) => {
                breaker.succeeded();
                state.connects.fetch_add(1, Ordering::Relaxed);
                let since_ns = monotonic_ns();
                let ended = session.serve(&bridge).await;
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
            // The shard's own connection shows that the server is there again.
            let due = async {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = state.own_came.notified() => {}
                }
            };
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
        biased;
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

async fn connect(config: &NatsConfig, first: usize) -> Result<Session, Outage> {
    // One attempt looks the names up and tries each of their addresses; each of them has the client's own time limit.
    let patience = config.connect_timeout * u32::try_from(config.servers()).unwrap_or(1);
    let whole = timeout(patience, open(config, first)).await;
    whole.unwrap_or_else(|_| Err(Outage::connect_timed_out(patience)))
}

async fn open(config: &NatsConfig, first: usize) -> Result<Session, Outage> {
    let (events_in, events) = mpsc::channel(EVENTS_MAX);
    let client = options(config, events_in).connect(config.urls(first)).await;
    let client = client.map_err(|error| Outage::of_connecting(&error))?;
    let info = client.server_info();
    check_version(&info.version)?;
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
                false => prove(login.as_ref(), &nonce).map(authenticate).map_err(AuthError::new),
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
        .retain_servers_order()
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

/// A proof as the client wants it.
fn authenticate(proof: Proof) -> Auth {
    let mut auth = Auth::new();
    (auth.username, auth.password) = (proof.user, proof.password);
    (auth.token, auth.jwt) = (proof.token, proof.jwt);
    (auth.nkey, auth.signature) = (proof.nkey, proof.signature);
    auth
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
            Beside::Many(_) => Gathering::many(ANSWERS_PER_CALL_MAX),
            Beside::Pull(_, count) => Gathering::many(*count),
            Beside::Subscribe(..) => Gathering::One,
        };
        let waiting = Waiting { ticket, subject: ask.subject().clone(), gathering };
        let number = table.put(waiting, patience);
        let sent = match ask {
            Beside::Subscribe(subject, into) => {
                while subscriptions.try_join_next().is_some() {}
                table.subscribed(subject.clone(), &into);
                match subscribe(client, subject, into, &mut subscriptions).await {
                    Ok(()) => {
                        // The server hands us this back after it has taken what came before.
                        let echo = Outgoing::plain(format!("{inbox}{number}"), Bytes::new());
                        publish(client, echo, None).await
                    }
                    Err(failed) => Err(failed),
                }
            }
            Beside::Pull(message, _) => {
                while subscriptions.try_join_next().is_some() {}
                let reply = format!("{inbox}pull.{number}");
                match client.subscribe(reply.clone()).await {
                    Ok(pulled) => {
                        // Nobody listens for an answer that is later than this.
                        let gathered = gather(pulled, number, table.clone());
                        subscriptions.spawn(async move { drop(timeout(patience, gathered).await) });
                        publish(client, message, Some(reply)).await
                    }
                    Err(_) => Err(None),
                }
            }
            Beside::Many(message) => {
                publish(client, message, Some(format!("{inbox}{number}"))).await
            }
        };
        if let Err(failed) = sent {
            let Some(outage) = failed else { return Some(Outage::lost()) };
            table.fail(number, &outage);
        }
    }
    None
}

async fn subscribe(
    client: &Client,
    subject: Subject,
    into: Arc<Inbox>,
    subscriptions: &mut JoinSet<()>,
) -> Result<(), Option<Outage>> {
    let subscriber = client.subscribe(subject).await.map_err(|_| None)?;
    subscriptions.spawn(forward(subscriber, into));
    Ok(())
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
        if !table.answer(number, message) {
            return;
        }
    }
}

/// Hands answers out; ends when none can come any more.
async fn read(answers: &mut Subscriber, inbox_len: usize, table: &Table) {
    while let Some(message) = answers.next().await {
        let number = message.subject.get(inbox_len..).unwrap_or_default();
        if let Ok(number) = number.parse() {
            table.answer(number, message);
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

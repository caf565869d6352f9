//! One connection to a PostgreSQL: logged in, `prism_meta` up to date, one batch at a time under way.
//!
//! A task of its own reads, so that a connection that ends is noticed also while nothing is asked. TLS is spoken where the
//! configuration says so, and never given up for clear text; a login is by SCRAM-SHA-256, or where PostgreSQL asks for none (`trust`,
//! `cert`); cleartext and MD5 passwords are refused.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use prism_io::clock::monotonic_ns;
use prism_io::net::{Closer, ReadHalf, Stream, WriteHalf, resolve};
use prism_io::rt::{self, Signal};

use super::batch::{Batch, Ended, Operation, Receiver};
use super::codec::{self, ProtocolError};
use super::config::PostgresConfig;
use super::errors::{Outage, SqlError};
use super::migrations::{self, Model};
use super::statements::{Namespace, Statement};
use crate::call::NO_DEADLINE_NS;
use crate::tls::Tls;

/// The buffer that answers are read into, while they are small.
const READ_BYTES: usize = 64 * 1024;

/// A read is not begun with less room than this.
const READ_BYTES_MIN: usize = 4 * 1024;

/// Rounds that a login by SCRAM takes at most, messages that follow it at most.
const LOGIN_MESSAGES_MAX: usize = 256;

/// The oldest PostgreSQL that has what is asked of it, as `server_version_num`.
const VERSION_MIN: u32 = 120_000;

/// How long it may take to tell PostgreSQL that nobody waits for a batch any more.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a simple query has no answer.
pub(super) enum Failure {
    Sql(SqlError),
    Outage(Outage),
}

impl From<Failure> for Outage {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Sql(error) => error.into(),
            Failure::Outage(outage) => outage,
        }
    }
}

/// Who waits for a batch.
pub(super) struct Waiters<'a> {
    /// Until when any of them does, monotonic ns.
    pub(super) over_ns: u64,
    /// Set when one goes away.
    pub(super) left: &'a Signal,
    /// Whether one is still there.
    pub(super) is_any_left: &'a dyn Fn() -> bool,
}

impl Waiters<'_> {
    /// Comes back when all have gone away.
    async fn all_gone(&self) {
        while (self.is_any_left)() {
            self.left.wait().await;
        }
    }
}

/// What the reading task and the owner of a connection share.
struct Shared {
    /// What is under way.
    waits: RefCell<Waits>,
    /// Set when that has ended, or the connection has.
    ended: Signal,
    /// Why the connection has ended, once it has.
    outage: RefCell<Option<Outage>>,
    /// When something last came, in monotonic ns.
    heard_ns: Cell<u64>,
    /// Set when the connection ends: whoever waits for work looks again.
    work: Rc<Signal>,
    reads: Cell<u64>,
}

#[derive(Default)]
enum Waits {
    #[default]
    Nothing,
    Batch(Receiver),
    /// A simple query: the first columns of its rows, and what went wrong.
    Query {
        rows: Vec<Option<String>>,
        error: Option<SqlError>,
    },
    /// What a query or batch has ended with.
    Over(Box<Waits>),
}

/// See the module. It ends when it is dropped.
pub(super) struct Session {
    shared: Rc<Shared>,
    write: WriteHalf,
    closer: Closer,
    answer_timeout: Duration,
    /// Whom to tell that a batch is not waited for any more, and the connection's own number and secret there.
    cancels: Option<(SocketAddr, i32, i32)>,
    /// How TLS is spoken to it.
    tls: Option<Tls>,
    /// What is prepared, by namespace.
    prepared: HashSet<(u32, Statement)>,
    /// What is as it should be in the schemas of namespaces.
    ready: HashSet<(u32, Model)>,
    /// The upper half of its versions.
    epoch: i64,
    versions: u32,
    pub(super) since_ns: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.closer.close();
    }
}

impl Session {
    /// Connects and logs in. `work` is set when the connection ends.
    pub(super) async fn connect(
        config: &PostgresConfig,
        work: &Rc<Signal>,
    ) -> Result<Self, Outage> {
        let (stream, address) = dial(config).await.map_err(|error| Outage::unreachable(&error))?;
        let stream = secured(stream, config.tls.as_ref()).await?;
        let closer = stream.closer().map_err(|error| Outage::unreachable(&error))?;
        let (read, write) = stream.split();
        let buffer = BytesMut::with_capacity(READ_BYTES);
        let is_secured = config.tls.is_some();
        let mut login = Login { read, write, buffer, is_secured, key: None };
        login.run(config).await?;
        let Login { read, write, buffer, key, .. } = login;
        let now_ns = monotonic_ns();
        let shared = Rc::new(Shared {
            waits: RefCell::default(),
            ended: Signal::default(),
            outage: RefCell::new(None),
            heard_ns: Cell::new(now_ns),
            work: work.clone(),
            reads: Cell::new(0),
        });
        rt::spawn(read_all(shared.clone(), read, buffer));
        let mut session = Session {
            shared,
            write,
            closer,
            answer_timeout: config.answer_timeout,
            cancels: key.map(|(process, secret)| (address, process, secret)),
            tls: config.tls.clone(),
            prepared: HashSet::new(),
            ready: HashSet::new(),
            epoch: 0,
            versions: 0,
            since_ns: now_ns,
        };
        session.settle_in(config).await?;
        Ok(session)
    }

    /// Settings, the oldest version, what Prism keeps for itself, and a number.
    async fn settle_in(&mut self, config: &PostgresConfig) -> Result<(), Outage> {
        let settings = format!(
            "SET statement_timeout = {}; SET TimeZone = 'UTC'; SET standard_conforming_strings = on; \
             SELECT current_setting('server_version_num')",
            config.answer_timeout.as_millis(),
        );
        let version = self.query(&settings).await?.pop().flatten();
        let version: u32 = version.and_then(|text| text.parse().ok()).unwrap_or_default();
        if version < VERSION_MIN {
            let message = format!("its version is {version}; PostgreSQL 12 or newer is needed");
            return Err(Outage::unfit("BACKEND_TOO_OLD", message));
        }
        migrations::bring_meta_up_to_date(self).await?;
        // From here on; what is made in the database may wait for another process that makes it.
        self.query(&format!("SET lock_timeout = {}", config.lock_timeout.as_millis())).await?;
        let epoch = self.query("SELECT nextval('prism_meta.epochs')").await?.pop().flatten();
        let epoch: Option<i64> = epoch.and_then(|text| text.parse().ok());
        self.epoch = epoch.ok_or(Outage::protocol(ProtocolError("a number is none")))?;
        Ok(())
    }

    /// Why it has ended, if it has.
    pub(super) fn outage(&self) -> Option<Outage> {
        self.shared.outage.borrow().clone()
    }

    /// Reads that brought answers since it was last asked.
    pub(super) fn reads(&self) -> u64 {
        self.shared.reads.take()
    }

    /// What is prepared, by namespace.
    pub(super) fn prepared(&self) -> &HashSet<(u32, Statement)> {
        &self.prepared
    }

    /// So many versions, none of which was or will ever be given again; returns the first. Not more than are left.
    pub(super) fn take_versions(epoch: i64, versions: &mut u32, count: u32) -> i64 {
        // Its upper half is the connection's alone, and no hand-made row's lower half is above 0.
        let first = (epoch << 32) + i64::from(*versions) + 1;
        *versions = versions.saturating_add(count);
        first
    }

    /// The state of its versions, for [`Session::take_versions`]; those that were taken are told to [`Session::exchange`].
    pub(super) fn versions(&self) -> (i64, u32) {
        (self.epoch, self.versions)
    }

    /// Whether it may soon have no versions any more, so that another connection has to go on.
    pub(super) fn is_used_up(&self) -> bool {
        self.versions > u32::MAX / 2
    }

    /// Makes sure that a namespace's schema has what operations need.
    pub(super) async fn make_ready(
        &mut self,
        namespace: &Namespace,
        operations: &[Operation],
    ) -> Result<(), Failure> {
        let mut last = None;
        for model in operations.iter().map(Operation::model) {
            if last == Some(model) {
                continue;
            }
            last = Some(model);
            if !self.ready.contains(&(namespace.number, model)) {
                migrations::bring_up_to_date(self, namespace, model).await?;
                self.ready.insert((namespace.number, model));
            }
        }
        Ok(())
    }

    /// Somebody has changed a schema: all of them are looked at again.
    pub(super) fn forget_schemas(&mut self) {
        self.ready.clear();
    }

    /// Sends a batch and waits for its end. When nobody waits for it any more PostgreSQL is asked to give it up.
    pub(super) async fn exchange(
        &mut self,
        batch: Batch,
        versions: u32,
        waiters: &Waiters<'_>,
    ) -> Result<Ended, Outage> {
        self.versions = versions;
        let (bytes, receiver) = Receiver::of(batch);
        let over = self.send(bytes, Waits::Batch(receiver), Some(waiters)).await?;
        let Waits::Batch(receiver) = over else { return Err(Outage::lost()) };
        let ended = receiver.end().ok_or_else(Outage::lost)?;
        self.prepared.extend(ended.prepared.iter().copied());
        Ok(ended)
    }

    /// Runs statements without parameters, in one transaction unless they say otherwise; returns the first columns of all rows.
    pub(super) async fn query(&mut self, text: &str) -> Result<Vec<Option<String>>, Failure> {
        let mut bytes = BytesMut::new();
        let nul = |_| Failure::Sql(SqlError::new("22021", "a text holds a NUL"));
        frontend::query(text, &mut bytes).map_err(nul)?;
        let waits = Waits::Query { rows: Vec::new(), error: None };
        let sent = self.send(bytes.to_vec(), waits, None);
        match sent.await.map_err(Failure::Outage)? {
            Waits::Query { rows, error: None } => Ok(rows),
            Waits::Query { error: Some(error), .. } => Err(Failure::Sql(error)),
            _ => Err(Failure::Outage(Outage::lost())),
        }
    }

    /// Asks for a sign of life.
    pub(super) async fn ping(&mut self) -> Result<(), Outage> {
        self.query("").await.map(drop).map_err(Outage::from)
    }

    async fn send(
        &mut self,
        bytes: Vec<u8>,
        waits: Waits,
        waiters: Option<&Waiters<'_>>,
    ) -> Result<Waits, Outage> {
        if let Some(outage) = self.outage() {
            return Err(outage);
        }
        // PostgreSQL gives a statement up after the same time; its answer is waited for a little longer.
        let patience = self.answer_timeout + self.answer_timeout / 4;
        let begun_ns = monotonic_ns();
        self.shared.waits.replace(waits);
        let shared = self.shared.clone();
        let (cancels, tls, write) = (self.cancels, self.tls.as_ref(), &mut self.write);
        let mut exchange = std::pin::pin!(async move {
            let (written, _) = write.write_all(bytes).await;
            if written.is_err() {
                return Err(shared.outage.borrow().clone().unwrap_or_else(Outage::lost));
            }
            loop {
                match shared.waits.take() {
                    Waits::Over(over) => return Ok(*over),
                    other => shared.waits.replace(other),
                };
                if let Some(outage) = shared.outage.borrow().clone() {
                    return Err(outage);
                }
                shared.ended.wait().await;
            }
        });
        let mut over_ns = waiters.map_or(NO_DEADLINE_NS, |waiters| waiters.over_ns);
        let mut all_gone = std::pin::pin!(async move {
            match waiters {
                Some(waiters) => waiters.all_gone().await,
                None => std::future::pending().await,
            }
        });
        let mut is_asked_for = true;
        loop {
            let since_ns = self.shared.heard_ns.get().max(begun_ns);
            let silent = Duration::from_nanos(monotonic_ns().saturating_sub(since_ns));
            let Some(left) = patience.checked_sub(silent).filter(|left| !left.is_zero()) else {
                let outage = Outage::unresponsive(patience);
                self.shared.outage.borrow_mut().get_or_insert(outage.clone());
                return Err(outage);
            };
            let until_over = Duration::from_nanos(over_ns.saturating_sub(monotonic_ns()));
            let ended_or_left = std::future::poll_fn(|task| {
                if let Poll::Ready(over) = exchange.as_mut().poll(task) {
                    return Poll::Ready(Some(over));
                }
                match is_asked_for && all_gone.as_mut().poll(task).is_ready() {
                    true => Poll::Ready(None),
                    false => Poll::Pending,
                }
            });
            let is_left = match rt::timeout(left.min(until_over), ended_or_left).await {
                Some(Some(over)) => return over,
                Some(None) => true,
                None => over_ns <= monotonic_ns(),
            };
            if is_left {
                (is_asked_for, over_ns) = (false, NO_DEADLINE_NS);
                if let Some(cancels) = cancels
                    && let Err(outage) = cancel(cancels, tls).await
                {
                    // It might reach what is sent next.
                    self.shared.outage.borrow_mut().get_or_insert(outage.clone());
                    return Err(outage);
                }
            }
        }
    }
}

/// Has PostgreSQL give up what a connection has under way. When it returns, nothing that is sent on the connection from then on can be
/// meant any more: PostgreSQL ends the connection that asks once it has passed the request on.
///
/// # Errors
/// It may still arrive.
async fn cancel(
    (address, process, secret): (SocketAddr, i32, i32),
    tls: Option<&Tls>,
) -> Result<(), Outage> {
    let asked = async {
        // One that could not ask has changed nothing.
        let Ok(stream) = Stream::connect(address).await else { return Ok(()) };
        let Ok(stream) = secured(stream, tls).await else { return Ok(()) };
        let (mut read, mut write) = stream.split();
        let mut bytes = BytesMut::new();
        frontend::cancel_request(process, secret, &mut bytes);
        let (written, _) = write.write_all(bytes.to_vec()).await;
        if written.is_err() {
            return Err(Outage::lost());
        }
        match read.read(BytesMut::with_capacity(READ_BYTES_MIN)).await.0 {
            Ok(0) => Ok(()),
            _ => Err(Outage::lost()),
        }
    };
    rt::timeout(CANCEL_TIMEOUT, asked).await.unwrap_or_else(|| Err(Outage::lost()))
}

/// Reads what comes, until the connection ends.
async fn read_all(shared: Rc<Shared>, mut read: ReadHalf, mut buffer: BytesMut) {
    let outage = loop {
        match shared.take(&mut buffer) {
            Ok(()) => {}
            Err(outage) => break outage,
        }
        if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
            buffer.reserve(READ_BYTES);
        }
        let (result, filled) = read.read(buffer).await;
        buffer = filled;
        if !matches!(result, Ok(1..)) {
            break Outage::lost();
        }
        shared.heard_ns.set(monotonic_ns());
        shared.reads.set(shared.reads.get() + 1);
    };
    shared.outage.borrow_mut().get_or_insert(outage);
    shared.ended.set();
    shared.work.set();
}

impl Shared {
    /// Takes every whole message that was read.
    fn take(&self, buffer: &mut BytesMut) -> Result<(), Outage> {
        while let Some(message) = codec::next_message(buffer).map_err(Outage::protocol)? {
            if let Message::NotificationResponse(_) = message {
                // Only who has asked for it is told something.
                self.work.set();
                continue;
            }
            let mut waits = self.waits.borrow_mut();
            let is_over = match &mut *waits {
                Waits::Batch(receiver) => receiver.take(message).map_err(Outage::protocol)?,
                Waits::Query { rows, error } => match message {
                    Message::DataRow(body) => {
                        let cut = |_| Outage::protocol(ProtocolError("a row is cut"));
                        let range = body.ranges().next().map_err(cut)?.flatten();
                        let text = range.and_then(|range| body.buffer().get(range));
                        rows.push(text.map(|text| String::from_utf8_lossy(text).into_owned()));
                        false
                    }
                    Message::ErrorResponse(body) => {
                        error.get_or_insert_with(|| SqlError::read(&body));
                        false
                    }
                    Message::ReadyForQuery(_) => true,
                    _ => false,
                },
                Waits::Nothing | Waits::Over(_) => match message {
                    // It says why it ends the connection.
                    Message::ErrorResponse(body) => return Err(SqlError::read(&body).into()),
                    Message::NoticeResponse(_) | Message::ParameterStatus(_) => false,
                    _ => return Err(Outage::protocol(ProtocolError("an answer to nothing"))),
                },
            };
            if is_over {
                let over = std::mem::take(&mut *waits);
                *waits = Waits::Over(Box::new(over));
                self.ended.set();
            }
        }
        Ok(())
    }
}

async fn dial(config: &PostgresConfig) -> io::Result<(Stream, SocketAddr)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in resolve(&config.host, config.port).await? {
        match Stream::connect(address).await {
            Ok(stream) => return Ok((stream, address)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The connection with TLS, if it is to have it.
async fn secured(mut stream: Stream, tls: Option<&Tls>) -> Result<Stream, Outage> {
    let Some(tls) = tls else { return Ok(stream) };
    let unreachable = |error| Outage::unreachable(&error);
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_in_clear(request.to_vec()).await.map_err(unreachable)?;
    let (read, consent) = stream.read_in_clear(BytesMut::new()).await;
    read.map_err(unreachable)?;
    match &consent[..] {
        b"S" => {}
        b"" => return Err(Outage::unreachable(&io::ErrorKind::UnexpectedEof.into())),
        b"N" => {
            return Err(Outage::tls_not_spoken(
                "it does not speak TLS: set `ssl = on` there, or leave `tls` out of the platform file",
            ));
        }
        // What comes with the consent did not come through TLS, and may be anybody's.
        [b'S', ..] => {
            return Err(Outage::tls_not_spoken("it says more in clear than that it speaks TLS"));
        }
        _ => return Err(Outage::protocol(ProtocolError("no answer to SSLRequest"))),
    }
    stream
        .secure_to(&tls.connector)
        .await
        .map_err(|failure| Outage::tls(failure, &tls.files.server_name))
}

/// A connection that is not logged in yet.
struct Login {
    read: ReadHalf,
    write: WriteHalf,
    buffer: BytesMut,
    is_secured: bool,
    /// The connection's number and its secret.
    key: Option<(i32, i32)>,
}

impl Login {
    async fn run(&mut self, config: &PostgresConfig) -> Result<(), Outage> {
        let parameters = [
            ("user", config.user.as_str()),
            ("database", config.database.as_str()),
            ("client_encoding", "UTF8"),
            ("application_name", config.application_name.as_str()),
        ];
        self.say(|out| frontend::startup_message(parameters, out)).await?;
        let mut scram: Option<ScramSha256> = None;
        let mut is_proven = false;
        for _ in 0..LOGIN_MESSAGES_MAX {
            match self.hear().await? {
                Message::AuthenticationSasl(body) => {
                    let mechanisms: Vec<&str> = body.mechanisms().collect().unwrap_or_default();
                    if !mechanisms.contains(&SCRAM_SHA_256) {
                        return Err(Outage::login(format!(
                            "it offers logins by {mechanisms:?}, not by SCRAM-SHA-256"
                        )));
                    }
                    let Some(password) = &config.password else {
                        return Err(Outage::login(
                            "it asks for a password and none is configured".to_owned(),
                        ));
                    };
                    let begun =
                        ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                    let message = begun.message().to_vec();
                    scram = Some(begun);
                    self.say(|out| frontend::sasl_initial_response(SCRAM_SHA_256, &message, out))
                        .await?;
                }
                Message::AuthenticationSaslContinue(body) => {
                    let scram = scram.as_mut().ok_or_else(unexpected)?;
                    scram.update(body.data()).map_err(refused)?;
                    let message = scram.message().to_vec();
                    self.say(|out| frontend::sasl_response(&message, out)).await?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    scram.as_mut().ok_or_else(unexpected)?.finish(body.data()).map_err(refused)?;
                    is_proven = true;
                }
                // A server that skips the proof does not know the password either.
                Message::AuthenticationOk if scram.is_some() && !is_proven => {
                    return Err(unexpected());
                }
                Message::BackendKeyData(body) => {
                    self.key = Some((body.process_id(), body.secret_key()));
                }
                Message::AuthenticationOk
                | Message::ParameterStatus(_)
                | Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => return Err(SqlError::read(&body).into()),
                Message::AuthenticationCleartextPassword
                | Message::AuthenticationMd5Password(_) => {
                    return Err(Outage::login(
                        "it asks for the password in clear or as MD5, which is not sent: set password_encryption to \
                         scram-sha-256 and give the role its password again"
                            .to_owned(),
                    ));
                }
                _ => return Err(unexpected()),
            }
        }
        Err(unexpected())
    }

    async fn say(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<(), Outage> {
        let mut out = BytesMut::new();
        write(&mut out).map_err(|error| {
            Outage::unfit(
                "BACKEND_LOGIN_IMPOSSIBLE",
                format!("the login cannot be written: {error}"),
            )
        })?;
        let (written, _) = self.write.write_all(out.to_vec()).await;
        written.map_err(|error| self.broken(&error))
    }

    /// The connection has failed. With TLS 1.3 a server tells only now that it does not take our certificate.
    fn broken(&self, error: &io::Error) -> Outage {
        match self.is_secured {
            true => Outage::tls_refused(error),
            false => Outage::unreachable(error),
        }
    }

    async fn hear(&mut self) -> Result<Message, Outage> {
        loop {
            if let Some(message) =
                codec::next_message(&mut self.buffer).map_err(Outage::protocol)?
            {
                return Ok(message);
            }
            if self.buffer.len() > READ_BYTES {
                return Err(unexpected());
            }
            self.buffer.reserve(READ_BYTES_MIN);
            let (result, filled) = self.read.read(std::mem::take(&mut self.buffer)).await;
            self.buffer = filled;
            match result {
                Ok(0) => return Err(Outage::unreachable(&io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }
}

fn unexpected() -> Outage {
    Outage::protocol(ProtocolError("a login that goes otherwise than PostgreSQL's"))
}

fn refused(error: io::Error) -> Outage {
    Outage::login(format!("the login by SCRAM has failed: {error}"))
}

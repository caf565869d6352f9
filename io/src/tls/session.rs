//! One TLS connection: what its peer sent becomes plaintext, what is to be sent becomes records.
//!
//! rustls's `unbuffered` connections want the same input again for as long as a handshake message is in it of which only a part has
//! come, also when something is to be sealed, and break down otherwise. Here a read may be under way at that time, which
//! owns the input; so a message in parts is taken during the handshake, when nothing is sealed, and refused after it: what
//! comes then is a few bytes (a key update) or a ticket, which nobody cuts. Nor do they stand being asked anything after an
//! error but what alert is to be sent.

use std::ops::Deref;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedConnectionCommon,
    UnbufferedStatus,
};
use rustls::{ClientConfig, CommonState, Error, PeerMisbehaved, ServerConfig};

use super::PeerIdentity;

/// Parts of what is sent that are shorter than this many bytes are copied together into one record; a longer one is sealed from
/// where it lies.
pub const GATHER_BYTES_MAX: usize = 4 * 1024;

/// The payload of the largest record.
const RECORD_BYTES_MAX: usize = 16 * 1024;
/// What a record adds to its payload, at most: header, explicit nonce (1.2), content type (1.3), tag.
const RECORD_OVERHEAD_BYTES_MAX: usize = 5 + 8 + 1 + 16;
/// Room for a handshake message; more is made when one asks for it.
const MESSAGE_BYTES: usize = 1024;

/// Records that are to be sent. Its buffer is used again and again and cleared but once.
#[derive(Default)]
pub struct Sealed {
    /// Written before, as far as it reaches; only the first `filled` bytes mean anything.
    bytes: Vec<u8>,
    filled: usize,
    /// Short parts on their way into one record.
    gathered: Vec<u8>,
}

impl Sealed {
    /// Bytes that are to be sent.
    #[inline]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether there is nothing to be sent.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Whether it has not even a buffer.
    pub(crate) fn is_unused(&self) -> bool {
        self.bytes.capacity() == 0 && self.gathered.capacity() == 0
    }

    /// Whether it holds nothing, nor anything on its way into a record.
    pub(crate) fn is_blank(&self) -> bool {
        self.filled == 0 && self.gathered.is_empty()
    }

    /// What is to be sent.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Forgets what was to be sent; gives the buffer back where it is larger than `kept_bytes_max`.
    pub fn clear(&mut self, kept_bytes_max: usize) {
        self.filled = 0;
        if self.bytes.len() > kept_bytes_max {
            self.bytes = Vec::new();
        }
    }

    /// Adds what `other` holds.
    pub(crate) fn append(&mut self, other: &Self) {
        let count = other.len();
        self.room(count)[..count].copy_from_slice(other.as_slice());
        self.filled += count;
    }

    /// Takes the buffer out for a write; [`Sealed::put_back`] returns it.
    pub(crate) fn take(&mut self) -> (Vec<u8>, usize) {
        (std::mem::take(&mut self.bytes), std::mem::take(&mut self.filled))
    }

    pub(crate) fn put_back(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.is_empty(), "nothing is sealed while a write goes on");
        self.bytes = bytes;
    }

    fn room(&mut self, count: usize) -> &mut [u8] {
        if self.bytes.len() < self.filled + count {
            self.bytes.resize(self.filled + count, 0);
        }
        &mut self.bytes[self.filled..]
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// More of the peer's handshake is needed.
    Handshaking,
    /// Both sides may send.
    Open,
    /// The peer has said that it sends nothing more (close_notify).
    PeerClosed,
}

/// One connection of either role.
pub struct Session {
    side: Side,
    failed: Option<Error>,
    peer_closed: bool,
    close_sent: bool,
}

enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// Runs one expression with the connection of either role.
macro_rules! with_side {
    ($side:expr, $connection:ident => $act:expr) => {
        match $side {
            Side::Server($connection) => $act,
            Side::Client($connection) => $act,
        }
    };
}

impl Session {
    /// The server's side of a connection.
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::new(Side::Server(Box::new(UnbufferedServerConnection::new(config)?))))
    }

    /// The client's side of a connection to the server of this name.
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, Error> {
        Ok(Self::new(Side::Client(Box::new(UnbufferedClientConnection::new(config, name)?))))
    }

    fn new(side: Side) -> Self {
        Self { side, failed: None, peer_closed: false, close_sent: false }
    }

    fn common(&self) -> &CommonState {
        with_side!(&self.side, connection => connection)
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        match self.common().is_handshaking() {
            true => Phase::Handshaking,
            false if self.peer_closed => Phase::PeerClosed,
            false => Phase::Open,
        }
    }

    /// The protocol that both sides have agreed on, if they named any.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.common().alpn_protocol()
    }

    /// Whether the handshake took an earlier connection up again.
    pub fn is_resumed(&self) -> bool {
        self.common().handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// Who the peer has shown to be, if it was asked and answered.
    pub fn peer_identity(&self) -> Option<PeerIdentity> {
        PeerIdentity::of(self.common().peer_certificates()?.first()?)
    }

    /// Whether we have said goodbye.
    pub fn is_closing(&self) -> bool {
        self.close_sent
    }

    /// Takes all whole records from the front of `incoming`. Their plaintext is appended to `plain`, what has to be answered (in the
    /// handshake, or an alert) to `sealed`. After an error the connection is over; its alert is in `sealed`. After
    /// [`Session::close`] what comes is thrown away.
    pub fn receive(
        &mut self,
        incoming: &mut BytesMut,
        plain: &mut BytesMut,
        sealed: &mut Sealed,
    ) -> Result<Phase, Error> {
        self.check()?;
        if self.close_sent {
            // Nobody waits for more, and a fault would be answered although we have said goodbye.
            incoming.clear();
            return Ok(self.phase());
        }
        let result = with_side!(&mut self.side, connection => {
            receive(&mut **connection, incoming, plain, sealed)
        });
        let closed = result.inspect_err(|error| self.failed = Some(error.clone()))?;
        self.peer_closed |= closed;
        if !closed && !self.common().is_handshaking() && begins_with_whole_record(incoming) {
            self.close_sent = true;
            let _ = with_side!(&mut self.side, connection => {
                seal(&mut **connection, incoming, Content::Close, sealed)
            });
            let error = Error::PeerMisbehaved(PeerMisbehaved::KeyEpochWithPendingFragment);
            self.failed = Some(error.clone());
            return Err(error);
        }
        Ok(self.phase())
    }

    fn check(&self) -> Result<(), Error> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Begins the handshake of a client: its first message goes to `sealed`.
    pub fn start(&mut self, sealed: &mut Sealed) -> Result<(), Error> {
        self.receive(&mut BytesMut::new(), &mut BytesMut::new(), sealed).map(|_| ())
    }

    /// Appends the records of `part` to `sealed`. A short part may wait for the next one, or for [`Session::flush`].
    pub fn seal(&mut self, part: &[u8], sealed: &mut Sealed) -> Result<(), Error> {
        if part.len() < GATHER_BYTES_MAX {
            if sealed.gathered.len() + part.len() > RECORD_BYTES_MAX {
                self.flush(sealed)?;
            }
            sealed.gathered.extend_from_slice(part);
            return Ok(());
        }
        self.flush(sealed)?;
        self.seal_whole(part, sealed)
    }

    /// Seals the short parts that wait.
    pub fn flush(&mut self, sealed: &mut Sealed) -> Result<(), Error> {
        if sealed.gathered.is_empty() {
            return Ok(());
        }
        let gathered = std::mem::take(&mut sealed.gathered);
        let result = self.seal_whole(&gathered, sealed);
        sealed.gathered = gathered;
        sealed.gathered.clear();
        result
    }

    /// Appends the records of `plain` to `sealed`, as few as possible.
    pub fn seal_whole(&mut self, plain: &[u8], sealed: &mut Sealed) -> Result<(), Error> {
        self.check()?;
        let content = Content::Data(plain);
        let result = with_side!(&mut self.side, connection => {
            seal(&mut **connection, &mut [], content, sealed)
        });
        result.inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// Says to the peer that nothing more comes (close_notify), once, and not after a failure.
    pub fn close(&mut self, sealed: &mut Sealed) {
        if self.failed.is_some() || self.close_sent || self.common().is_handshaking() {
            return;
        }
        self.close_sent = true;
        let result = with_side!(&mut self.side, connection => {
            seal(&mut **connection, &mut [], Content::Close, sealed)
        });
        // A connection that cannot say goodbye is closed all the same.
        self.failed = result.err();
    }
}

/// What both of rustls's connections can do.
trait Records: Deref<Target = UnbufferedConnectionCommon<Self::Data>> {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// Returns whether the peer has closed.
fn receive<R: Records>(
    connection: &mut R,
    incoming: &mut BytesMut,
    plain: &mut BytesMut,
    sealed: &mut Sealed,
) -> Result<bool, Error> {
    loop {
        let UnbufferedStatus { mut discard, state, .. } = connection.process(incoming);
        let ended = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    Some(Err(error)) => break Some(Err(error)),
                    None => break None,
                }
            },
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut data, sealed);
                None
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                // It is in `sealed`, which leaves before anything that comes later.
                data.done();
                None
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                Some(Ok(false))
            }
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(Ok(true)),
            Ok(other) => unreachable!("nothing of ours leads to {other:?}"),
            Err(error) => Some(Err(error)),
        };
        incoming.advance(discard);
        match ended {
            None => {}
            Some(Ok(closed)) => return Ok(closed),
            Some(Err(error)) => {
                while wants_write(connection) {
                    let Ok(ConnectionState::EncodeTlsData(mut data)) =
                        connection.process(&mut []).state
                    else {
                        break;
                    };
                    encode(&mut data, sealed);
                }
                return Err(error);
            }
        }
    }
}

fn wants_write<R: Records>(connection: &R) -> bool {
    let common: &CommonState = connection;
    common.wants_write()
}

/// Whether a record was left lying that is there as a whole.
fn begins_with_whole_record(records: &[u8]) -> bool {
    matches!(*records, [_, _, _, high, low, ref rest @ ..]
        if rest.len() >= usize::from(u16::from_be_bytes([high, low])))
}

fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, sealed: &mut Sealed) {
    let mut room = MESSAGE_BYTES;
    loop {
        match data.encode(sealed.room(room)) {
            Ok(count) => return sealed.filled += count,
            Err(EncodeError::InsufficientSize(needed)) => room = needed.required_size,
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

enum Content<'a> {
    Data(&'a [u8]),
    Close,
}

fn seal<R: Records>(
    connection: &mut R,
    incoming: &mut [u8],
    content: Content<'_>,
    sealed: &mut Sealed,
) -> Result<(), Error> {
    let mut room = match content {
        Content::Data(plain) => {
            let records = plain.len().div_ceil(RECORD_BYTES_MAX);
            plain.len() + records * RECORD_OVERHEAD_BYTES_MAX
        }
        Content::Close => RECORD_OVERHEAD_BYTES_MAX + 2,
    };
    loop {
        match connection.process(incoming).state? {
            ConnectionState::EncodeTlsData(mut data) => encode(&mut data, sealed),
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::WriteTraffic(mut traffic) => {
                let result = match content {
                    Content::Data(plain) => traffic.encrypt(plain, sealed.room(room)),
                    Content::Close => traffic.queue_close_notify(sealed.room(room)),
                };
                match result {
                    Ok(count) => {
                        sealed.filled += count;
                        return Ok(());
                    }
                    // A key update goes first.
                    Err(EncryptError::InsufficientSize(needed)) if needed.required_size > room => {
                        room = needed.required_size;
                    }
                    Err(error) => return Err(Error::General(format!("cannot encrypt: {error}"))),
                }
            }
            // The peer has closed, or it is too early: what is not to be sent any more is no loss.
            _ => return Ok(()),
        }
    }
}

//! Which slot a key is in, which node has which slots, and where a node sends us instead; without I/O.
//!
//! Specification: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.

use std::hash::Hasher;
use std::ops::RangeInclusive;

use siphasher::sip::SipHasher13;

/// Slots of a cluster.
pub(crate) const SLOTS: usize = 16_384;

/// Host and port of a node.
pub(crate) type Address = (String, u16);

const CRC16: [u16; 256] = crc16_table();

/// CRC-16/XMODEM: polynomial 0x1021, from 0, neither reflected nor inverted.
const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

/// What of a key decides about its slot, if it is not all of it: what stands between the first `{` and the first `}` behind it.
fn tag(key: &[u8]) -> Option<&[u8]> {
    let begin = key.iter().position(|byte| *byte == b'{')? + 1;
    let length = key[begin..].iter().position(|byte| *byte == b'}')?;
    (length > 0).then(|| &key[begin..begin + length])
}

/// The slot of the key `<namespace>:<key>`; no name of a namespace has a brace.
pub(crate) fn slot_of(namespace: &str, key: &[u8]) -> u16 {
    let crc = match tag(key) {
        Some(tag) => crc16(0, tag),
        None => crc16(crc16(crc16(0, namespace.as_bytes()), b":"), key),
    };
    crc % SLOTS as u16
}

/// The slot of a key as Redis knows it.
pub(crate) fn slot_of_whole(key: &[u8]) -> u16 {
    crc16(0, tag(key).unwrap_or(key)) % SLOTS as u16
}

/// A node that has slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Master {
    pub(crate) id: Box<str>,
    pub(crate) address: Address,
    pub(crate) ranges: Vec<RangeInclusive<u16>>,
}

/// What CLUSTER NODES says.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    /// Those that have slots, by their ids.
    pub(crate) masters: Vec<Master>,
    /// What the node that was asked says about itself: another number whenever it has got or given away slots.
    pub(crate) own: u64,
    /// Whether slots are moving to it or from it.
    pub(crate) is_open: bool,
}

impl Nodes {
    /// Reads it; `asked` is where the node was asked that says so, which may not know its own address.
    pub(crate) fn read(text: &str, asked: &Address) -> Self {
        let mut nodes = Nodes::default();
        for line in text.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            let [id, at, flags, _, _, _, epoch, _, slots @ ..] = &fields[..] else { continue };
            let has = |flag: &str| flags.split(',').any(|one| one == flag);
            let (open, settled): (Vec<&str>, Vec<&str>) =
                slots.iter().partition(|slot| slot.starts_with('['));
            if has("myself") {
                nodes.is_open = !open.is_empty();
                let mut hasher = SipHasher13::new();
                [id, epoch].iter().for_each(|part| hasher.write(part.as_bytes()));
                settled.iter().for_each(|part| hasher.write(part.as_bytes()));
                nodes.own = hasher.finish();
            }
            let ranges: Vec<_> = settled.iter().filter_map(|range| read_range(range)).collect();
            if !has("master") || has("fail") || has("noaddr") || ranges.is_empty() {
                continue;
            }
            if let Some(address) = read_address(at, asked) {
                nodes.masters.push(Master { id: (*id).into(), address, ranges });
            }
        }
        nodes.masters.sort_by(|one, other| one.id.cmp(&other.id));
        nodes
    }
}

/// `ip:port@bus`, and what may follow.
fn read_address(text: &str, asked: &Address) -> Option<Address> {
    let (host, port) = text.split('@').next()?.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some((if host.is_empty() { asked.0.clone() } else { host.to_owned() }, port))
}

/// `7` or `0-5460`.
fn read_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && usize::from(last) < SLOTS).then_some(first..=last)
}

/// Where a node sends us instead of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Redirection {
    /// The slot is there from now on.
    Moved(u16, Address),
    /// This key may be there, whose slot is on its way.
    Ask(Address),
    /// Some of the keys are here and some are there.
    TryAgain,
}

impl Redirection {
    /// Of an error that `asked` has answered, without the `-`; nothing where it is another one.
    pub(crate) fn read(error: &[u8], asked: &Address) -> Option<Self> {
        let text = std::str::from_utf8(error).ok()?;
        let mut words = text.split(' ');
        let kind = words.next()?;
        if kind == "TRYAGAIN" {
            return Some(Redirection::TryAgain);
        }
        if !matches!(kind, "MOVED" | "ASK") {
            return None;
        }
        let slot = words.next()?.parse().ok().filter(|slot| usize::from(*slot) < SLOTS)?;
        let address = read_address(words.next()?, asked)?;
        Some(match kind {
            "MOVED" => Redirection::Moved(slot, address),
            _ => Redirection::Ask(address),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Address {
        ("10.0.0.9".to_owned(), 7000)
    }

    #[test]
    fn slots_are_those_of_redis() {
        // As CLUSTER KEYSLOT says, and the specification.
        assert_eq!(crc16(0, b"123456789"), 0x31c3);
        assert_eq!(slot_of_whole(b"foo"), 12_182);
        assert_eq!(slot_of_whole(b"{user1000}.following"), slot_of_whole(b"user1000"));
        assert_eq!(slot_of_whole(b"foo{{bar}}zap"), slot_of_whole(b"{bar"));
        assert_eq!(slot_of_whole(b"foo{bar}{zap}"), slot_of_whole(b"bar"));
        for key in ["a", "foo{}{bar}", "{7}:status", "a{b", "}{", "{}"] {
            let whole = format!("orders:{key}");
            let slot = slot_of("orders", key.as_bytes());
            assert_eq!(slot, slot_of_whole(whole.as_bytes()), "{key}");
        }
        assert_ne!(slot_of_whole(b"orders:foo{}{bar}"), slot_of_whole(b"bar"));
    }

    #[test]
    fn nodes_are_read_as_they_are_told() {
        let text = "bb 127.0.0.1:7001@17001,hostname master - 0 1 2 connected 5461-10922 16000\n\
            aa :7000@17000 myself,master - 0 0 1 connected 0-5460 [5000->-bb]\n\
            cc 127.0.0.1:7002@17002 slave aa 0 1 1 connected\n\
            dd ::1:7003@17003 master,fail? - 0 1 3 connected 10923-15999\n\
            ee 127.0.0.1:7004@17004 master,fail - 0 1 4 disconnected 16001-16383\n\
            ff :0@0 master,noaddr - 0 1 4 disconnected 16001-16383\nnonsense\n";
        let nodes = Nodes::read(text, &asked());
        let masters: Vec<_> = nodes.masters.iter().map(|one| (&*one.id, &*one.address.0)).collect();
        assert_eq!(masters, [("aa", "10.0.0.9"), ("bb", "127.0.0.1"), ("dd", "::1")]);
        assert_eq!(nodes.masters[1].ranges, [5461..=10_922, 16_000..=16_000]);
        assert!(nodes.is_open);
        let settled = Nodes::read(&text.replace(" [5000->-bb]", ""), &asked());
        assert!(!settled.is_open && settled.own == nodes.own);
        let other = Nodes::read(&text.replace(" 0-5460", " 0-5459"), &asked());
        assert_ne!(other.own, nodes.own);
    }

    #[test]
    fn redirections_are_read_and_nothing_else_is_one() {
        let read = |text: &str| Redirection::read(text.as_bytes(), &asked());
        let at = |host: &str, port| (host.to_owned(), port);
        assert_eq!(
            read("MOVED 3999 127.0.0.1:1"),
            Some(Redirection::Moved(3999, at("127.0.0.1", 1)))
        );
        assert_eq!(read("ASK 3999 ::1:6381"), Some(Redirection::Ask(at("::1", 6381))));
        assert_eq!(read("MOVED 3999 :6381"), Some(Redirection::Moved(3999, at("10.0.0.9", 6381))));
        assert_eq!(read("TRYAGAIN Multiple keys request"), Some(Redirection::TryAgain));
        for other in
            ["", "ERR x", "MOVED", "MOVED 16384 a:1", "MOVED 1 a:0", "ASK 1 a", "MOVEDX 1 a:1"]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }
}

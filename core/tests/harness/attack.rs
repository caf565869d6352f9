//! An attack beside a well-behaved client: what that one feels, what memory it costs, and what the metrics call it.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prism_io::tls::{Connector, Roots};

use super::{Neighbour, Server, directory, serve};

/// Resident memory that an attack may make the server use at its worst; it begins with about 18 MiB.
pub const ATTACK_KIB_MAX: u64 = 56 * 1024;

/// Rounds of the neighbour that are timed before an attack, and at least during it.
const TIMED: usize = 100;
/// How much slower its 99th percentile may become: a part of the one core that both share, and what a machine does meanwhile.
const SLOWER_MAX: u32 = 10;
const JITTER: Duration = Duration::from_millis(100);
/// How often that is looked at: an attack that is felt is felt each time, what else goes on on the machine is not.
const LOOKS_MAX: usize = 10;

/// A small log, and room in it for what these tests write.
const CONFIG: &str = "wal: {segment_bytes: 20MiB}\n";

/// One attack at a time, so that what a neighbour feels is that attack's.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `attack` beside a neighbour, and sees that the server is as before.
pub fn beside_a_neighbour(attack: impl FnMut(&Server)) {
    Attack::default().run(attack);
}

/// The same, and the metric names these kinds of refusal.
pub fn refused_as(kinds: &[&str], attack: impl FnMut(&Server)) {
    Attack { kinds, ..Attack::default() }.run(attack);
}

pub struct Attack<'a> {
    /// Resident memory that it may make the server use at its worst.
    pub memory_kib_max: u64,
    /// Beside `CONFIG`.
    pub config: &'a str,
    /// What of it the metric has to name.
    pub kinds: &'a [&'a str],
    /// Where the server's certificate is, if it speaks TLS: `server.pem` and `server.key`.
    pub certificate: Option<&'a Path>,
}

impl Default for Attack<'_> {
    fn default() -> Self {
        Self { memory_kib_max: ATTACK_KIB_MAX, config: "", kinds: &[], certificate: None }
    }
}

impl Attack<'_> {
    /// Attacks until the neighbour has worked under it for long enough to compare.
    pub fn run(&self, mut attack: impl FnMut(&Server)) {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = directory();
        let mut setup = serve(directory.path()).config(&format!("{CONFIG}{}", self.config));
        if let Some(folder) = self.certificate {
            for (flag, name) in [("--tls-cert", "server.pem"), ("--tls-key", "server.key")] {
                setup = setup.flag(flag, &folder.join(name).display().to_string());
            }
        }
        let server = setup.start();
        let neighbour = Neighbour::trusting(&server, self.certificate.map(connector));
        let first = neighbour.rounds();
        neighbour.wait_rounds(TIMED);
        let before = neighbour.p99_from(first);
        let refused: Vec<f64> = self.kinds.iter().map(|kind| server.refused(kind)).collect();
        let mut looks = Vec::new();
        let felt_max = before * SLOWER_MAX + JITTER;
        while looks.last().is_none_or(|during| *during > felt_max) {
            assert!(looks.len() < LOOKS_MAX, "p99: {before:?} before, {looks:?} then");
            let first = neighbour.rounds();
            let mut attacks = 0;
            while attacks == 0 || neighbour.rounds() < first + TIMED {
                attack(&server);
                attacks += 1;
            }
            let during = neighbour.p99_from(first);
            println!("p99 of the neighbour: {before:?} before, {during:?} under {attacks} attacks");
            looks.push(during);
        }
        for (kind, before) in self.kinds.iter().zip(refused) {
            server.wait_refused(kind, before);
        }
        neighbour.leave();
        server.assert_well();
        let memory = server.memory_kib();
        assert!(memory <= self.memory_kib_max, "{memory} KiB resident");
        server.stop();
    }
}

/// Trusts the certificate of this folder.
pub fn connector(folder: &Path) -> Connector {
    Connector::new(&Roots::File(folder.join("server.pem")), "localhost").unwrap()
}

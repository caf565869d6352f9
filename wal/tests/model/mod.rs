//! A log on a simulated disk beside a model of what it promised: whatever happens, what comes back is held against it.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;

use prism_io::disk::sim::{SectorFate, Seeded, Simulation};
use prism_wal::driver::start;
use prism_wal::{
    AppendError, Lane, Log, LogConfig, Operation, RecordHead, RecordKind, RecoverError, Recovered,
    recover,
};

/// Sixteen pages a segment, so that a few calls go round the log.
pub fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 64 << 10,
        segments_max: 6,
        segments_ready: 2,
        batch_bytes: 8 << 10,
        record_bytes_max: 4 << 10,
        gather_bytes_max: 32 << 10,
        checkpoint_bytes_max: 256,
        lanes_max: 8,
        ..LogConfig::default()
    }
}

/// What a record was given and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub lane: Lane,
    pub lane_seq: u64,
    pub log_time_us: u64,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub struct Promises {
    /// Everything that may be in the log.
    pub appended: BTreeMap<u64, Kept>,
    /// Everything up to here was handed out as durable.
    pub durable_upto: u64,
    /// The highest trim that was asked for.
    pub trim_upto: u64,
}

impl Promises {
    /// Reads the log twice and holds it against the promises.
    pub fn recover(
        &mut self,
        disk: &Simulation,
        config: &LogConfig,
    ) -> Result<Recovered, RecoverError> {
        let mut found = BTreeMap::new();
        let recovered =
            recover(&mut disk.clone(), config, &mut |record: &prism_wal::Record<'_>| {
                if record.kind != RecordKind::Data {
                    return;
                }
                let (lane, body) = (record.head.lane, record.body.to_vec());
                let kept =
                    Kept { lane, lane_seq: record.lane_seq, log_time_us: record.log_time_us, body };
                assert!(found.insert(record.lsn, kept).is_none(), "LSN {} came twice", record.lsn);
            })?;
        let again = recover(&mut disk.clone(), config, &mut |_: &prism_wal::Record<'_>| {})
            .expect("reading twice gives the same");
        assert_eq!(format!("{recovered:?}"), format!("{again:?}"), "reading twice gives the same");
        self.check(&found, &recovered);
        // From here on the decision stands: what was not found is void, what was found is relied on.
        self.appended = found;
        self.durable_upto = recovered.end.next_lsn.max(1) - 1;
        Ok(recovered)
    }

    pub fn check(&self, found: &BTreeMap<u64, Kept>, recovered: &Recovered) {
        let promised = self.appended.range(self.trim_upto + 1..);
        for (lsn, kept) in promised.take_while(|(lsn, _)| **lsn <= self.durable_upto) {
            assert_eq!(found.get(lsn), Some(kept), "LSN {lsn} was acknowledged");
        }
        for (lsn, kept) in found {
            assert_eq!(
                Some(kept),
                self.appended.get(lsn),
                "LSN {lsn} was never appended, or was void"
            );
        }
        assert!(
            recovered.end.next_lsn.max(1) > self.durable_upto,
            "the log ends before what was acknowledged"
        );
        assert!(recovered.trim_upto <= self.trim_upto, "more was trimmed than was asked for");
        let times: Vec<u64> = found.values().map(|kept| kept.log_time_us).collect();
        assert!(times.is_sorted(), "log time never runs backwards");
    }
}

/// A running log and its model.
pub struct Running {
    pub disk: Simulation,
    pub log: Log,
    pub promises: Promises,
    /// Tokens and simulated writes under way.
    pub pending: Vec<(u64, u64)>,
}

pub fn nonce(random: &mut Seeded) -> [u8; 16] {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&random.number().to_le_bytes());
    nonce[8..].copy_from_slice(&random.number().to_le_bytes());
    nonce
}

pub fn head(namespace: u32) -> RecordHead<'static> {
    RecordHead { lane: Lane { namespace, partition: 0 }, ..RecordHead::default() }
}

impl Running {
    /// Recovers and starts. `None` when the power went meanwhile.
    pub fn open(
        disk: &Simulation,
        config: &LogConfig,
        mut promises: Promises,
        random: &mut Seeded,
    ) -> Result<Running, Promises> {
        let recovered = match promises.recover(disk, config) {
            Ok(recovered) => recovered,
            Err(error) => panic!("refused: {error}"),
        };
        match start(&mut disk.clone(), recovered, config.clone(), nonce(random), disk.now_us()) {
            Ok(log) => {
                promises.durable_upto = log.durable_upto();
                Ok(Running { disk: disk.clone(), log, promises, pending: Vec::new() })
            }
            Err(error) => {
                assert!(disk.is_off(), "{error}");
                Err(promises)
            }
        }
    }

    pub fn append(&mut self, namespace: u32, body: &[u8]) -> Result<u64, AppendError> {
        let lane = Lane { namespace, partition: 0 };
        let given = self.log.append(self.disk.now_us(), &head(namespace), body)?;
        let (lane_seq, log_time_us) = (given.lane_seq, given.log_time_us);
        let kept = Kept { lane, lane_seq, log_time_us, body: body.to_vec() };
        let before = self.promises.appended.insert(given.lsn, kept);
        assert!(before.is_none(), "LSN {} was given twice", given.lsn);
        Ok(given.lsn)
    }

    pub fn trim(&mut self, upto: u64) -> Result<(), AppendError> {
        self.log.trim(self.disk.now_us(), upto, &upto.to_le_bytes())?;
        self.promises.trim_upto = self.promises.trim_upto.max(upto);
        Ok(())
    }

    /// Submits everything the log wants written. Creations are executed at once.
    pub fn submit(&mut self) {
        while let Some(operation) = self.log.poll_operation(self.disk.now_us()) {
            match &operation {
                Operation::Write { token, file, offset, buffer } => {
                    let Ok(id) = self.disk.submit(&file.name(), *offset, buffer.as_slice()) else {
                        return;
                    };
                    self.pending.push((*token, id));
                }
                Operation::Create { .. } => {
                    let (token, result) =
                        prism_wal::driver::execute(&mut self.disk.clone(), &operation);
                    if self.disk.is_off() {
                        return;
                    }
                    self.log.handle_completion(token, result, self.disk.now_us());
                }
            }
        }
    }

    /// Completes one of the writes under way.
    pub fn complete(&mut self, index: usize) {
        let (token, id) = self.pending.remove(index);
        let result = self.disk.complete(id);
        if self.disk.is_off() {
            return;
        }
        self.log.handle_completion(token, result, self.disk.now_us());
        while let Some(batch) = self.log.poll_durable() {
            assert_eq!(
                batch.first_lsn(),
                self.promises.durable_upto + 1,
                "batches come in LSN order"
            );
            self.promises.durable_upto = batch.last_lsn();
            for record in batch.records().filter(|record| record.kind == RecordKind::Data) {
                assert_eq!(record.body, self.promises.appended[&record.lsn].body);
            }
        }
    }

    /// Completes a write without looking at what it held.
    pub fn complete_any(&mut self) {
        let (token, id) = self.pending.remove(0);
        self.log.handle_completion(token, self.disk.complete(id), self.disk.now_us());
    }

    /// Writes everything down and lets the log seal it.
    pub fn settle(&mut self) {
        for _ in 0..2 {
            loop {
                self.submit();
                if self.pending.is_empty() || self.disk.is_off() {
                    break;
                }
                self.complete(0);
            }
            self.disk.advance(self.log.config().seal_after_us + 1);
        }
    }

    pub fn close(&mut self) {
        self.log.close(self.disk.now_us());
        self.settle();
    }

    /// One random step of a caller or the disk.
    pub fn step(&mut self, random: &mut Seeded) {
        match random.below(10) {
            0..=4 => {
                let length =
                    if random.below(4) == 0 { random.below(3000) } else { random.below(100) };
                let body: Vec<u8> = (0..length).map(|_| random.number() as u8).collect();
                // Full or busy is an answer too.
                let _ = self.append(random.below(3) as u32, &body);
            }
            5 if random.below(4) == 0 => {
                let span = self.promises.durable_upto.saturating_sub(self.promises.trim_upto);
                let upto = self.promises.trim_upto + random.below(span + 1);
                let _ = self.trim(upto);
            }
            6 if random.below(4) == 0 => self.disk.advance(60_000),
            _ if !self.pending.is_empty() => {
                self.complete(random.below(self.pending.len() as u64) as usize)
            }
            _ => {}
        }
        if !self.disk.is_off() {
            self.submit();
        }
    }

    /// Steps until the power goes, or `steps` are done.
    pub fn run(&mut self, random: &mut Seeded, steps: usize) {
        for _ in 0..steps {
            if self.disk.is_off() {
                return;
            }
            self.step(random);
        }
    }
}

/// Puts the power on with fates from the seed.
pub fn power_on(disk: &Simulation, random: &mut Seeded) {
    disk.power_on(&mut || SectorFate::any(random));
}

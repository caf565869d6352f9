//! The log on a real file system, driven by the ring.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use prism_io::clock::wall_us;
use prism_io::disk::{Direct, DirectoryOptions};
use prism_io::rt;
use prism_wal::driver::{OpenError, Writer};
use prism_wal::{AppendError, Appended, DurableBatch, Lane, LogConfig, RecordHead};

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 256 << 10,
        segments_max: 8,
        batch_bytes: 16 << 10,
        record_bytes_max: 32 << 10,
        gather_bytes_max: 256 << 10,
        checkpoint_bytes_max: 1024,
        lanes_max: 64,
        ..LogConfig::default()
    }
}

fn head(namespace: u32) -> RecordHead<'static> {
    RecordHead { lane: Lane { namespace, partition: 0 }, ..RecordHead::default() }
}

fn directory() -> tempfile::TempDir {
    // Not /tmp, which may be a tmpfs.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// LSN and body of each record that came back.
type Seen = Vec<(u64, Vec<u8>)>;

fn open(path: &std::path::Path) -> (Rc<Writer>, Seen, bool) {
    let mut seen = Vec::new();
    let (writer, report) = Writer::open(
        path,
        DirectoryOptions::default(),
        config(),
        &mut |record: &prism_wal::Record<'_>| {
            seen.push((record.lsn, record.body.to_vec()));
        },
    )
    .unwrap();
    (writer, seen, report.clean)
}

/// Runs the writer in a task and gives the batches to `sink`.
fn spawn(writer: &Rc<Writer>, sink: Rc<dyn Fn(&DurableBatch)>) {
    let writer = writer.clone();
    rt::spawn(async move {
        writer.run(move |batch| sink(&batch)).await.unwrap();
    });
}

/// Appends once the disk has kept up.
async fn append(writer: &Writer, namespace: u32, body: &[u8]) -> Appended {
    loop {
        match writer.append(wall_us(), &head(namespace), body) {
            Err(AppendError::Busy) => rt::yield_now().await,
            result => return result.unwrap(),
        }
    }
}

#[test]
fn what_was_appended_comes_back_after_a_clean_close() {
    let directory = directory();
    let path = directory.path().to_path_buf();
    rt::run(async move {
        let (writer, seen, clean) = open(&path);
        assert!(seen.is_empty() && !clean);
        let durable = Rc::new(RefCell::new(Vec::new()));
        let sink = durable.clone();
        spawn(
            &writer,
            Rc::new(move |batch| {
                let calls = batch.records().filter(|record| !record.kind.is_own());
                sink.borrow_mut().extend(calls.map(|record| (record.lsn, record.body.to_vec())));
            }),
        );
        let mut appended = Vec::new();
        for round in 0..200u32 {
            for call in 0..3u32 {
                let body = format!("{round}/{call}").repeat(20);
                let given = append(&writer, call, body.as_bytes()).await;
                assert_eq!(given.lane_seq, u64::from(round) + 1);
                appended.push((given.lsn, body.into_bytes()));
            }
            rt::yield_now().await;
        }
        writer.close().await;
        assert_eq!(*durable.borrow(), appended);
        drop(writer);
        let (writer, seen, clean) = open(&path);
        assert_eq!(seen, appended);
        assert!(clean);
        assert_eq!(writer.append(wall_us(), &head(1), b"more").unwrap().lane_seq, 201);
    })
    .unwrap();
}

#[test]
fn a_log_without_a_close_comes_back_too_and_segments_are_used_again() {
    let directory = directory();
    let path = directory.path().to_path_buf();
    rt::run(async move {
        let (writer, _, _) = open(&path);
        let upto = Rc::new((Cell::new(0), rt::Signal::default()));
        let sink = upto.clone();
        spawn(
            &writer,
            Rc::new(move |batch| {
                sink.0.set(batch.last_lsn());
                sink.1.set();
            }),
        );
        let body = vec![7; 20 << 10];
        let mut given = Vec::new();
        for _ in 0..200 {
            given.push(append(&writer, 1, &body).await.lsn);
            while upto.0.get() < given[given.len() - 1] {
                upto.1.wait().await;
            }
            if let Some(upto) = given.len().checked_sub(6) {
                writer.trim(given[upto], b"five are left").unwrap();
            }
        }
        let status = writer.status();
        assert!(status.counters.recycled > 10, "{status:?}");
        assert!(status.segments_used + status.segments_spare <= 8);
        // The writer task still holds it; another process would be refused as well.
        let second = Writer::open(
            &path,
            DirectoryOptions::default(),
            config(),
            &mut |_: &prism_wal::Record<'_>| {},
        );
        let Err(OpenError::Directory(error)) = second else { panic!("the directory is locked") };
        assert!(
            error.to_string().contains(&format!("in use by process {}", std::process::id())),
            "{error}"
        );
        writer.close().await;
        drop(writer);
        rt::yield_now().await;
        let (writer, seen, _) = open(&path);
        assert_eq!(seen.len(), 5);
        assert_eq!(seen[4].0, given[199]);
        drop(writer);
        let (_, seen, clean) = open(&path);
        assert_eq!((seen.len(), clean), (5, false));
    })
    .unwrap();
}

#[test]
fn a_file_system_without_direct_writes_is_refused_where_they_are_required() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return };
    let options = DirectoryOptions { direct: Direct::Required, sync: None };
    match Writer::open(directory.path(), options, config(), &mut |_: &prism_wal::Record<'_>| {}) {
        Err(OpenError::Directory(error)) => {
            assert!(error.to_string().contains("O_DIRECT"), "{error}")
        }
        Ok((writer, _)) => assert!(writer.directory().is_direct()),
        Err(error) => panic!("{error}"),
    }
    let (writer, _) = Writer::open(
        directory.path(),
        DirectoryOptions::default(),
        config(),
        &mut |_: &prism_wal::Record<'_>| {},
    )
    .unwrap();
    assert!(writer.directory().probe().latency_us() < 1_000_000);
}

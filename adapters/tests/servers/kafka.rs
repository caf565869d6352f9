//! A Kafka of a test's own: one node, broker and controller, to be killed, frozen and configured at will.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starting a JVM and a broker in it, on a slow machine that is busy.
const START_MAX: Duration = Duration::from_secs(120);

/// See the module.
pub(crate) struct OwnKafka {
    child: Child,
    /// Where clients find it.
    pub(crate) address: SocketAddr,
    directory: tempfile::TempDir,
}

impl OwnKafka {
    /// Starts one on free ports.
    pub(crate) fn start() -> Self {
        Self::with(&[], "", &[])
    }

    /// Starts one with these listeners beside the plain one, these settings, and these users, each as `StorageTool` takes them.
    pub(crate) fn with(listeners: &[(&str, SocketAddr)], more: &str, users: &[&str]) -> Self {
        // That `dev/servers` has fetched its jars.
        super::address("kafka");
        let [address, controller] = [free_address(), free_address()];
        let directory = tempfile::tempdir().unwrap();
        let mut advertised = format!("PLAINTEXT://{address}");
        for (protocol, address) in listeners {
            advertised += &format!(",{protocol}://{address}");
        }
        let settings = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@{controller}\n\
             controller.listener.names=CONTROLLER\nadvertised.listeners={advertised}\n\
             listeners={advertised},CONTROLLER://{controller}\nlog.dirs={}\n{more}\
             auto.create.topics.enable=false\noffsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\ntransaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\ntransaction.state.log.num.partitions=1\n\
             group.initial.rebalance.delay.ms=0\nlog.cleaner.dedupe.buffer.size=16777216\n",
            directory.path().join("data").display()
        );
        std::fs::write(directory.path().join("server.properties"), settings).unwrap();
        let formatted = java(directory.path())
            .args(["kafka.tools.StorageTool", "format", "-t", "prism-own-server-0000A", "-c"])
            .arg(directory.path().join("server.properties"))
            .args(users.iter().flat_map(|user| ["--add-scram", user]))
            .output()
            .expect("java can be run");
        let said = String::from_utf8_lossy(&formatted.stderr).into_owned();
        assert!(formatted.status.success(), "the storage cannot be formatted: {said}");
        let child = Self::spawn(directory.path(), address);
        OwnKafka { child, address, directory }
    }

    fn spawn(directory: &Path, address: SocketAddr) -> Child {
        let child = java(directory)
            .arg("kafka.Kafka")
            .arg(directory.join("server.properties"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("java can be run");
        let until = Instant::now() + START_MAX;
        while !answers(address) {
            assert!(Instant::now() < until, "the test's Kafka does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = Self::spawn(self.directory.path(), self.address);
    }

    /// Freezes the process, or has it go on.
    pub(crate) fn set_frozen(&self, frozen: bool) {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where nobody listens at the moment.
pub(crate) fn free_address() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

fn java(directory: &Path) -> Command {
    let mut command = Command::new("java");
    command
        .args(["-Xms96m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .args(["-XX:-UsePerfData", "-Djava.awt.headless=true", "-Dlog4j2.level=ERROR", "-cp"])
        .arg(jars().join("*"))
        .current_dir(directory);
    command
}

/// Where `dev/servers` keeps the jars of the version that it runs.
fn jars() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let all = root.join("target/servers/kafka/jars");
    let versions = std::fs::read_dir(&all).expect("dev/servers has fetched Kafka");
    let mut complete: Vec<_> = versions
        .map(|version| version.unwrap().path())
        .filter(|version| version.join("complete").exists())
        .collect();
    complete.sort();
    complete.pop().expect("dev/servers has fetched all of Kafka")
}

/// Whether it answers ApiVersions (key 18, version 0), the first thing that any client asks.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<[u8; 10]> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"\0\0\0\x0a\0\x12\0\0\0\0\0\x01\xff\xff")?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer[4..] == [0, 0, 0, 1, 0, 0])
}

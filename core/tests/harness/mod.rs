//! The real binary under test: started, watched, stopped, killed.
//!
//! Every server has a data directory of its own on a real disk and free ports, is waited for by what it says, and is
//! killed by its id when its handle is dropped. A handle that is dropped in peace shows that the server did not panic.
//! Every wait is for an event, with a deadline.

// Each test binary uses a part of this.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod attack;
pub mod calls;
pub mod certificates;
pub mod frames;
pub mod guarded;
pub mod mounts;
pub mod neighbour;
pub mod tokens;

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use calls::{Caller, Refusal};
pub use neighbour::Neighbour;
pub use prism_adapters::conformance::together;
pub use tempfile::TempDir;

/// How long anything may take that ought to happen soon; generous, for machines that do other work as well.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Resident memory that a server of these tests may have used at its worst, in KiB.
pub const MEMORY_KIB_MAX: u64 = 400 * 1024;

/// Runs `test` on a loop of its own.
pub fn run<F: Future + 'static>(test: F) -> F::Output
where
    F::Output: 'static,
{
    prism_io::rt::run(test).expect("an event loop")
}

/// An empty directory on the disk of the build.
pub fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

/// A command that starts a server.
pub struct Setup {
    data: PathBuf,
    config: String,
    shards: usize,
    flags: Vec<String>,
    data_flag: bool,
    open_files_max: Option<u32>,
    /// Of the configuration file; not on the disk under test.
    folder: TempDir,
}

/// A small log, so that a server of a test does not write hundreds of megabytes of zeros first.
const SMALL_LOG: &str = "wal: {segment_bytes: 20MiB}\n";

/// A server on the data below `path` with one shard and the namespace `keyvalue` at level `wal`.
pub fn serve(path: &Path) -> Setup {
    Setup {
        data: path.join("data"),
        config: SMALL_LOG.to_owned(),
        shards: 1,
        flags: Vec::new(),
        data_flag: true,
        open_files_max: None,
        folder: directory(),
    }
}

impl Setup {
    /// With so many shards.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// With this text in its configuration, instead of the small log.
    pub fn config(mut self, text: &str) -> Self {
        self.config = text.to_owned();
        self
    }

    /// With namespaces of these names and levels.
    pub fn namespaces(mut self, namespaces: &[(&str, &str)]) -> Self {
        self.config.push_str("namespaces:\n");
        for (name, level) in namespaces {
            let line = format!("  - {{name: {name}, client_api: keyvalue, durability: {level}}}\n");
            self.config.push_str(&line);
        }
        self
    }

    /// With its data at this path, whatever is there.
    pub fn data(mut self, path: &Path) -> Self {
        self.config = format!("data_dir: {}\n{}", path.display(), self.config);
        self.data_flag = false;
        self
    }

    /// With so many open files at most.
    pub fn open_files_max(mut self, files: u32) -> Self {
        self.open_files_max = Some(files);
        self
    }

    /// With another flag.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    fn spawn(&self) -> Running {
        let config = self.folder.path().join("prism.yaml");
        fs::write(&config, &self.config).unwrap();
        let binary = env!("CARGO_BIN_EXE_prism");
        let mut command = match self.open_files_max {
            None => Command::new(binary),
            Some(files) => {
                let mut shell = Command::new("sh");
                let limited = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
                shell.args(["-c", &limited, binary]);
                shell
            }
        };
        command.arg("serve").arg("--config").arg(config);
        if self.data_flag {
            command.arg("--data-dir").arg(&self.data);
        }
        command.args(["--shards", &self.shards.to_string()]);
        for (flag, address) in [("--listen", "127.0.0.1:0"), ("--admin", "127.0.0.1:0")] {
            if !self.flags.iter().any(|given| given == flag) {
                command.args([flag, address]);
            }
        }
        Running::spawn(command.args(&self.flags))
    }

    /// Starts it and waits until it serves.
    pub fn start(&self) -> Server {
        let mut running = self.spawn();
        let screen = running.screen();
        let address = |name: &str| -> SocketAddr {
            let line = screen.lines().find(|line| line.trim_start().starts_with(name));
            let address = line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default();
            let address = address.trim_start_matches("http://").parse();
            address.unwrap_or_else(|_| panic!("no {name} address in {screen}"))
        };
        let (listen, admin) = (address("gRPC"), address("admin"));
        Server { running, listen, admin, screen, data: self.data.clone() }
    }

    /// Starts it and kills it after this time, ready or not.
    pub fn start_and_kill(&self, after: Duration) {
        let mut running = self.spawn();
        let end = Instant::now() + after;
        while let Ok(_line) =
            running.lines.recv_timeout(end.saturating_duration_since(Instant::now()))
        {}
        running.child.kill().expect("a child of ours");
        running.wait_end();
    }

    /// Starts it, expecting that it refuses: the exit code, and what it said.
    pub fn refused(&self) -> (i32, String) {
        let mut running = self.spawn();
        let mut served = String::new();
        let end = Instant::now() + PATIENCE;
        while let Ok(line) =
            running.lines.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            assert!(!line.starts_with("Ready after"), "it was to refuse, but serves: {served}");
            served.push_str(&line);
        }
        let code = running.wait_end().code().expect("it ended by itself");
        running.join();
        (code, running.errors())
    }
}

/// A process of the binary with its output.
struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    ended: bool,
}

impl Running {
    fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            // The end of the output is the end of the process: dropping `tell` says so.
            stdout.lines().map_while(Result::ok).all(|line| tell.send(line).is_ok())
        });
        let errors = Arc::new(Mutex::new(String::new()));
        let kept = errors.clone();
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        Self { child, lines, errors, reader: Some(reader), ended: false }
    }

    /// The first screen, whole.
    fn screen(&mut self) -> String {
        let mut screen = String::new();
        let end = Instant::now() + PATIENCE;
        while !screen.contains("Ready after") {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => screen = screen + &line + "\n",
                Err(error) => panic!("no server ({error}): {screen}{}", self.errors()),
            }
        }
        screen
    }

    fn wait_end(&mut self) -> std::process::ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it goes on: {}", self.errors()),
            }
        }
        let status = self.child.wait().expect("a child of ours");
        self.ended = true;
        status
    }

    /// After the end: everything it said is there.
    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of stderr");
        }
    }

    fn errors(&self) -> String {
        self.errors.lock().unwrap().clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.join();
        let errors = self.errors();
        if std::thread::panicking() {
            eprintln!("--- stderr of the server\n{errors}---");
        } else {
            assert!(!errors.contains("panicked"), "the server panicked:\n{errors}");
        }
    }
}

/// A server that serves.
pub struct Server {
    running: Running,
    /// Where gRPC is.
    pub listen: SocketAddr,
    /// Where the admin port is.
    pub admin: SocketAddr,
    /// Its first screen.
    pub screen: String,
    /// Its data directory.
    pub data: PathBuf,
}

impl Server {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.running.child.id()
    }

    /// Kills it on the spot, as a power cut of the process.
    pub fn kill(mut self) {
        self.running.child.kill().expect("a child of ours");
        self.running.wait_end();
    }

    /// Sends SIGTERM and does not wait.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Waits for its end: the exit code, and everything that it said on stderr.
    pub fn wait_end(mut self) -> (i32, String) {
        let status = self.running.wait_end();
        let code = status.code().unwrap_or_else(|| panic!("{status}: {}", self.errors()));
        self.running.join();
        (code, self.errors())
    }

    /// Stops it in an orderly way and checks that it says so.
    pub fn stop(self) {
        self.terminate();
        let (code, errors) = self.wait_end();
        assert_eq!(code, 0, "{errors}");
    }

    /// What it said on stderr so far.
    pub fn errors(&self) -> String {
        self.running.errors()
    }

    /// Waits until it has said this on stderr, which is read beside the test.
    pub fn wait_says(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.errors().contains(text) {
            assert!(Instant::now() < end, "it never said {text:?}: {}", self.errors());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Most resident memory that it had so far, in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// Resident memory now, in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a number");
        line.trim().trim_end_matches("kB").trim().parse().expect("a number")
    }

    /// It is alive, has not panicked and has stayed within its memory.
    pub fn assert_well(&self) {
        let (errors, memory) = (self.errors(), self.memory_kib());
        assert!(!errors.contains("panicked"), "{errors}");
        assert!(memory <= MEMORY_KIB_MAX, "{memory} KiB resident");
    }

    /// One page of the admin port.
    pub fn admin_page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).expect("the admin port");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: prism\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer in UTF-8");
        text
    }

    /// The sum of a metric over all its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.admin_page("/metrics");
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            (rest.starts_with(' ') || rest.starts_with('{'))
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        values.sum()
    }

    /// How often the transport has refused something of this kind.
    pub fn refused(&self, kind: &str) -> f64 {
        let series = format!("prism_transport_refused_total{{kind=\"{kind}\"}} ");
        let page = self.admin_page("/metrics");
        let value = page.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok());
        value.unwrap_or_else(|| panic!("there is no kind {kind}"))
    }

    /// Waits until the transport has refused something of this kind more than `before` times.
    pub fn wait_refused(&self, kind: &str, before: f64) {
        let end = Instant::now() + PATIENCE;
        while self.refused(kind) <= before {
            assert!(Instant::now() < end, "nothing was refused for {kind}");
            std::thread::yield_now();
        }
    }

    /// Waits until a metric is as wanted: a loop over an event that cannot be subscribed to.
    pub fn wait_for_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        let end = Instant::now() + PATIENCE;
        loop {
            let value = self.metric(name);
            if wanted(value) {
                return value;
            }
            assert!(Instant::now() < end, "{name} stays at {value}");
            std::thread::yield_now();
        }
    }
}

/// Raises this process's bound of open files, and that of every server it starts from now on, where it is lower.
pub fn allow_open_files(files: u64) {
    let limits = fs::read_to_string("/proc/self/limits").expect("the limits of this process");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    if soft.is_some_and(|soft| soft < files) {
        let (id, limit) = (std::process::id().to_string(), format!("--nofile={files}:"));
        let raised = Command::new("prlimit").args(["--pid", &id, &limit]).status();
        assert!(raised.is_ok_and(|status| status.success()), "{files} open files are needed");
    }
}

/// Sends a signal to a process that we started.
pub fn signal(id: u32, name: &str) {
    let command = format!("kill -{name} {id}");
    assert!(Command::new("sh").args(["-c", &command]).status().expect("a shell").success());
}

/// Runs `prism` with these arguments to its end: exit code, stdout, stderr.
pub fn prism(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_prism")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it ended"), text(&output.stdout), text(&output.stderr))
}

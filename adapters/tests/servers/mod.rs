//! The real servers that tests run against, and a proxy that stands in the way of them.

#![allow(dead_code)] // Each test binary uses a part of it.

mod authorities;
mod kafka;
mod redis_cluster;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

#[allow(unused_imports)]
pub(crate) use authorities::Authorities;
#[allow(unused_imports)]
pub(crate) use kafka::{OwnKafka, free_address};
#[allow(unused_imports)]
pub(crate) use redis_cluster::OwnCluster;

/// Longer than anything that is waited for takes.
pub(crate) const LONG: Duration = Duration::from_secs(20);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Where the server of this name answers; starts it if it does not run.
pub(crate) fn address(name: &str) -> SocketAddr {
    let script = root().join("dev/servers");
    let run = |arguments: &[&str]| {
        let output =
            Command::new(&script).args(arguments).output().expect("dev/servers can be run");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "dev/servers {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["up", name]);
    let addresses = run(&["addresses"]);
    let address = addresses.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    address.unwrap_or_else(|| panic!("{name} is not among {addresses:?}")).parse().unwrap()
}

/// What redis-cli says to a command in a database, its last line end cut off.
pub(crate) fn redis_cli(address: SocketAddr, database: u32, arguments: &[&str]) -> String {
    // It waits for ever by itself.
    let patience = (3 * LONG).as_secs().to_string();
    let output = Command::new("timeout")
        .args([patience.as_str(), "redis-cli"])
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args(["-n", &database.to_string()])
        .args(arguments)
        .output()
        .expect("redis-cli, of the Debian package redis-tools, is there");
    let is_hanging = output.status.code() == Some(124);
    assert!(!is_hanging, "the Redis at {address} does not answer redis-cli {arguments:?}");
    let mut said = String::from_utf8(output.stdout).unwrap();
    said.truncate(said.trim_end_matches('\n').len());
    said
}

/// A Redis of a test's own, to be killed and configured at will.
pub(crate) struct OwnRedis {
    child: Child,
    pub(crate) address: SocketAddr,
    directory: tempfile::TempDir,
    options: Vec<String>,
}

impl OwnRedis {
    /// Starts one on a free port, with options of redis-server.
    pub(crate) fn start(options: &[&str]) -> Self {
        // That `dev/servers` has installed it.
        address("redis");
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let directory = tempfile::tempdir().unwrap();
        let options: Vec<String> = options.iter().map(|option| option.to_string()).collect();
        let child = Self::spawn(address, &directory, &options);
        OwnRedis { child, address, directory, options }
    }

    fn spawn(address: SocketAddr, directory: &tempfile::TempDir, options: &[String]) -> Child {
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
            .arg("--dir")
            .arg(directory.path())
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server can be run");
        let until = Instant::now() + LONG;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "the test's Redis does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = Self::spawn(self.address, &self.directory, &self.options);
    }

    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        redis_cli(self.address, 0, arguments)
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A PostgreSQL of a test's own, to be killed and configured at will. The role `prism` may do everything; nobody is asked for a
/// password.
pub(crate) struct OwnPostgres {
    child: Child,
    pub(crate) address: SocketAddr,
    directory: tempfile::TempDir,
    options: Vec<String>,
}

impl OwnPostgres {
    /// Makes one and starts it on a free port, with options of `postgres`.
    pub(crate) fn start(options: &[&str]) -> Self {
        // That `dev/servers` has installed it.
        address("postgres");
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        // Whoever runs PostgreSQL has to come as far as here.
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        if is_root() {
            let done = Command::new("chown").arg("postgres:").arg(directory.path()).status();
            assert!(done.unwrap().success(), "the directory can be given to postgres");
        }
        let done = postgres_program("initdb")
            .args(["-U", "prism", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(["--no-sync", "-D"])
            .arg(directory.path().join("data"))
            .stdout(Stdio::null())
            .status();
        assert!(done.expect("initdb can be run").success());
        let options: Vec<String> = options.iter().map(|option| option.to_string()).collect();
        let child = Self::spawn(address, &directory, &options);
        OwnPostgres { child, address, directory, options }
    }

    fn spawn(address: SocketAddr, directory: &tempfile::TempDir, options: &[String]) -> Child {
        let child = postgres_program("postgres")
            .args(["-p", &address.port().to_string(), "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories=", "-c", "shared_buffers=16MB", "-D"])
            .arg(directory.path().join("data"))
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres can be run");
        let until = Instant::now() + LONG;
        let port = address.port().to_string();
        let is_ready = || {
            let mut asked = postgres_program("pg_isready");
            asked.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
        };
        while !is_ready() {
            assert!(Instant::now() < until, "the test's PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }

    /// Its end without a farewell: SIGQUIT, upon which it and its children leave as they are.
    pub(crate) fn kill(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-QUIT", &pid]).status().unwrap().success());
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = Self::spawn(self.address, &self.directory, &self.options);
    }

    pub(crate) fn psql(&self, statements: &str) -> String {
        psql(self.address, "postgres", statements)
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// A program of the newest PostgreSQL that is installed; it does not run as root.
fn postgres_program(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin").join(name));
    let program = programs.filter(|program| program.exists()).max_by_key(|program| {
        let version = program.iter().nth(4).and_then(|version| version.to_str());
        version.and_then(|version| version.parse::<u32>().ok())
    });
    let program = program.unwrap_or_else(|| name.into());
    if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]).arg(program);
        return command;
    }
    Command::new(program)
}

/// A NATS with JetStream of a test's own, to be killed and configured at will.
pub(crate) struct OwnNats {
    child: Child,
    pub(crate) address: SocketAddr,
    directory: tempfile::TempDir,
}

impl OwnNats {
    /// Starts one on a free port, with lines of configuration beside its own.
    pub(crate) fn start(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("data");
        let jetstream = format!("jetstream {{ store_dir: \"{}\" }}", store.display());
        Self::with(directory, &format!("max_payload: 8MB\n{jetstream}\n{config}"))
    }

    /// Starts one that stores nothing.
    pub(crate) fn without_jetstream() -> Self {
        Self::with(tempfile::tempdir().unwrap(), "")
    }

    fn with(directory: tempfile::TempDir, config: &str) -> Self {
        // That `dev/servers` has installed it.
        address("nats");
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let own = format!("host: 127.0.0.1\nport: {}\n{config}\n", address.port());
        std::fs::write(directory.path().join("nats.conf"), own).unwrap();
        let child = Self::spawn(address, &directory);
        OwnNats { child, address, directory }
    }

    fn spawn(address: SocketAddr, directory: &tempfile::TempDir) -> Child {
        let built = root().join("target/servers/nats/bin/nats-server");
        let binary = if built.exists() { built } else { "nats-server".into() };
        let child = Command::new(binary)
            .arg("-c")
            .arg(directory.path().join("nats.conf"))
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server can be run");
        let until = Instant::now() + LONG;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "the test's NATS does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }

    /// Starts so many that form a cluster.
    pub(crate) fn cluster(count: usize) -> Vec<Self> {
        let own: Vec<SocketAddr> = (0..count).map(|_| free_address()).collect();
        let routes: Vec<String> = own.iter().map(|own| format!("\"nats://{own}\"")).collect();
        let node = |index: usize| {
            let directory = tempfile::tempdir().unwrap();
            let store = directory.path().join("data");
            let config = format!(
                "server_name: n{index}\njetstream {{ store_dir: \"{}\" }}\n\
                 cluster {{ name: test, listen: \"{}\", routes: [{}] }}\n",
                store.display(),
                own[index],
                routes.join(", ")
            );
            Self::with(directory, &config)
        };
        (0..count).map(node).collect()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has it send its clients away before it ends (lame duck mode).
    pub(crate) fn retire(&self) {
        let told = Command::new("kill").args(["-USR2", &self.child.id().to_string()]).status();
        assert!(told.expect("kill can be run").success());
    }

    /// Ends it as an operator does: it writes down what it knows.
    pub(crate) fn stop(&mut self) {
        let told = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(told.expect("kill can be run").success());
        self.child.wait().unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = Self::spawn(self.address, &self.directory);
    }
}

impl Drop for OwnNats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Default)]
struct ProxyState {
    /// Nothing passes any more, and nobody is told.
    silent: bool,
    /// Connections are closed as they come.
    refusing: bool,
    clients: Vec<TcpStream>,
    accepted: usize,
}

/// A TCP proxy in front of a server, which can be told to misbehave.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<(Mutex<ProxyState>, Condvar)>,
}

impl Proxy {
    /// A proxy on a free port.
    pub(crate) fn to(server: SocketAddr) -> Self {
        Self::between(TcpListener::bind("127.0.0.1:0").unwrap(), server)
    }

    /// A proxy that takes its connections from `listener`. It lives as long as the process.
    pub(crate) fn between(listener: TcpListener, server: SocketAddr) -> Self {
        let address = listener.local_addr().unwrap();
        let state: Arc<(Mutex<ProxyState>, Condvar)> = Arc::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                {
                    let mut state = shared.0.lock().unwrap();
                    state.accepted += 1;
                    if state.refusing {
                        continue;
                    }
                    state.clients.push(client.try_clone().unwrap());
                }
                // A server that is down closes the connection through its proxy.
                let Ok(upstream) = TcpStream::connect(server) else {
                    let _ = client.shutdown(Shutdown::Both);
                    continue;
                };
                for (from, to) in [(&client, &upstream), (&upstream, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = shared.clone();
                    std::thread::spawn(move || pass(from, to, &shared));
                }
            }
        });
        Proxy { address, state }
    }

    /// Stops passing anything on, without a word; or passes on again, what was held back first.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.state.0.lock().unwrap().silent = silent;
        self.state.1.notify_all();
    }

    /// Closes new connections at once, or no longer.
    pub(crate) fn set_refusing(&self, refusing: bool) {
        self.state.0.lock().unwrap().refusing = refusing;
    }

    /// Closes every connection.
    pub(crate) fn cut(&self) {
        for client in self.state.0.lock().unwrap().clients.drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Says something to every client in the server's place.
    pub(crate) fn inject(&self, bytes: &[u8]) {
        for client in &mut self.state.0.lock().unwrap().clients {
            let _ = client.write_all(bytes);
        }
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.state.0.lock().unwrap().accepted
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, state: &(Mutex<ProxyState>, Condvar)) {
    let mut buffer = [0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        if count > 0 {
            let held = state.1.wait_while(state.0.lock().unwrap(), |state| state.silent).unwrap();
            drop(held);
        }
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// What psql says to statements in a database of `dev/servers`' PostgreSQL, or of another.
pub(crate) fn psql(address: SocketAddr, database: &str, statements: &str) -> String {
    let output = Command::new("psql")
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "prism", "-d", database])
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args(["-c", statements])
        .env("PGPASSWORD", "prism")
        .env("PGOPTIONS", "-c client_min_messages=warning")
        .output()
        .expect("psql, of the Debian package postgresql-client, is there");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "psql {statements:?}: {errors}");
    let mut said = String::from_utf8(output.stdout).unwrap();
    said.truncate(said.trim_end_matches('\n').len());
    said
}

/// Where an empty database of this name is, on `dev/servers`' PostgreSQL.
pub(crate) fn empty_database(name: &str) -> SocketAddr {
    let address = address("postgres");
    psql(address, "prism", &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
    psql(address, "prism", &format!("CREATE DATABASE {name}"));
    // Nobody pulls the plug on it, and thousands of commits are quicker.
    psql(address, "prism", &format!("ALTER DATABASE {name} SET synchronous_commit = off"));
    address
}

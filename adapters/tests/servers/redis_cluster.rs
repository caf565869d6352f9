//! A Redis Cluster of a test's own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{LONG, address, redis_cli};

/// Slots of a cluster.
const SLOTS: usize = 16_384;

/// A node of a test's own cluster.
pub(crate) struct ClusterNode {
    child: Child,
    pub(crate) address: SocketAddr,
    bus_port: u16,
    _directory: tempfile::TempDir,
}

impl ClusterNode {
    fn start(timeout_ms: u32) -> Self {
        let until = Instant::now() + LONG;
        loop {
            // Somebody else may take a port that was free; then it ends, and the next ones are tried.
            let free = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
            let [address, bus] = free.each_ref().map(|free| free.local_addr().unwrap());
            drop(free);
            let directory = tempfile::tempdir().unwrap();
            let mut child = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
                .args(["--cluster-enabled", "yes", "--cluster-port", &bus.port().to_string()])
                .args(["--cluster-node-timeout", &timeout_ms.to_string()])
                .args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"])
                .arg("--dir")
                .arg(directory.path())
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server can be run");
            while child.try_wait().unwrap().is_none() {
                if TcpStream::connect(address).is_ok() && redis_cli(address, 0, &["PING"]) == "PONG"
                {
                    let bus_port = bus.port();
                    return ClusterNode { child, address, bus_port, _directory: directory };
                }
                assert!(Instant::now() < until, "a node of the test's cluster does not answer");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        redis_cli(self.address, 0, arguments)
    }

    pub(crate) fn id(&self) -> String {
        self.cli(&["CLUSTER", "MYID"])
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ClusterNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nodes of a cluster: first its masters, which share the slots evenly, then a replica of each of the first of them.
pub(crate) struct OwnCluster {
    pub(crate) nodes: Vec<ClusterNode>,
    masters: usize,
}

impl OwnCluster {
    /// Starts one, and waits until it is whole.
    pub(crate) fn start(masters: usize, replicas: usize, timeout_ms: u32) -> Self {
        // That `dev/servers` has installed it.
        address("redis");
        let nodes: Vec<_> =
            (0..masters + replicas).map(|_| ClusterNode::start(timeout_ms)).collect();
        let cluster = OwnCluster { nodes, masters };
        for (number, node) in cluster.nodes.iter().enumerate() {
            let ok = |arguments: &[&str]| assert_eq!(node.cli(arguments), "OK", "{arguments:?}");
            ok(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            if number < masters {
                let first = number * SLOTS / masters;
                let last = (number + 1) * SLOTS / masters - 1;
                ok(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            }
            let first = &cluster.nodes[0];
            let (port, bus) = (first.address.port().to_string(), first.bus_port.to_string());
            if number > 0 {
                ok(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
            }
        }
        let count = cluster.nodes.len();
        let known = format!("cluster_known_nodes:{count}");
        cluster.wait("its nodes know each other", |node| {
            let nodes = node.cli(&["CLUSTER", "NODES"]);
            node.cli(&["CLUSTER", "INFO"]).contains(&known) && !nodes.contains("handshake")
        });
        for (number, replica) in cluster.nodes[masters..].iter().enumerate() {
            let id = cluster.nodes[number].id();
            assert_eq!(replica.cli(&["CLUSTER", "REPLICATE", &id]), "OK");
        }
        cluster.wait("it is whole", |node| {
            let is_up = node.cli(&["INFO", "replication"]);
            let is_up = is_up.contains("role:master") || is_up.contains("master_link_status:up");
            let slaves = node.cli(&["CLUSTER", "NODES"]).matches(" slave ").count()
                + usize::from(node.cli(&["ROLE"]).starts_with("slave"));
            node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
                && is_up
                && slaves == replicas
        });
        cluster
    }

    fn wait(&self, what: &str, is_so: impl Fn(&ClusterNode) -> bool) {
        let until = Instant::now() + 3 * LONG;
        while !self.nodes.iter().all(&is_so) {
            assert!(Instant::now() < until, "the test's cluster does not come so far: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where its first node is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.nodes[0].address
    }

    /// The slot of a key, and the master that had it at first.
    pub(crate) fn place_of(&self, key: &str) -> (usize, usize) {
        let slot: usize = self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key]).parse().unwrap();
        let is_its = |number: &usize| slot < (number + 1) * SLOTS / self.masters;
        (slot, (0..self.masters).find(is_its).unwrap())
    }

    /// Begins to move a slot from one master to another.
    pub(crate) fn begin_move(&self, slot: usize, (from, to): (usize, usize)) {
        let (slot, ids) = (slot.to_string(), [from, to].map(|number| self.nodes[number].id()));
        let importing = ["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[0]];
        assert_eq!(self.nodes[to].cli(&importing), "OK");
        let migrating = ["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[1]];
        assert_eq!(self.nodes[from].cli(&migrating), "OK");
    }

    /// Moves so many keys of a slot, if there are; how many.
    pub(crate) fn move_keys(&self, slot: usize, (from, to): (usize, usize), count: usize) -> usize {
        let (slot, count) = (slot.to_string(), count.to_string());
        let keys = self.nodes[from].cli(&["CLUSTER", "GETKEYSINSLOT", &slot, &count]);
        let keys: Vec<_> = keys.lines().filter(|key| !key.is_empty()).collect();
        if !keys.is_empty() {
            let port = self.nodes[to].address.port().to_string();
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "20000", "KEYS"];
            migrate.extend(&keys);
            let said = self.nodes[from].cli(&migrate);
            assert!(matches!(&*said, "OK" | "NOKEY"), "{said}");
        }
        keys.len()
    }

    /// Ends a move, all keys of which have been moved.
    pub(crate) fn end_move(&self, slot: usize, (from, to): (usize, usize)) {
        let (slot, id) = (slot.to_string(), self.nodes[to].id());
        for number in [to, from] {
            let done = ["CLUSTER", "SETSLOT", &slot, "NODE", &id];
            assert_eq!(self.nodes[number].cli(&done), "OK");
        }
    }
}

//! The figures beside the bars that they have to pass and the aims that they are meant to reach.

use prism_benches::aims::Row;

use crate::{Call, Figures, Path};

pub(crate) fn rows(all: &[Figures]) -> Vec<Row> {
    let find = |path, call, shape| {
        all.iter().find(|one| (one.path, one.call, one.shape) == (path, call, shape))
    };
    let rate = |call, peer| {
        let ours = find(Path::PrismMemory, call, (8, 16))?;
        Some(ours.requests_per_second / find(peer, call, (8, 16))?.requests_per_second)
    };
    let cpu = |call, peer, shape| {
        Some(find(Path::PrismMemory, call, shape)?.cpu_us? / find(peer, call, shape)?.cpu_us?)
    };
    let added = |call| {
        let ours = find(Path::PrismMemory, call, (1, 1))?;
        Some(ours.p50_us - find(Path::Client, call, (1, 1))?.p50_us)
    };
    let mut rows = Vec::new();
    let mut add = |row: Option<Row>| rows.extend(row);
    let at_least = |name, value: Option<f64>| Some(Row::at_least(name, value?, 0.9, 1.3));
    let at_most =
        |name, value: Option<f64>, bar, aim| Some(Row::at_most(name, value?, bar, aim, "×"));
    use Call::{Get, Set};
    use Path::{Client, ClientOneConnection, Envoy, Tonic};
    add(at_least("Get 8×16: req/s against the client at 8×16", rate(Get, Client)));
    add(at_least("Set 8×16: req/s against the client at 8×16", rate(Set, Client)));
    add(at_least("Get 8×16: req/s against the client at 1×128", rate(Get, ClientOneConnection)));
    add(at_least("Set 8×16: req/s against the client at 1×128", rate(Set, ClientOneConnection)));
    add(added(Get)
        .map(|us| Row::at_most("Get 1×1: p50 added to the client's", us, 90.0, 60.0, "µs")));
    add(added(Set)
        .map(|us| Row::at_most("Set 1×1: p50 added to the client's", us, 90.0, 60.0, "µs")));
    add(at_most("Get 8×16: CPU against tonic", cpu(Get, Tonic, (8, 16)), 0.5, 0.25));
    add(at_most("Set 8×16: CPU against tonic", cpu(Set, Tonic, (8, 16)), 0.5, 0.25));
    add(at_most("Get 64×1: CPU against tonic", cpu(Get, Tonic, (64, 1)), 0.8, 0.6));
    add(at_most("Set 64×1: CPU against tonic", cpu(Set, Tonic, (64, 1)), 0.8, 0.6));
    add(at_most("Get 64×1: CPU against Envoy", cpu(Get, Envoy, (64, 1)), 1.0, 0.65));
    add(at_most("Set 64×1: CPU against Envoy", cpu(Set, Envoy, (64, 1)), 1.0, 0.65));
    add(at_most("Get 8×16: CPU against Envoy", cpu(Get, Envoy, (8, 16)), 1.0, 0.6));
    add(at_most("Set 8×16: CPU against Envoy", cpu(Set, Envoy, (8, 16)), 1.0, 0.6));
    rows
}

//! What the machine gives this process: cores and memory, as far as defaults and checks depend on them.
//!
//! Read once and passed on as a value, so that reading a configuration stays a pure function.

/// Cores and memory that this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Numbers of the cores that this process may run on, ascending; never empty.
    pub cores: Vec<usize>,
    /// Memory that this process may use, in bytes: the machine's, or its control group's limit where that is lower.
    pub memory_bytes: u64,
}

impl Machine {
    /// Reads `/proc` and `/sys/fs/cgroup`. What cannot be read is taken for one core and 1 GiB.
    pub fn read() -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self::from_text(
            &file("/proc/self/status"),
            &file("/proc/meminfo"),
            &file("/proc/self/cgroup"),
            |group| file(&format!("/sys/fs/cgroup{group}/memory.max")),
        )
    }

    fn from_text(
        status: &str,
        meminfo: &str,
        cgroup: &str,
        memory_max: impl Fn(&str) -> String,
    ) -> Self {
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_string())
        };
        let cores = field(status, "Cpus_allowed_list:")
            .and_then(|list| parse_cores(&list))
            .filter(|cores| !cores.is_empty())
            .unwrap_or_else(|| vec![0]);
        let total = field(meminfo, "MemTotal:")
            .and_then(|text| text.strip_suffix(" kB")?.trim().parse::<u64>().ok())
            .map_or(1 << 30, |kib| kib << 10);
        let limit = cgroup
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .and_then(|group| memory_max(group.trim_end_matches('/')).trim().parse::<u64>().ok());
        Self { cores, memory_bytes: limit.map_or(total, |limit| limit.min(total)) }
    }
}

/// Reads a list of cores: numbers and ranges separated by commas (`0,2-3`), in the order given. `None` where it is
/// anything else or names more than 4,096 cores.
pub fn parse_cores(list: &str) -> Option<Vec<usize>> {
    const CORES_MAX: usize = 4096;
    let mut cores = Vec::new();
    for part in list.split(',') {
        let part = part.trim();
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (first.trim().parse().ok()?, last.trim().parse().ok()?),
            None => {
                let core: usize = part.parse().ok()?;
                (core, core)
            }
        };
        if first > last || last - first >= CORES_MAX || cores.len() + (last - first) >= CORES_MAX {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

/// A list of cores as text that [`parse_cores`] reads back, neighbours as ranges.
pub fn show_cores(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => parts.push((core, core)),
        }
    }
    let text = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_read_as_numbers_and_ranges() {
        assert_eq!(parse_cores("0"), Some(vec![0]));
        assert_eq!(parse_cores("0, 2-4,7"), Some(vec![0, 2, 3, 4, 7]));
        for bad in ["", "a", "3-1", "0,,1", "-1", "0-99999", "1-"] {
            assert_eq!(parse_cores(bad), None, "{bad}");
        }
        assert_eq!(show_cores(&[0, 2, 3, 4, 7]), "0,2-4,7");
    }

    #[test]
    fn memory_is_the_lower_of_machine_and_control_group() {
        let status = "Name:\tprism\nCpus_allowed_list:\t0-1\n";
        let meminfo = "MemTotal:       24634328 kB\nMemFree: 1 kB\n";
        let machine = |limit: &'static str| {
            Machine::from_text(status, meminfo, "0::/prism.service\n", move |_| limit.to_string())
        };
        assert_eq!(machine("max\n").memory_bytes, 24_634_328 << 10);
        assert_eq!(machine("1073741824\n").memory_bytes, 1 << 30);
        assert_eq!(machine("").cores, [0, 1]);
        let nothing = Machine::from_text("", "", "", |_| String::new());
        assert_eq!(nothing, Machine { cores: vec![0], memory_bytes: 1 << 30 });
    }
}

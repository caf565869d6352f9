//! What differs from `h2` and is not in the table, by kind, with the shortest story of each, and how often each line of the
//! table was needed: for whoever changes either.
//!
//! `cargo run --release -p prism-judge --example survey [sequences] [seed]`

use prism_judge::Role;
use prism_judge::compare::compare_on;
use prism_judge::differences::DIFFERENCES;
use prism_judge::frames::Sequence;
use prism_judge::seed::Seed;
use std::collections::BTreeMap;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let (count, seed) = (arguments.next().unwrap_or(20_000), arguments.next().unwrap_or(1));
    let mut used = vec![0; DIFFERENCES.len()];
    for role in [Role::Server, Role::Client] {
        let mut seed = Seed::new(seed);
        let mut findings: BTreeMap<String, (usize, String)> = BTreeMap::new();
        let mut same = 0;
        for _ in 0..count {
            let bytes = 40 + seed.word() as usize % 600;
            let finding = match compare_on(&Sequence::new(role, &seed.bytes(bytes))) {
                Ok(compared) => {
                    same += u64::from(compared.known.is_empty());
                    compared.known.iter().for_each(|&row| used[row] += 1);
                    continue;
                }
                Err(finding) => finding,
            };
            let (times, story) = findings.entry(finding.kind).or_default();
            *times += 1;
            if story.is_empty() || finding.story.len() < story.len() {
                *story = finding.story;
            }
        }
        println!("{role:?}: {same} of {count} the same to the end");
        let mut findings: Vec<_> = findings.into_iter().collect();
        findings.sort_by_key(|(_, (times, _))| std::cmp::Reverse(*times));
        for (kind, (times, story)) in findings {
            println!("=== {times} × {kind}\n{story}");
        }
    }
    // A line that nothing uses any more is to go.
    for (row, used) in DIFFERENCES.iter().zip(&used) {
        println!("{used:8} {}", row.name);
    }
}

//! Generated sequences of frames through Prism's state machine and the `h2` crate's: the same outcome.

use prism_judge::Role;
use prism_judge::compare::{Verdict, compare, compare_on};
use prism_judge::frames::Sequence;
use prism_judge::seed::{Seed, of_test};

const SEQUENCES: usize = 3000;
const BYTES_MAX: usize = 600;
/// Fewer that are compared to the end, of a hundred, or fewer frames of a sequence, would prove little.
const SAME_MIN_PERCENT: usize = 40;
/// The same, behind the differences that are known.
const WHOLE_MIN_PERCENT: usize = 90;
const FRAMES_MIN: usize = 5;

fn sequences(role: Role, default_seed: u64) {
    let mut seed = Seed::new(of_test(default_seed));
    let (mut same, mut whole, mut frames_compared) = (0, 0, 0);
    for nth in 0..SEQUENCES {
        let bytes = 40 + seed.word() as usize % BYTES_MAX;
        let sequence = Sequence::new(role, &seed.bytes(bytes));
        match compare_on(&sequence) {
            Ok(compared) => {
                same += usize::from(compared.known.is_empty());
                whole += usize::from(compared.to_the_end);
                frames_compared += compared.frames;
            }
            Err(finding) => panic!("sequence {nth}: {finding}"),
        }
    }
    println!(
        "{same} of {SEQUENCES} the same, {whole} compared to the end, {frames_compared} frames"
    );
    assert!(whole * 100 >= SEQUENCES * WHOLE_MIN_PERCENT, "{whole}");
    assert!(same * 100 >= SEQUENCES * SAME_MIN_PERCENT, "{same}");
    assert!(frames_compared >= SEQUENCES * FRAMES_MIN, "{frames_compared}");
}

#[test]
fn a_server_does_what_h2_does() {
    sequences(Role::Server, 1);
}

#[test]
fn a_client_does_what_h2_does() {
    sequences(Role::Client, 2);
}

/// What fuzzing has found to differ, and what it was found to be.
#[test]
fn what_fuzzing_found_is_known() {
    let push_switched_on: &[u8] = &[255, 79, 91, 17, 0, 1];
    let verdict = compare(&Sequence::new(Role::Client, push_switched_on));
    assert!(matches!(verdict, Ok(Verdict::Known { .. })), "{verdict:?}");
}

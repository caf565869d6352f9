//! What a client may say, to our server and to that of the `h2` crate: the same outcome, or a difference that is known,
//! and behind that once more the same outcome.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prism_fuzz as _;
use prism_judge::Role;
use prism_judge::compare::compare_on;
use prism_judge::frames::Sequence;

fuzz_target!(|data: &[u8]| {
    if let Err(story) = compare_on(&Sequence::new(Role::Server, data)) {
        panic!("{story}");
    }
});

// Shared by the build, which searches the multiplier, and the catalogue, which
// looks up with it: both must hash alike.

/// Slots of the path table; a power of two.
const PATH_SLOTS: usize = 4096;

/// The slot of a path, or `None` when it is shorter than any that exists.
#[inline]
fn path_slot(path: &[u8], seed: u64) -> Option<usize> {
    // Bytes 7 to 14 tell the model ("/prism." comes before them), the last
    // sixteen and the length tell the method (eight do not: SetRetention and
    // GetRetention).
    let model = u64::from_le_bytes(*path.get(7..)?.first_chunk::<8>()?);
    let name = u128::from_le_bytes(*path.last_chunk::<16>()?);
    let mixed = model
        .wrapping_add(path.len() as u64)
        .wrapping_mul(seed)
        .wrapping_add(name as u64)
        .wrapping_mul(seed)
        .rotate_left(32)
        .wrapping_add((name >> 64) as u64)
        .wrapping_mul(seed);
    let spread = (mixed ^ mixed >> 32).wrapping_mul(seed);
    Some((spread >> (64 - PATH_SLOTS.trailing_zeros())) as usize)
}

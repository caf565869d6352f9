// Shared by the build, which searches the multiplier, and the catalogue, which
// looks up with it: both must hash alike.

/// Slots of the path table; a power of two.
const PATH_SLOTS: usize = 4096;

/// The slot of a path, or `None` when it is shorter than any that exists.
#[inline]
fn path_slot(path: &[u8], seed: u64) -> Option<usize> {
    // Bytes 7 to 14 tell the model ("/prism." comes before them), the last
    // eight and the length tell the method.
    let model = u64::from_le_bytes(*path.get(7..)?.first_chunk::<8>()?);
    let name = u64::from_le_bytes(*path.last_chunk::<8>()?);
    let mixed = (model ^ name.rotate_left(29)).wrapping_add(path.len() as u64).wrapping_mul(seed);
    Some((mixed ^ mixed >> 32).wrapping_mul(seed) as usize >> (64 - PATH_SLOTS.trailing_zeros()))
}

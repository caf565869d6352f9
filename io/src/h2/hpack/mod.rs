//! HPACK (RFC 7541): header compression for HTTP/2.
//!
//! The decoder hands out fields that borrow from the block, the tables or a scratch buffer, each with what it is
//! (`FieldKind`); the encoder indexes what the caller says will repeat. Neither allocates after warm-up, and neither keeps
//! more than the table sizes that were agreed on.

pub mod decode;
pub mod encode;
pub mod field;
pub mod huffman;
pub mod table;

pub use decode::{DecodeError, Decoder};
pub use encode::{Encoder, Indexing};
pub use field::FieldKind;
pub use table::Field;

//! Borrowed messages: decoded in place and encoded from references, without an
//! allocation.
//!
//! Generated from the descriptors. A view decodes what prost decodes, and
//! refuses what prost refuses: for a scalar given twice the last one counts, a
//! message given twice is merged, unknown fields are passed over. Two things
//! are refused beyond that: groups (in unknown fields) nested deeper than
//! [`wire::GROUP_DEPTH_MAX`](crate::wire::GROUP_DEPTH_MAX), and a message
//! field given twice of which both occurrences carry elements of one repeated
//! field. Enumerations are open: the number as received, with a method of the
//! field's name that tells the value if it is a known one.
//!
//! Messages without repeated fields can also be encoded; the payload, if there
//! is one, comes last, so that `encode_head` can leave it to be sent by
//! reference.

include!(concat!(env!("OUT_DIR"), "/view.rs"));

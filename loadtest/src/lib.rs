//! Load for Prism, and witnesses of what it does under load.
//!
//! `kv` measures, `null_server` shows how fast the generator itself is, `idle` holds silent connections, `journal` keeps an outside record of every
//! acknowledged write. The hot path is Prism's own HTTP/2 in the client's role on the ring, so that the generator is not what is measured.
//! Nothing here is part of a server.

pub mod idle;
pub mod journal;
pub mod kv;
pub mod null_server;
pub mod process;
pub mod random;
pub mod report;

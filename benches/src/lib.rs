//! Prism beside its peers: what the benchmarks share.
//!
//! A figure is never reported alone: the thing it is compared with runs in the same minute on the same core, in
//! alternating rounds, and the medians are set against each other. Nothing here is part of the product.

pub mod aims;
pub mod certificate;
pub mod dev_server;
pub mod echo;
pub mod echo_server;
pub mod load;
pub mod prism;
pub mod process;
pub mod quiet;
pub mod redis_server;
pub mod report;
pub mod rounds;
pub mod write;

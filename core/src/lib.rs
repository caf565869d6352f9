//! Where requests live: shards, routing, durability levels, and what an operator sees of it all.
//!
//! Configuration, command line, admin port, metrics, doctor and log lines are the outer rooms; the request's path is
//! in the inner ones. This crate opens no socket and no file of its own accord; `io` does.

mod access;
pub mod admin;
mod applied;
mod audit;
mod certificates;
pub mod cli;
pub mod config;
mod control;
pub mod doctor;
pub mod logging;
#[doc(hidden)]
pub mod measure;
pub mod metrics;
mod namespaces;
pub mod plan;
mod planned;
mod quota;
mod registry;
mod remote;
mod request;
pub mod serve;
mod served;
mod services;
mod shard;
mod shared;
mod status;
mod web;

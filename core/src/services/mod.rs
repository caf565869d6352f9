//! The services of gRPC itself: health checks and reflection. Each shard answers them for its own connections.

mod health;
mod reflection;

pub(crate) use health::{Health, check, list, watch};
pub(crate) use reflection::reflect;

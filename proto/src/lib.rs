//! prism-proto

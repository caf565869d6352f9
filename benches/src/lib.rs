//! prism-benches

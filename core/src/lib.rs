//! prism-core

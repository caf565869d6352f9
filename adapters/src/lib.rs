//! prism-adapters

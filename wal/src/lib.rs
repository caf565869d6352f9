//! prism-wal

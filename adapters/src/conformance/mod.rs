//! What serving an interface means: one suite of cases per interface, for every backend.

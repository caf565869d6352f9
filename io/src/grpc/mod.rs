//! gRPC over HTTP/2 as a state machine without I/O, both roles.

//! HTTP/2 (RFC 9113) as a state machine without I/O, both roles.

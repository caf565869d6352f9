//! The client's end of a gRPC connection.

/// Placeholder
pub struct ClientConnection;

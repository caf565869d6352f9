//! Aligned buffers, durable files, and their simulated twin.

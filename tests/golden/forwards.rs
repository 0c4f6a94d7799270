//! Forwarded ports.

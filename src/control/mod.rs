//! The control plane: configuration, control socket, metrics.

//! Inside hosts that talk to each other by the addresses of a pool.

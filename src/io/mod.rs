//! Devices, packet workers and what the host must be told. Never imports `control`.

mod addresses;
pub mod detach;
pub mod device;
pub mod direct;
mod evacuation;
mod gateway;
pub mod host;
pub mod huge_pages;
pub mod memory;
pub mod names;
pub mod neighbours;
pub mod netns;
pub mod open_files;
pub mod own_errors;
mod path_mtu;
pub mod privilege;
pub mod probe;
pub mod program;
pub mod receiver;
pub mod tap;
pub mod tun;
pub mod tunnel_socket;
mod tuntap;
pub mod worker;

pub use addresses::{AddressWatch, addresses_of_links};
pub use evacuation::{Cause, Evacuation};
pub use gateway::Gateway;
pub use own_errors::source_towards;
pub use path_mtu::{link_mtu, path_mtu};

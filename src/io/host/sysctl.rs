//! Kernel parameters, by path below `/proc/sys`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The value without its newline.
pub fn read(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(file(path))?.trim_end().to_owned())
}

pub fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(file(path), value)
}

pub fn exists(path: &str) -> bool {
    file(path).exists()
}

/// The interfaces that IPv6 keeps parameters of, `all` and `default` not among them.
pub fn ipv6_interfaces() -> io::Result<Vec<String>> {
    let names = fs::read_dir(file("net/ipv6/conf"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "all" && name != "default")
        .collect();
    Ok(names)
}

/// What does not work while the parameter has another value than the gateway needs.
pub fn consequence(path: &str) -> &'static str {
    match path.rsplit('/').next() {
        Some("forwarding" | "force_forwarding") => "packets that come in by this interface are not forwarded",
        Some("rp_filter") => "the kernel drops what the gateway sends on for clients",
        Some("accept_local") => "local VIPs do not work, and programs on this host cannot use the gateway's services",
        Some("proxy_ndp") => "neighbours do not find the IPv6 VIPs",
        Some("proxy_delay") => "neighbours find the VIPs late",
        Some("arp_ignore" | "arp_announce") => "neighbours may take this host for the gateway",
        Some("accept_ra") => "the host may lose routes that it learnt from a router",
        Some("disable_ipv6") => "the gateway handles no IPv6",
        Some("addr_gen_mode") => "the device gets a link-local address that nobody uses",
        _ => "the gateway may still work",
    }
}

fn file(path: &str) -> PathBuf {
    Path::new("/proc/sys").join(path)
}

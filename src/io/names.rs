//! Names of hosts, as the system's resolver knows them.

use std::ffi::CStr;
use std::net::IpAddr;

use socket2::SockAddr;

/// The name of the host with this address; `None` where it has none.
pub fn name_of(address: IpAddr) -> Option<String> {
    let socket = SockAddr::from(std::net::SocketAddr::new(address, 0));
    let mut name = [0 as libc::c_char; libc::NI_MAXHOST as usize];
    let length = libc::socklen_t::try_from(name.len()).ok()?;
    // SAFETY: `socket` is an address of the length it tells of itself; `name` has room for `length` bytes; no name of a
    // port is asked for.
    let failed = unsafe {
        libc::getnameinfo(
            socket.as_ptr().cast(),
            socket.len(),
            name.as_mut_ptr(),
            length,
            std::ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        )
    };
    if failed != 0 {
        return None;
    }
    // SAFETY: on success getnameinfo(3) has written a string with a zero at its end.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    name.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_has_a_name() {
        assert!(name_of("127.0.0.1".parse().unwrap()).is_some_and(|name| name.starts_with("localhost")));
    }
}

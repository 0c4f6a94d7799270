//! Which network namespace a process is in, and who is at the other end of a socket.

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

/// A network namespace. The number is given again once the namespace is gone, and not before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netns {
    device: u64,
    pub inode: u64,
}

impl Netns {
    /// That of the calling thread.
    pub fn own() -> io::Result<Netns> {
        Netns::at("/proc/thread-self/ns/net")
    }

    /// That of another process.
    pub fn of(pid: u32) -> io::Result<Netns> {
        Netns::at(&format!("/proc/{pid}/ns/net"))
    }

    fn at(path: &str) -> io::Result<Netns> {
        let file = fs::metadata(path)?;
        Ok(Netns { device: file.dev(), inode: file.ino() })
    }

    /// Whether it is mounted somewhere, as `ip netns add` does to give it a name.
    pub fn has_name(self) -> io::Result<bool> {
        let mounted = format!("net:[{}]", self.inode);
        // The root of a mount is the fourth field (proc_pid_mountinfo(5)).
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        Ok(mounts.lines().any(|line| line.split(' ').nth(3) == Some(mounted.as_str())))
    }
}

/// The names of all interfaces of the calling thread's namespace.
pub fn interfaces() -> io::Result<Vec<String>> {
    // Two lines of heading, then `  eth0: …` (net/core/net-procfs.c).
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let name = |line: &str| line.split_once(':').map(|(name, _)| name.trim().to_owned());
    Ok(text.lines().skip(2).filter_map(name).collect())
}

/// The process that listens at the other end.
pub fn peer_pid(stream: &UnixStream) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `length` are live and writable for the whole call, and `length` says how large `peer` is.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // 0 where the process is not to be seen from this process namespace.
    u32::try_from(peer.pid).ok().filter(|pid| *pid != 0).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_in_its_own_namespace_and_at_the_end_of_its_own_socket() {
        let (one, _other) = UnixStream::pair().unwrap();
        let pid = peer_pid(&one).unwrap();
        assert_eq!(pid, std::process::id());
        assert_eq!(Netns::of(pid).unwrap(), Netns::own().unwrap());
        assert!(interfaces().unwrap().iter().any(|name| name == "lo"));
    }
}

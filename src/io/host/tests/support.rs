//! A network namespace for each test, and what is in it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use ipnet::IpNet;

use crate::io::host::{Host, HostError, HostPlan, Listener, Ports, ReturnPath, VipPlan};

pub const TCP: u8 = 6;

/// Run the test in a new network namespace, or say by name why not.
pub fn in_namespace(name: &str, test: impl AsyncFnOnce(&Path) + Send + 'static) {
    let outcome = std::thread::spawn(move || {
        // SAFETY: unshare(2) takes no pointers; the namespace is this thread's alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
            return Err(format!("/dev/net/tun: {error}"));
        }
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(directory.path()));
        Ok(())
    })
    .join();
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} cannot run: {reason}");
            eprintln!("SKIPPED {name}: {reason}");
            if let Some(list) = std::env::var_os("GATUN_SKIPPED") {
                let mut list = OpenOptions::new().create(true).append(true).open(list).unwrap();
                writeln!(list, "{name}: {reason}").unwrap();
            }
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A gateway's host: an uplink with its far end, and a network of servers.
pub fn host_with_two_links() {
    sh("echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
        echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
        ip link set lo up
        ip link add up0 type veth peer name far0
        ip link add lan type veth peer name rs
        for i in up0 far0 lan rs; do ip link set $i up; done
        ip addr add 198.51.100.1/24 dev up0
        ip addr add 10.20.0.1/24 dev lan
        ip addr add 2001:db8:1::1/64 dev up0 nodad
        ip addr add fd20::1/64 dev lan nodad
        ip route add default via 198.51.100.2
        ip route add default via 2001:db8:1::2");
}

/// Try for a second.
pub fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..100 {
        if let Some(result) = attempt() {
            return Some(result);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    None
}

/// The file of a gateway that is gone may live on for a moment where another test starts a process just then.
pub async fn claim_again(device: &str, directory: &Path) -> Host {
    for _ in 0..100 {
        match Host::claim(device, directory).await {
            Err(HostError::InUse { .. }) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            other => return other.unwrap(),
        }
    }
    panic!("{device} stays in use");
}

/// The device goes when its last descriptor does.
pub fn close(device: File, name: &str) {
    drop(device);
    let path = format!("/proc/sys/net/ipv4/conf/{name}");
    patiently(|| (!Path::new(&path).exists()).then_some(())).unwrap_or_else(|| panic!("{name} stays"));
}

/// A TUN device that lasts as long as the file.
pub fn tun(name: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the request is a struct ifreq of 40 bytes that lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, request.as_mut_ptr()) };
    assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file
}

/// Rules, routes, proxy entries and kernel parameters, line by line.
pub fn snapshot() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for command in [
        "ip -d rule",
        "ip -6 -d rule",
        "ip -d route show table all",
        "ip -6 -d route show table all",
        "ip neigh show proxy",
        "ip -6 neigh show proxy",
        "ip -d link",
    ] {
        // A link that was up once has a queue, and the carrier comes a little later than the link.
        let text = sh(command).replace(" linkdown", "").replace("qdisc noop ", "qdisc pfifo_fast ");
        found.insert(command.to_owned(), text);
    }
    let values = sh("grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv4/neigh \
        /proc/sys/net/ipv6/conf /proc/sys/net/ipv6/neigh 2>/dev/null || true");
    for line in values.lines() {
        // The secret can be read only once the kernel has made one up, which it does together with an address.
        if let Some((path, value)) = line.split_once(':').filter(|(path, _)| !path.ends_with("stable_secret")) {
            found.insert(path.to_owned(), value.to_owned());
        }
    }
    found
}

pub fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    for (key, value) in before {
        assert_eq!(Some(value), after.get(key), "{key}");
    }
    assert_eq!(before.len(), after.len());
}

/// Wait until the kernel is done with bringing links up.
pub async fn settled() -> BTreeMap<String, String> {
    let mut last = snapshot();
    for _ in 0..50 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = snapshot();
        if now == last {
            return now;
        }
        last = now;
    }
    panic!("the namespace does not settle");
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn plan(device: &str, vips: &[&str]) -> HostPlan {
    HostPlan {
        bridge: None,
        device: device.into(),
        mtu: Some(1400),
        txqueuelen: 4096,
        uplinks: vec!["up0".into()],
        vips: vips
            .iter()
            .map(|vip| VipPlan {
                address: ip(vip),
                listeners: vec![Listener { protocol: TCP, ports: Some(Ports::one(80)) }],
                peers: Vec::new(),
            })
            .collect(),
        prefixes: Vec::new(),
        returns: ["10.20.0.11", "fd20::11"]
            .map(|server| ReturnPath {
                from: IpNet::from(ip(server)),
                protocol: Some(TCP),
                ports: Some(Ports::one(8080)),
            })
            .into(),
        one_way: Vec::new(),
        probes: Vec::new(),
    }
}

pub const ROUTED: [&str; 2] = ["203.0.113.10", "2001:db8:f::10"];
pub const LOCAL: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];

pub fn route_get(query: &str) -> String {
    sh(&format!("ip route get {query}"))
}

pub fn sysctl(path: &str) -> String {
    std::fs::read_to_string(Path::new("/proc/sys").join(path)).unwrap().trim().to_owned()
}

pub fn value(snapshot: &BTreeMap<String, String>, path: &str) -> String {
    snapshot[&format!("/proc/sys/{path}")].clone()
}

//! What a configuration asks of this host that the host does not have: sentences for `gatun check`, no errors, since
//! the file may be meant for another machine.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};

use super::check::wants;
use super::{
    Config, GatewayConfig, Listen, MasqueradeConfig, RealServerConfig, ServerConfig, ServiceConfig, compile,
    local_pools, narrow_pools,
};
use crate::service::{Method, Network, PortRange};
use crate::wire::Addr;

/// Bytes of memory that a flow may take.
const BYTES_PER_FLOW: u64 = 256;

/// Where a host keeps what it is asked.
#[derive(Clone, Debug)]
pub struct Host {
    pub dev: PathBuf,
    pub proc: PathBuf,
    pub sys: PathBuf,
}

impl Default for Host {
    /// This one.
    fn default() -> Host {
        Host { dev: "/dev".into(), proc: "/proc".into(), sys: "/sys".into() }
    }
}

impl Host {
    /// One sentence for each thing that will not work here, and what to do.
    pub fn warnings(&self, config: &Config) -> Vec<String> {
        let gateway = &config.gateway;
        let mut warnings = Vec::new();
        warnings.extend(self.tun_missing());
        warnings.extend(capability_missing(
            Capability::CAP_NET_ADMIN,
            "gatun cannot make its device without it; run it as root",
        ));
        // In mode "tap" the host forwards nothing, and the gateway announces itself through its device.
        if gateway.tap.is_none() {
            let uses = |wanted: Method| {
                let by = |service: &ServiceConfig| {
                    service.servers.iter().any(|server| server.method.unwrap_or(service.method) == wanted)
                };
                config.services.iter().any(by)
            };
            let consequence = match () {
                () if uses(Method::Direct) => Some("without it method \"direct\" does not work"),
                () if uses(Method::Tunnel) => {
                    Some("without it errors about tunnels are not seen, and a narrow path to a server loses packets")
                }
                () if gateway.routes => {
                    Some("without it neighbours learn of a take-over only when their entries time out")
                }
                () => None,
            };
            warnings.extend(consequence.and_then(|what| capability_missing(Capability::CAP_NET_RAW, what)));
        }
        if gateway.routes && gateway.tap.is_none() {
            warnings.extend(self.forwarding_fixed(config));
            warnings.extend(self.prefixes_taken(config));
            warnings.extend(local_pools::warnings(&compile::translate(config), is_own, &self.proc));
        }
        warnings.extend(narrow_pools::warnings(&compile::translate(config), gateway.queues.count()));
        warnings.extend(self.device_taken("[gateway]", &gateway.device));
        warnings.extend(gateway.uplinks.iter().filter_map(|uplink| self.uplink_missing(uplink)));
        warnings.extend(gateway.tap.as_ref().and_then(|tap| self.bridge_missing(tap.bridge.as_deref()?)));
        warnings.extend(self.memory_short(gateway));
        // A gateway that runs by this very file has the address, and will give it up.
        if UnixStream::connect(&gateway.control).is_err() {
            warnings.extend(gateway.metrics.and_then(metrics_taken));
        }
        warnings.extend(wants::warnings(config));
        warnings.extend(config.services.iter().filter_map(helpless));
        warnings.extend(config.services.iter().filter_map(poolless));
        if config.services.is_empty() && config.masquerades.is_empty() && config.forwards.is_empty() {
            warnings.push("the file has no [[service]] and no [[masquerade]]; nothing will be forwarded".to_owned());
        }
        warnings
    }

    /// Why gatun would not start by this file here; what only does not work is a warning.
    pub fn obstacle(&self, config: &Config) -> Option<String> {
        wants::obstacle(config)
    }

    /// The same for a real server.
    pub fn real_server_warnings(&self, config: &RealServerConfig) -> Vec<String> {
        let mut warnings: Vec<String> = self.tun_missing().into_iter().collect();
        warnings.extend(capability_missing(
            Capability::CAP_NET_ADMIN,
            "gatun cannot make its device without it; run it as root",
        ));
        let consequence = "gatun cannot receive tunnelled packets without it; run it as root";
        warnings.extend(capability_missing(Capability::CAP_NET_RAW, consequence));
        warnings.extend(self.device_taken("[real_server]", &config.device));
        warnings
    }

    fn tun_missing(&self) -> Option<String> {
        let tun = self.dev.join("net/tun");
        let error = OpenOptions::new().read(true).write(true).open(&tun).err()?;
        let path = tun.display();
        Some(match error.kind() {
            ErrorKind::NotFound => {
                format!("{path} does not exist; `modprobe tun`, or give the container that device")
            }
            ErrorKind::PermissionDenied => format!("{path} cannot be opened: {error}; run as root"),
            _ => format!("{path} cannot be opened: {error}"),
        })
    }

    /// Forwarding that is off and cannot be switched on, as in containers with a read-only /proc/sys.
    fn forwarding_fixed(&self, config: &Config) -> Vec<String> {
        let inside = config.masquerades.iter().flat_map(|masquerade| &masquerade.from);
        let inside: Vec<Addr> = inside.map(|network| network.value.address).collect();
        let all: Vec<Addr> = compile::translate(config).public_addresses().into_iter().chain(inside).collect();
        let families = [
            (all.iter().any(|addr| addr.is_v4()), "net/ipv4/conf/all/forwarding"),
            (all.iter().any(|addr| !addr.is_v4()), "net/ipv6/conf/all/forwarding"),
        ];
        let sysctl = |name: &str| {
            let path = self.proc.join("sys").join(name);
            let value = std::fs::read_to_string(&path).ok()?;
            off_and_fixed(name, &value, OpenOptions::new().write(true).open(&path).map(drop))
        };
        families.into_iter().filter(|(wanted, _)| *wanted).filter_map(|(_, name)| sysctl(name)).collect()
    }

    /// Outside prefixes that are networks of this host already.
    fn prefixes_taken(&self, config: &Config) -> Vec<String> {
        let routes = std::fs::read_to_string(self.proc.join("net/ipv6_route")).unwrap_or_default();
        let taken = |masquerade: &MasqueradeConfig| {
            let prefix = masquerade.prefix.as_ref()?.value;
            let mut found = routes.lines().filter_map(route6).filter(|(network, _)| *network == prefix);
            let (network, device) = found.find(|(_, device)| *device != config.gateway.device)?;
            Some(format!(
                "masquerade {:?}: prefix {network} is a network of {device} already, and gatun will not start; it needs an outside \
                 prefix of its own, to which routers outside have a route by this host",
                masquerade.name.value
            ))
        };
        config.masquerades.iter().filter_map(taken).collect()
    }

    fn device_taken(&self, table: &str, device: &str) -> Option<String> {
        let directory = self.sys.join("class/net").join(device);
        (directory.exists() && !directory.join("tun_flags").exists())
            .then(|| format!("{table} device {device:?} is an interface of another kind; choose another name"))
    }

    fn uplink_missing(&self, uplink: &str) -> Option<String> {
        let missing = !self.sys.join("class/net").join(uplink).exists();
        missing.then(|| format!("[gateway] uplink {uplink:?}: there is no such interface; `ip link` lists them"))
    }

    fn bridge_missing(&self, bridge: &str) -> Option<String> {
        let directory = self.sys.join("class/net").join(bridge);
        if !directory.exists() {
            return Some(format!(
                "[gateway] bridge {bridge:?}: there is no such interface; `ip link add {bridge} type bridge` makes one"
            ));
        }
        let other = !directory.join("bridge").exists();
        other.then(|| format!("[gateway] bridge {bridge:?} is no bridge; `ip link show type bridge` lists them"))
    }

    fn memory_short(&self, gateway: &GatewayConfig) -> Option<String> {
        let total = memory_total(&self.proc.join("meminfo"))?;
        let needed = gateway.max_flows as u64 * BYTES_PER_FLOW;
        let mib = |bytes: u64| bytes >> 20;
        let flows = gateway.max_flows;
        (needed > total).then(|| {
            let (needed, total) = (mib(needed), mib(total));
            format!("[conntrack] max_flows {flows} may take {needed} MiB; the host has {total} MiB")
        })
    }
}

/// Who may listen at an address has it.
fn is_own(address: Addr) -> bool {
    UdpSocket::bind((address.ip(), 0)).is_ok()
}

/// `writable`: how opening it for writing went.
fn off_and_fixed(sysctl: &str, value: &str, writable: std::io::Result<()>) -> Option<String> {
    let error = writable.err().filter(|_| value.trim() == "0")?;
    let name = sysctl.replace('/', ".");
    Some(format!("{name} is 0 and cannot be changed ({error}); set it to 1 from outside"))
}

fn capability_missing(capability: Capability, consequence: &str) -> Option<String> {
    let held = caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    (!held).then(|| format!("{capability} is missing; {consequence}"))
}

fn metrics_taken(address: SocketAddr) -> Option<String> {
    let error = TcpListener::bind(address).err()?;
    Some(format!("[gateway] metrics \"{address}\" cannot be used: {error}; choose another, or \"off\""))
}

/// Bytes, from `/proc/meminfo`.
fn memory_total(meminfo: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The network and the device of a line of `/proc/net/ipv6_route` (rt6_info_route, net/ipv6/route.c), but for routes that
/// refuse.
fn route6(line: &str) -> Option<(Network, &str)> {
    const REJECT: u32 = 0x0200; // RTF_REJECT (include/uapi/linux/route.h)
    let words: Vec<&str> = line.split_whitespace().collect();
    let [destination, len, _, _, _, _, _, _, flags, device] = words[..] else { return None };
    let address = Addr::from(IpAddr::from(u128::from_str_radix(destination, 16).ok()?.to_be_bytes()));
    let is_way = u32::from_str_radix(flags, 16).ok()? & REJECT == 0;
    is_way.then_some((Network { address, len: u8::from_str_radix(len, 16).ok()? }, device))
}

/// Keys of a pool that no server's flows come from.
fn poolless(service: &ServiceConfig) -> Option<String> {
    let own = service.servers.iter().map(|server| server.method.unwrap_or(service.method));
    let is_used = own.chain([service.method]).any(|method| method == Method::Fullnat);
    let keys = [("pool", service.nat.pool.is_some()), ("pool_ports", service.nat.ports.is_some())];
    let (key, _) = keys.into_iter().find(|(_, is_there)| *is_there && !is_used)?;
    let (name, method) = (&service.name.value, service.method.word());
    Some(format!("service {name:?}: {key} does nothing with method {method:?}; it is for \"fullnat\""))
}

/// What a helper does not do where the server answers by itself.
fn helpless(service: &ServiceConfig) -> Option<String> {
    let helper = service.cluster.helper?;
    let one_way = |server: &ServerConfig| server.method.unwrap_or(service.method).is_one_way();
    service.servers.iter().any(one_way).then(|| {
        format!(
            "service {:?}: helper {:?} does nothing where replies go past the gateway; with such a method let the service \
             listen on all ports (\"{}\"), with persistence",
            service.name.value,
            helper.word(),
            Listen { vip: service.listen.value.vip, ports: PortRange::ALL },
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CONFIG: &str = r#"
[gateway]
uplink = ["eth0"]
metrics = "off"
[conntrack]
max_flows = 1_000_000
[[service]]
name = "web"
listen = "203.0.113.10:80"
server = [{ address = "10.20.0.11" }]
"#;

    /// A directory that looks like a host with what [`CONFIG`] asks for.
    fn host() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().expect("a place for temporary files");
        let host = Host { dev: root.path().join("dev"), proc: root.path().join("proc"), sys: root.path().join("sys") };
        for (path, content) in [
            ("dev/net/tun", ""),
            ("proc/meminfo", "MemFree: 1 kB\nMemTotal:       16000000 kB\n"),
            ("proc/sys/net/ipv4/conf/all/forwarding", "1\n"),
            ("sys/class/net/eth0/mtu", "1500\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("a directory of our own");
            fs::write(path, content).expect("a file of our own");
        }
        (root, host)
    }

    /// Warnings but for those of the capabilities, which depend on who runs the test.
    fn warnings(host: &Host, text: &str) -> Vec<String> {
        let config = Config::parse(Path::new("x.toml"), text).unwrap_or_else(|errors| panic!("{errors}"));
        let mut warnings = host.warnings(&config);
        warnings.retain(|warning| !warning.starts_with("CAP_"));
        warnings
    }

    #[test]
    fn a_fit_host_gives_no_warning() {
        let (_root, host) = host();
        assert_eq!(warnings(&host, CONFIG), [""; 0]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let (root, host) = host();
        fs::remove_file(host.dev.join("net/tun")).expect("it is ours");
        fs::remove_dir_all(host.sys.join("class/net/eth0")).expect("it is ours");
        fs::create_dir_all(host.sys.join("class/net/gatun0")).expect("it is ours");
        fs::write(host.proc.join("meminfo"), "MemTotal: 1000 kB\n").expect("it is ours");
        let tun = root.path().join("dev/net/tun");
        assert_eq!(
            warnings(&host, CONFIG),
            [
                format!("{} does not exist; `modprobe tun`, or give the container that device", tun.display()),
                "[gateway] device \"gatun0\" is an interface of another kind; choose another name".to_owned(),
                "[gateway] uplink \"eth0\": there is no such interface; `ip link` lists them".to_owned(),
                "[conntrack] max_flows 1000000 may take 244 MiB; the host has 0 MiB".to_owned(),
            ]
        );
    }

    #[test]
    fn a_helper_that_cannot_help_is_named() {
        let (_root, host) = host();
        let with = |method: &str| {
            let service = "[[service]]\nname = \"ftp\"\nlisten = \"203.0.113.10:21\"\nhelper = \"ftp\"\n";
            format!("{CONFIG}\n{service}method = \"{method}\"\nserver = [{{ address = \"10.20.0.11\" }}]\n")
        };
        assert_eq!(warnings(&host, &with("nat")), [""; 0]);
        let found = warnings(&host, &with("direct"));
        assert!(matches!(&found[..], [one] if one.contains("helper \"ftp\" does nothing")), "{found:?}");
    }

    #[test]
    fn keys_of_a_pool_without_use_are_named() {
        let (_root, host) = host();
        let with = |keys: &str| warnings(&host, &format!("{CONFIG}{keys}\n"));
        assert_eq!(
            with("pool = [\"10.20.0.200\"]"),
            ["service \"web\": pool does nothing with method \"nat\"; it is for \"fullnat\""]
        );
        assert_eq!(with("pool_ports = \"1024-2047\"").len(), 1);
        assert_eq!(with("pool = [\"10.20.0.200\"]\nmethod = \"fullnat\""), [""; 0]);
        let by_one =
            CONFIG.replace("10.20.0.11\"", "10.20.0.11\", method = \"fullnat\"") + "pool = [\"10.20.0.200\"]\n";
        assert_eq!(warnings(&host, &by_one), [""; 0]);
    }

    #[test]
    fn a_prefix_that_the_host_has_is_named() {
        let (root, host) = host();
        let text =
            format!("{CONFIG}[[masquerade]]\nname = \"six\"\nfrom = [\"fd40::/64\"]\nprefix = \"2001:db8:1::/64\"\n");
        assert_eq!(warnings(&host, &text), [""; 0]);
        let route = |flags: &str, device: &str| {
            let zero = "0".repeat(32);
            let line = format!(
                "20010db8000100000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 {flags} {device:>8}\n"
            );
            fs::create_dir_all(root.path().join("proc/net")).expect("a directory of our own");
            fs::write(root.path().join("proc/net/ipv6_route"), line).expect("a file of our own");
        };
        route("00000001", "eth0");
        let found = warnings(&host, &text);
        assert!(
            matches!(&found[..], [one] if one.contains("2001:db8:1::/64 is a network of eth0 already")),
            "{found:?}"
        );
        assert_eq!(warnings(&host, &text.replace("2001:db8:1::", "2001:db8:2::")), [""; 0]);
        for (flags, device) in [("00000001", "gatun0"), ("00200200", "lo")] {
            route(flags, device);
            assert_eq!(warnings(&host, &text), [""; 0], "{device}");
        }
    }

    #[test]
    fn mode_tap_wants_its_bridge_and_no_forwarding() {
        let (_root, host) = host();
        fs::remove_file(host.proc.join("sys/net/ipv4/conf/all/forwarding")).expect("it is ours");
        let config =
            CONFIG.replace("uplink = [\"eth0\"]", "mode = \"tap\"\nbridge = \"br0\"\naddress = [\"10.20.0.2/24\"]");
        let missing = "[gateway] bridge \"br0\": there is no such interface; `ip link add br0 type bridge` makes one";
        assert_eq!(warnings(&host, &config), [missing]);
        fs::create_dir_all(host.sys.join("class/net/br0")).expect("it is ours");
        let other = "[gateway] bridge \"br0\" is no bridge; `ip link show type bridge` lists them";
        assert_eq!(warnings(&host, &config), [other]);
        fs::create_dir_all(host.sys.join("class/net/br0/bridge")).expect("it is ours");
        assert_eq!(warnings(&host, &config), [""; 0]);
    }

    #[test]
    fn forwarding_matters_where_it_is_off_and_fixed() {
        let (_root, host) = host();
        let forwarding = host.proc.join("sys/net/ipv4/conf/all/forwarding");
        fs::write(&forwarding, "0\n").expect("it is ours");
        assert_eq!(warnings(&host, CONFIG), [""; 0], "gatun can switch it on");
        let refused = || Err(std::io::Error::from(ErrorKind::ReadOnlyFilesystem));
        assert_eq!(off_and_fixed("net/ipv4/conf/all/forwarding", "1\n", refused()), None);
        assert_eq!(
            off_and_fixed("net/ipv4/conf/all/forwarding", "0\n", refused()).as_deref(),
            Some(
                "net.ipv4.conf.all.forwarding is 0 and cannot be changed (read-only filesystem or storage medium); set it to 1 from outside"
            )
        );
    }

    #[test]
    fn a_taken_metrics_address_is_named() {
        let (_root, host) = host();
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port of the loopback interface");
        let address = taken.local_addr().expect("it is bound");
        let text = CONFIG.replace("\"off\"", &format!("\"{address}\"\ncontrol = \"/nonexistent/control.sock\""));
        let found = warnings(&host, &text);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(&format!("[gateway] metrics \"{address}\" cannot be used: ")), "{found:?}");
    }

    #[test]
    fn a_file_without_services_is_worth_a_word() {
        let (_root, host) = host();
        let found = warnings(&host, "[gateway]\nmetrics = \"off\"\n");
        assert_eq!(found, ["the file has no [[service]] and no [[masquerade]]; nothing will be forwarded"]);
    }
}

//! The methods whose replies do not come back through the gateway: how servers and services are set up for them, and the
//! scenarios that hold for each of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::capture::{Capture, endpoints, packets};
use crate::client::{answers, download, random_file, sha256, spread, upload};
use crate::gateway::{Gateway, Setup, service};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{self, VIPS, bind_udp, nginx, udp_echo_at, unbound_at};

/// How packets get to the servers, and who takes off there what was wrapped around them.
#[derive(Clone, Copy)]
pub enum Way {
    Direct,
    /// Wrapped as this value of `tunnel` says; the other end is a BPF program in the server's kernel.
    Kernel(&'static str),
    /// The same, with a server address of the family that the VIP is not of.
    KernelCrossed(&'static str),
    /// Wrapped; the other end is `gatun real-server`.
    RealServer(&'static str),
}

impl Way {
    /// How much a bulk transfer moves: enough for every size of segment, and no more where a test build of the real
    /// server has to look at each byte, or where the same was moved by another way.
    pub fn megabytes(self) -> u32 {
        match self {
            Way::Direct | Way::Kernel(_) => 100,
            Way::KernelCrossed(_) | Way::RealServer(_) => 25,
        }
    }

    pub fn servers(self) -> &'static [&'static str] {
        match self {
            Way::Direct => &["rs1", "rs2", "rs3"],
            _ => &["rs1", "rs2", "rs3", "rs4"],
        }
    }

    pub fn method(self) -> &'static str {
        if matches!(self, Way::Direct) { "direct" } else { "tunnel" }
    }

    /// The programs that a scenario needs, besides its own.
    pub fn needs(self, more: &[&'static str]) -> Vec<&'static str> {
        let kernel: &[&str] =
            if matches!(self, Way::Kernel(_) | Way::KernelCrossed(_)) { &["clang", "tc"] } else { &[] };
        [kernel, more].concat()
    }

    /// Sets a server up.
    pub fn serve(self, lab: &Lab, server: &str) -> Result<()> {
        let kernel = matches!(self, Way::Kernel(_) | Way::KernelCrossed(_)).then_some("--kernel");
        let words: Vec<&str> = [self.method(), bare(VIPS[0]), bare(VIPS[1])].into_iter().chain(kernel).collect();
        lab.serve(server, &words)
    }

    /// The lines of a `[[service.server]]` that say how this one is reached.
    pub fn server_lines(self) -> String {
        match self {
            Way::Direct => "  method = \"direct\"\n".to_string(),
            Way::Kernel(tunnel) | Way::KernelCrossed(tunnel) | Way::RealServer(tunnel) => {
                format!("  method = \"tunnel\"\n  tunnel = \"{tunnel}\"\n")
            }
        }
    }

    /// A service of both families over these servers, in turn. They are asked at the service's own port.
    pub fn services(self, port: u16, protocol: &str, servers: &[&str]) -> String {
        let one = |family: usize| {
            let theirs = if matches!(self, Way::KernelCrossed(_)) { 1 - family } else { family };
            let endpoints = servers::endpoints(servers, theirs, port);
            let weighted: Vec<(&str, u32)> = endpoints.iter().map(|endpoint| (endpoint.as_str(), 1)).collect();
            let name = ["service", "service6"][family];
            let table = service(name, &format!("{}:{port}", VIPS[family]), protocol, "rr", &weighted);
            table.replace("  weight = 1\n", &format!("  weight = 1\n{}", self.server_lines()))
        };
        one(0) + &one(1)
    }
}

pub fn bare(vip: &str) -> &str {
    vip.trim_matches(['[', ']'])
}

/// Sets all servers up, each with nginx at port 80.
fn web_servers(lab: &Lab, way: Way) -> Result<()> {
    way.servers().iter().try_for_each(|server| {
        way.serve(lab, server)?;
        nginx(lab, server, &[80])
    })
}

/// Captures of what crosses gw, other than what its bridge passes from port to port.
pub struct Crossing {
    captures: Vec<(Capture, PathBuf)>,
}

impl Crossing {
    pub fn watch(lab: &Lab) -> Result<Crossing> {
        let start = |interface: &str| {
            let file = lab.path(&format!("crossing-{interface}.pcap"));
            Ok((Capture::of_interface(&lab.netns("gw"), interface, &file)?, file))
        };
        Ok(Crossing { captures: ["eth0", "lan", "gatun0"].into_iter().map(start).collect::<Result<_>>()? })
    }

    /// How many packets crossed that were sent to a VIP's port; there has to be none that came from one.
    pub fn requests_only(self, port: u16) -> Result<usize> {
        let vips: Vec<IpAddr> = VIPS.iter().map(|vip| bare(vip).parse()).collect::<Result<_, _>>()?;
        let of_service = |end: &SocketAddr| end.port() == port && vips.contains(&end.ip());
        let mut requests = 0;
        for (capture, file) in self.captures {
            drop(capture);
            for (from, to) in packets(&file)?.iter().filter_map(|packet| endpoints(packet)) {
                ensure!(!of_service(&from), "{}: a reply crosses the gateway, {from} > {to}", file.display());
                requests += usize::from(of_service(&to));
            }
        }
        Ok(requests)
    }
}

/// Requests are spread in turn, no reply crosses the gateway, and the flows are listed for what they are.
pub fn http(way: Way) {
    scenario(&way.needs(&["nginx", "curl"]), |lab| {
        web_servers(lab, way)?;
        let gateway = Setup::new(way.services(80, "tcp", way.servers())).start(lab)?;
        let crossing = Crossing::watch(lab)?;
        for vip in VIPS {
            let names = answers(lab, vip, 5 * way.servers().len())?;
            let expected: BTreeMap<&str, usize> = way.servers().iter().map(|name| (*name, 5)).collect();
            ensure!(spread(&names) == expected, "{names:?}");
        }
        let requests = crossing.requests_only(80)?;
        // A connection takes its client a SYN, an ACK, a request and a FIN; each is seen on eth0 and gatun0.
        ensure!(requests >= 2 * 5 * way.servers().len() * 4 * 2, "only {requests} packets of requests crossed");
        listed(lab, &gateway, way)
    })
}

/// A connection that is open: one-way, established, with its method and server.
fn listed(lab: &Lab, gateway: &Gateway, way: Way) -> Result<()> {
    gateway.gatun(&["conntrack", "flush"])?.success()?;
    for vip in VIPS {
        let to: SocketAddr = format!("{vip}:80").parse()?;
        let mut stream = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        ensure!(stream.read(&mut [0; 1024])? > 0, "no answer from {vip}");
        let flows = gateway.flows(&["--method", way.method(), "--dst", bare(vip)])?;
        ensure!(flows.len() == 1, "one connection: {flows:?}");
        let flow = &flows[0];
        ensure!(flow.state.as_deref() == Some("ESTABLISHED") && flow.unreplied, "{flow:?}");
        // The server answers under the VIP.
        let client = stream.local_addr()?;
        ensure!((flow.reply.src, flow.reply.dst) == (to.ip(), client.ip()), "{flow:?}");
        ensure!(flow.reply.ports == (80, client.port()), "{flow:?}");
        let wide = gateway.gatun(&["conntrack", "list", "-o", "wide", "--dst", bare(vip)])?.success()?;
        let server = wide.split(' ').find_map(|word| word.strip_prefix("server=")).context("server=")?;
        let known = |name: &&str| servers::address(name).iter().any(|address| server.contains(address));
        ensure!(way.servers().iter().any(known), "{wide}");
        ensure!(wide.contains(&format!(" method={}", way.method())), "{wide}");
        // Nothing is known of the other direction.
        let counters: Vec<&str> = wide.split(' ').filter_map(|word| word.strip_prefix("packets=")).collect();
        ensure!(counters.len() == 2 && counters[0] != "0" && counters[1] == "0", "{wide}");
    }
    Ok(())
}

/// Each way, byte for byte.
pub fn bulk(way: Way) {
    scenario(&way.needs(&["nginx", "curl"]), |lab| {
        let server = way.servers().last().context("a server")?;
        way.serve(lab, server)?;
        nginx(lab, server, &[80])?;
        random_file(lab, "original", way.megabytes())?;
        let sum = sha256(lab, "original")?;
        let _gateway = Setup::new(way.services(80, "tcp", &[server])).uncaptured().start(lab)?;
        for vip in VIPS {
            download(lab, vip, "original", "downloaded")?;
            ensure!(sha256(lab, "downloaded")? == sum, "{vip}: downloaded, the checksums differ");
            upload(lab, vip, "original", "uploaded")?;
            ensure!(sha256(lab, "uploaded")? == sum, "{vip}: uploaded, the checksums differ");
        }
        Ok(())
    })
}

/// DNS over UDP: dig accepts an answer only from the address that it asked.
pub fn dns(way: Way) {
    scenario(&way.needs(&["unbound", "dig"]), |lab| {
        let vips = VIPS.map(bare);
        for server in way.servers() {
            way.serve(lab, server)?;
            unbound_at(lab, server, &vips, vips[0], 53)?;
        }
        let gateway = Setup::new(way.services(53, "udp", way.servers())).start(lab)?;
        for vip in vips {
            let ask = |_| {
                let at = format!("@{vip}");
                let dig = ["dig", &at, "+time=1", "+tries=1", "+short", "whoami.test.", "TXT"];
                Ok::<_, anyhow::Error>(lab.run("client", &dig)?.success()?.trim().trim_matches('"').to_string())
            };
            eventually("the first answer", PATIENCE, || ask(0).is_ok())?;
            gateway.gatun(&["conntrack", "flush"])?.success()?;
            let names = (0..2 * way.servers().len()).map(ask).collect::<Result<Vec<_>>>()?;
            let expected: BTreeMap<&str, usize> = way.servers().iter().map(|name| (*name, 2)).collect();
            ensure!(spread(&names) == expected, "{names:?}");
            let flows = gateway.flows(&["--proto", "udp", "--dst", vip])?;
            ensure!(flows.len() == names.len() && flows.iter().all(|flow| flow.unreplied), "{flows:?}");
        }
        Ok(())
    })
}

/// The VIP answers ping, though only the servers have it: the gateway does it for them, as with `nat`.
pub fn ping(way: Way) {
    scenario(&way.needs(&["ping"]), |lab| {
        way.servers().iter().try_for_each(|server| way.serve(lab, server))?;
        let gateway = Setup::new(way.services(80, "tcp", way.servers())).start(lab)?;
        for vip in VIPS {
            for size in ["56", "1400", "6000"] {
                let words = ["ping", "-c", "5", "-i", "0.05", "-W", "2", "-s", size, bare(vip)];
                let output = lab.run("client", &words)?;
                ensure!(output.stdout.contains(" 0% packet loss"), "{size} bytes: {output}");
            }
        }
        ensure!(gateway.metric("gatun_replied_total", &[])? >= 20.0, "it was not gatun who answered");
        Ok(())
    })
}

/// Flows end by what the client alone shows: the FIN of a closed connection, silence of any.
pub fn expiry(way: Way) {
    scenario(&way.needs(&["nginx", "curl"]), |lab| {
        web_servers(lab, way)?;
        let timeouts = "timeouts = { tcp_established = \"1h\", tcp_fin_wait = \"1s\", tcp_syn_sent = \"1h\", tcp_syn_recv = \"1h\" }";
        let gateway = Setup::new(way.services(80, "tcp", way.servers())).conntrack(timeouts).start(lab)?;
        for vip in VIPS {
            answers(lab, vip, way.servers().len())?;
        }
        eventually("closed connections expire", Duration::from_secs(5), || gateway.flow_count().is_ok_and(|n| n == 0))?;
        let to: SocketAddr = format!("{}:80", VIPS[0]).parse()?;
        let open = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
        std::thread::sleep(Duration::from_secs(3));
        ensure!(gateway.flow_count()? == 1, "an open connection does not");
        drop(open);
        eventually("until it is closed", PATIENCE, || gateway.flow_count().is_ok_and(|n| n == 0))
    })
}

/// A hop of 1400 bytes on the servers' own way to the client: its "too big" is sent to the VIP, whose packets they are,
/// and the gateway hands it on to the server that sends them.
pub fn narrow_way_to_the_client(way: Way) {
    scenario(&way.needs(&["nginx", "curl"]), |lab| {
        // "lock" makes the router refuse larger packets as a link of that size would.
        lab.sh(
            "router",
            "ip route replace 198.51.100.0/24 via 192.0.2.2 mtu lock 1400
             ip route replace 2001:db8:1::/64 via 2001:db8:2::2 mtu lock 1400",
        )?;
        let server = way.servers().last().context("a server")?;
        way.serve(lab, server)?;
        nginx(lab, server, &[80])?;
        random_file(lab, "original", 10)?;
        let _gateway = Setup::new(way.services(80, "tcp", &[server])).start(lab)?;
        for (vip, client) in VIPS.iter().zip(["198.51.100.2", "2001:db8:1::2"]) {
            let begin = Instant::now();
            download(lab, vip, "original", "downloaded")?;
            ensure!(begin.elapsed() < Duration::from_secs(4), "{vip}: took {:?}", begin.elapsed());
            ensure!(sha256(lab, "downloaded")? == sha256(lab, "original")?, "{vip}: the checksums differ");
            let learnt = lab.sh(server, &format!("ip route get {client} from {}", bare(vip)))?;
            ensure!(learnt.contains("mtu 1400"), "the server did not learn it: {learnt}");
        }
        Ok(())
    })
}

/// Datagrams that the client sends in fragments: only the first of these says whose they are.
pub fn fragments(way: Way) {
    scenario(&way.needs(&[]), |lab| {
        for server in way.servers() {
            way.serve(lab, server)?;
            VIPS.iter().try_for_each(|vip| udp_echo_at(lab, server, &format!("{vip}:9000")))?;
        }
        let _gateway = Setup::new(way.services(9000, "udp", way.servers())).start(lab)?;
        for vip in VIPS {
            let to: SocketAddr = format!("{vip}:9000").parse()?;
            let local: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
            for _ in way.servers() {
                let socket = lab.inside("client", move || bind_udp(local))??;
                socket.set_read_timeout(Some(Duration::from_secs(1)))?;
                socket.connect(to)?;
                // The first may be lost: a server is looked for, or the client has to learn what fits.
                eventually("an answer", PATIENCE, || {
                    [1400, 1472, 4000].iter().all(|length| echo(&socket, *length).is_ok())
                })?;
                for length in [1, 1472, 1473, 4000, 20_000, 60_000] {
                    let same = echo(&socket, length).with_context(|| format!("{vip}: {length} bytes"))?;
                    ensure!(same, "{vip}: {length}: other bytes came back");
                }
            }
        }
        Ok(())
    })
}

/// Sends a datagram, and says whether the same one came back.
pub fn echo(socket: &UdpSocket, length: usize) -> std::io::Result<bool> {
    let sent: Vec<u8> = (0..length).map(|n| n as u8).collect();
    socket.send(&sent)?;
    let mut received = vec![0; 65536];
    let length = socket.recv(&mut received)?;
    Ok(received[..length] == sent)
}

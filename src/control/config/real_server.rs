//! The file of `gatun real-server`: one table, `[real_server]`.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;

use super::address::parse_plain;
use super::problem::{ConfigErrors, Located, Problems, Source};
use super::read::{device_name, encapsulation, set, socket_path};
use super::section::Section;
use super::{Config, document, keys, read_file};
use crate::wire::outer::GUE_PORT;
use crate::wire::{Addr, Encapsulation};

/// Addresses in each list: far more than a server has, and few enough to look through for each packet.
const MAX_ADDRESSES: usize = 256;

/// What a real server takes, and under which addresses it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealServerConfig {
    /// Sorted, each once; so are the other lists.
    pub vips: Vec<Addr>,
    /// Who may send tunnelled packets.
    pub gateways: Vec<Addr>,
    pub tunnels: Vec<Encapsulation>,
    /// Name of the TUN device that holds the VIPs.
    pub device: String,
    /// Bytes that a packet from a gateway may have, outer headers excluded, 576 to 65535; `None`: what the way to the
    /// gateways leaves.
    pub mtu: Option<u16>,
    /// Path of the socket that tells the counters.
    pub control: PathBuf,
}

impl Default for RealServerConfig {
    /// Without the addresses, which have no default.
    fn default() -> RealServerConfig {
        RealServerConfig {
            vips: Vec::new(),
            gateways: Vec::new(),
            tunnels: vec![Encapsulation::Ipip],
            device: "gatun-rs0".to_owned(),
            mtu: None,
            control: PathBuf::from("/run/gatun/real-server.sock"),
        }
    }
}

/// What a configuration file is for.
#[derive(Debug)]
pub enum AnyConfig {
    Gateway(Box<Config>),
    RealServer(RealServerConfig),
}

impl AnyConfig {
    /// Reads and checks a file of either kind; what has no `[real_server]` is taken for a gateway's.
    pub fn load(path: &Path) -> Result<AnyConfig, ConfigErrors> {
        let source = read_file(path)?;
        let (document, _) = toml::de::DeTable::parse_recoverable(&source.text);
        let keys = ["gateway", "service"];
        if document.get_ref().contains_key("real_server")
            && !keys.iter().any(|key| document.get_ref().contains_key(*key))
        {
            return RealServerConfig::parse(path, &source.text).map(AnyConfig::RealServer);
        }
        Config::parse(path, &source.text).map(|config| AnyConfig::Gateway(Box::new(config)))
    }
}

impl RealServerConfig {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<RealServerConfig, ConfigErrors> {
        let source = read_file(path)?;
        RealServerConfig::parse(path, &source.text)
    }

    /// Reads and checks `text`, which messages call `file`; reports all mistakes.
    pub fn parse(file: &Path, text: &str) -> Result<RealServerConfig, ConfigErrors> {
        let (source, document) = document(file, text)?;
        read(&document, &source)
    }

    /// What the command line says, in the words of the file.
    ///
    /// # Errors
    /// One sentence on the first thing that is wrong.
    pub fn from_words(
        vips: &[String],
        gateways: &[String],
        tunnels: &[String],
        device: Option<&str>,
        mtu: Option<u16>,
    ) -> Result<RealServerConfig, String> {
        fn all<T: Ord>(
            what: &str,
            words: &[String],
            parse: impl Fn(&str) -> Result<T, String>,
        ) -> Result<Vec<T>, String> {
            let parsed = words.iter().map(|word| parse(word).map_err(|wrong| format!("{what} {word:?} {wrong}")));
            let mut list = parsed.collect::<Result<Vec<T>, String>>()?;
            if list.len() > MAX_ADDRESSES {
                return Err(format!("more than {MAX_ADDRESSES} of {what}"));
            }
            list.sort_unstable();
            list.dedup();
            Ok(list)
        }
        let default = RealServerConfig::default();
        let device = device.map(|name| device_name(name).map_err(|wrong| format!("--device {name:?} {wrong}")));
        let tunnels = match tunnels {
            [] => default.tunnels.clone(),
            tunnels => sorted(all("--tunnel", tunnels, |word| encapsulation(word).map(Ordered))?),
        };
        Ok(RealServerConfig {
            vips: all("--vip", vips, |word| parse_plain(word, "is no address of a service"))?,
            gateways: all("--gateway", gateways, |word| parse_plain(word, "is no address of a gateway"))?,
            tunnels,
            device: device.transpose()?.unwrap_or(default.device),
            mtu,
            control: default.control,
        })
    }

    pub fn allows_ipip(&self) -> bool {
        self.tunnels.contains(&Encapsulation::Ipip)
    }

    /// The UDP ports on which GUE is taken.
    pub fn gue_ports(&self) -> Vec<u16> {
        let port = |tunnel: &Encapsulation| match *tunnel {
            Encapsulation::Gue { port } => Some(port),
            Encapsulation::Ipip => None,
        };
        self.tunnels.iter().filter_map(port).collect()
    }
}

/// [`Encapsulation`] in an order: IP-in-IP, then GUE by port.
#[derive(PartialEq, Eq)]
struct Ordered(Encapsulation);

impl Ordered {
    fn key(&self) -> u32 {
        match self.0 {
            Encapsulation::Ipip => 0,
            Encapsulation::Gue { port } => 1 + u32::from(port),
        }
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Ordered) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Ordered) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

fn sorted(list: Vec<Ordered>) -> Vec<Encapsulation> {
    list.into_iter().map(|Ordered(tunnel)| tunnel).collect()
}

fn read(document: &Spanned<DeTable<'_>>, source: &Source) -> Result<RealServerConfig, ConfigErrors> {
    let problems = Problems::default();
    let file = Section::new(document.get_ref(), 0..0, String::new(), &keys::REAL_SERVER_FILE, &problems);
    file.require("real_server", "[real_server]");
    let mut config = RealServerConfig::default();
    if let Some(section) = file.table("real_server", "[real_server]", &keys::REAL_SERVER) {
        read_section(&section, &mut config);
    }
    problems.into_result(config, source)
}

fn read_section(section: &Section<'_>, config: &mut RealServerConfig) {
    section.require("vip", r#"vip = ["203.0.113.10"]"#);
    section.require("gateway", r#"gateway = ["10.20.0.1"]"#);
    config.vips = list(section, "vip", r#"["203.0.113.10"]"#, |text| parse_plain(text, "is no address of a service"));
    config.gateways =
        list(section, "gateway", r#"["10.20.0.1"]"#, |text| parse_plain(text, "is no address of a gateway"));
    let gue_port: u16 = section.integer("gue_port", 1..=65535).unwrap_or(GUE_PORT);
    if section.has("tunnel") {
        let tunnel = |text: &str| match encapsulation(text)? {
            // Written without a port.
            Encapsulation::Gue { .. } if text == "gue" => Ok(Ordered(Encapsulation::Gue { port: gue_port })),
            tunnel => Ok(Ordered(tunnel)),
        };
        config.tunnels = sorted(list(section, "tunnel", r#"["ipip", "gue"]"#, tunnel));
    }
    set(&mut config.device, section.parsed("device", device_name));
    config.mtu = section.auto_or_integer("mtu", 576..=65535);
    set(&mut config.control, section.parsed("control", socket_path));
}

/// The elements of a list that must not be empty: sorted, each once.
fn list<T: Ord>(section: &Section<'_>, key: &str, example: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
    let Some(strings) = section.strings(key, example) else { return Vec::new() };
    let mut found = Vec::new();
    if strings.is_empty() || strings.len() > MAX_ADDRESSES {
        let count = strings.len();
        section.refuse(section.span_of(key), format!("{key} has {count} entries; it must have 1 to {MAX_ADDRESSES}"));
    }
    for Located { value, span } in strings {
        match parse(value) {
            Ok(value) => found.push(value),
            Err(wrong) => section.refuse(span, format!("{key} {value:?} {wrong}")),
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RealServerConfig, String> {
        RealServerConfig::parse(Path::new("x.toml"), text).map_err(|errors| errors.to_string())
    }

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<std::net::IpAddr>().expect("an address"))
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"[real_server]
vip = ["2001:db8:f::10", "203.0.113.10", "203.0.113.10"]
gateway = ["10.20.0.1", "fd20::1"]
tunnel = ["gue", "ipip", "gue:7000"]
device = "rs9"
gue_port = 6081
mtu = 1400
control = "/run/x.sock"
"#,
        );
        let gue = |port| Encapsulation::Gue { port };
        let mut expected = RealServerConfig {
            vips: vec![addr("203.0.113.10"), addr("2001:db8:f::10")],
            gateways: vec![addr("10.20.0.1"), addr("fd20::1")],
            tunnels: vec![Encapsulation::Ipip, gue(6081), gue(7000)],
            device: "rs9".to_owned(),
            mtu: Some(1400),
            control: "/run/x.sock".into(),
        };
        expected.vips.sort_unstable();
        expected.gateways.sort_unstable();
        assert_eq!(config.as_ref(), Ok(&expected));
        assert_eq!(config.expect("it is right").gue_ports(), [6081, 7000]);
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let config =
            parse("[real_server]\nvip = [\"203.0.113.10\"]\ngateway = [\"10.20.0.1\"]\n").expect("it is right");
        let expected = RealServerConfig {
            vips: vec![addr("203.0.113.10")],
            gateways: vec![addr("10.20.0.1")],
            ..RealServerConfig::default()
        };
        assert_eq!(config, expected);
        assert!(config.allows_ipip() && config.gue_ports().is_empty() && config.device == "gatun-rs0");
    }

    #[test]
    fn every_mistake_has_its_place() {
        let shown = parse(
            "[real_server]\nvip = [\"224.0.0.1\", \"203.0.113.10:80\"]\ngatway = [\"10.20.0.1\"]\ntunnel = [\"gre\"]\nmtu = 100\n",
        )
        .expect_err("it is wrong");
        let heads: Vec<&str> = shown.lines().filter(|line| line.starts_with("x.toml")).collect();
        assert_eq!(
            heads,
            [
                "x.toml:2:8: [real_server]: vip \"224.0.0.1\" is no address of a service: it is a multicast address",
                "x.toml:2:21: [real_server]: vip \"203.0.113.10:80\" has a port; write the address alone",
                "x.toml:3:1: [real_server]: unknown key \"gatway\"; did you mean \"gateway\"?",
                "x.toml:4:11: [real_server]: tunnel \"gre\" is not supported by this version yet; there are ipip, gue",
                "x.toml:5:7: [real_server]: mtu = 100 is out of range; it must be \"auto\" or a whole number from 576 to 65535",
            ]
        );
        assert!(parse("").expect_err("nothing").contains("\"real_server\" is missing"));
        let shown = parse("[real_server]\nvip = []\ngateway = [\"10.20.0.1\"]\n").expect_err("no VIP");
        assert!(shown.starts_with("x.toml:2:7: [real_server]: vip has 0 entries; it must have 1 to 256"), "{shown}");
    }

    #[test]
    fn lists_are_bounded() {
        let many: Vec<String> = (0..257).map(|n| format!("\"10.0.{}.{}\"", n / 200, 1 + n % 200)).collect();
        let text = format!("[real_server]\nvip = [{}]\ngateway = [\"10.20.0.1\"]\n", many.join(","));
        assert!(parse(&text).expect_err("too many").contains("vip has 257 entries"));
    }

    #[test]
    fn the_command_line_says_the_same() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let from = |vips: &[&str], tunnels: &[&str]| {
            RealServerConfig::from_words(&words(vips), &words(&["10.20.0.1"]), &words(tunnels), None, None)
        };
        let file = "[real_server]\nvip = [\"203.0.113.10\"]\ngateway = [\"10.20.0.1\"]\ntunnel = [\"ipip\", \"gue\"]\n";
        assert_eq!(from(&["203.0.113.10"], &["gue", "ipip"]), parse(file));
        assert_eq!(
            from(&["203.0.113.10"], &["gre"]).expect_err("unknown"),
            "--tunnel \"gre\" is not supported by this version yet; there are ipip, gue"
        );
        assert!(from(&["web.example"], &[]).is_err());
    }

    #[test]
    fn a_file_tells_what_it_is_for() {
        let directory = tempfile::tempdir().expect("a place for temporary files");
        let path = directory.path().join("x.toml");
        let load = |text: &str| {
            std::fs::write(&path, text).expect("a file of our own");
            AnyConfig::load(&path)
        };
        let server = "[real_server]\nvip = [\"203.0.113.10\"]\ngateway = [\"10.20.0.1\"]\n";
        assert!(matches!(load(server), Ok(AnyConfig::RealServer(_))));
        assert!(matches!(load("[gateway]\n"), Ok(AnyConfig::Gateway(_))));
        let both = load(&format!("[gateway]\n{server}")).expect_err("one or the other").to_string();
        assert!(both.contains("unknown key \"real_server\"; it belongs in the file of gatun real-server"), "{both}");
    }
}

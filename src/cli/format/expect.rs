//! Expectations as conntrack-tools prints them: the line of libnetfilter_conntrack's `nfexp_snprintf` in its default output
//! type. Linux knows of what is expected everything but the source port, and so do we: the masks say that.
//!
//! ```text
//! 60 proto=6 src=… dst=… sport=0 dport=… mask-src=… mask-dst=… sport=0 dport=65535 master-src=… master-dst=… sport=… dport=… class=0 helper=ftp
//! ```
//!
//! Pure: what is printed follows from the arguments alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::conntrack::{Address, Style, TOOLS_VERSION};
use crate::control::api::{Endpoints, Expectation};

/// A line of `conntrack -L expect`, without its end. The original knows no other style.
pub fn line(expectation: &Expectation, style: Style) -> String {
    let Expectation { protonum, timeout, src, dst, dport, master, .. } = expectation;
    let mut line = String::new();
    if style.extended {
        line.push_str(if src.is_ipv4() { "ipv4     2 " } else { "ipv6     10 " });
    }
    let mask = Address(whole(*src));
    let Endpoints { src: master_src, dst: master_dst, sport, dport: master_port, .. } = master;
    line.push_str(&format!(
        "{timeout} proto={protonum} src={} dst={} sport=0 dport={dport} mask-src={mask} mask-dst={mask} sport=0 \
         dport=65535 master-src={} master-dst={} sport={sport} dport={master_port} class=0",
        Address(*src),
        Address(*dst),
        Address(*master_src),
        Address(*master_dst),
    ));
    if let Some(helper) = &expectation.helper {
        line.push_str(&format!(" helper={helper}"));
    }
    if style.wide {
        let Expectation { service, server, method, opener, shard, .. } = expectation;
        line.push_str(&format!(" service={service} server={server} method={method} opener={opener} shard={shard}"));
    }
    line
}

/// The summary after a list.
pub fn summary(expectations: u64) -> String {
    format!("conntrack v{TOOLS_VERSION} (conntrack-tools): {expectations} expectations have been shown.")
}

/// The mask of an address of which every bit counts.
fn whole(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => Ipv4Addr::BROADCAST.into(),
        IpAddr::V6(_) => Ipv6Addr::from([0xff; 16]).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expectation(src: &str, dst: &str, dport: u16) -> Expectation {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        Expectation {
            proto: "tcp".to_owned(),
            protonum: 6,
            timeout: 59,
            src,
            dst,
            dport,
            opener: "client".to_owned(),
            master: Endpoints { proto: "tcp".to_owned(), src, dst, sport: 34_526, dport: 21 },
            helper: Some("ftp".to_owned()),
            service: "files".to_owned(),
            server: "10.20.0.11:21".to_owned(),
            method: "nat".to_owned(),
            shard: 1,
        }
    }

    // The first line is what conntrack 1.4.7 says of the same, but for the timeout.
    #[test]
    fn lines() {
        let passive = expectation("10.2.1.1", "10.8.4.12", 46_767);
        let expected = "59 proto=6 src=10.2.1.1 dst=10.8.4.12 sport=0 dport=46767 mask-src=255.255.255.255 \
                        mask-dst=255.255.255.255 sport=0 dport=65535 master-src=10.2.1.1 master-dst=10.8.4.12 \
                        sport=34526 dport=21 class=0 helper=ftp";
        let style = |extended, wide| Style { extended, wide };
        assert_eq!(line(&passive, style(false, false)), expected);
        assert_eq!(line(&passive, style(true, false)), format!("ipv4     2 {expected}"));
        let wide = format!("{expected} service=files server=10.20.0.11:21 method=nat opener=client shard=1");
        assert_eq!(line(&passive, style(false, true)), wide);
        let six = line(&expectation("2001:db8:1::2", "2001:db8:f::10", 40_001), style(true, false));
        let mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let head = "ipv6     10 59 proto=6 src=2001:db8:1::2 dst=2001:db8:f::10 sport=0 dport=40001";
        assert!(six.starts_with(&format!("{head} mask-src={mask} mask-dst={mask} sport=0 dport=65535 ")), "{six}");
        let unread = Expectation { helper: None, ..passive };
        assert!(line(&unread, style(false, false)).ends_with(" class=0"));
    }

    #[test]
    fn a_summary() {
        assert_eq!(summary(0), "conntrack v1.4.7 (conntrack-tools): 0 expectations have been shown.");
    }
}

//! Return paths as few rules: the kernel walks all rules for every packet.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::change::Ports;
use super::plan::ReturnPath;

/// Return paths, gathered into few rules.
#[derive(Debug, Default)]
pub struct Returns {
    ports: BTreeMap<(u8, Ports), Vec<IpNet>>,
    protocols: BTreeMap<u8, Vec<IpNet>>,
    pub all: Vec<IpNet>,
}

/// The kernel walks the rules one after the other for every packet, so there must not be many.
const MANY: usize = 32;

impl Returns {
    pub fn gather(paths: &[&ReturnPath]) -> Self {
        let mut found = Returns::default();
        for path in paths {
            match (path.protocol, path.ports) {
                (Some(protocol), Some(ports)) => found.ports.entry((protocol, ports)).or_default().push(path.from),
                (Some(protocol), None) => found.protocols.entry(protocol).or_default().push(path.from),
                (None, _) => found.all.push(path.from),
            }
        }
        found.merge();
        if found.len() > MANY {
            found.drop_ports();
        }
        for host_bits in [4, 8, 64] {
            if found.len() > MANY {
                found.widen(host_bits);
            }
        }
        found
    }

    fn len(&self) -> usize {
        let nets = |lists: &mut dyn Iterator<Item = &Vec<IpNet>>| lists.map(Vec::len).sum::<usize>();
        nets(&mut self.ports.values()) + nets(&mut self.protocols.values()) + self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn merge(&mut self) {
        for nets in self.ports.values_mut().chain(self.protocols.values_mut()) {
            *nets = IpNet::aggregate(nets);
        }
        self.all = IpNet::aggregate(&self.all);
    }

    /// Also takes what the servers send from other ports; the engine passes that.
    fn drop_ports(&mut self) {
        for ((protocol, _), nets) in std::mem::take(&mut self.ports) {
            self.protocols.entry(protocol).or_default().extend(nets);
        }
        self.merge();
    }

    /// Also takes what the servers' neighbours send; the engine passes that.
    fn widen(&mut self, host_bits: u8) {
        for net in self.protocols.values_mut().flatten().chain(&mut self.all) {
            let len = net.prefix_len().min(net.max_prefix_len().saturating_sub(host_bits));
            // Half of the address at least stays fixed: an IPv4 network of /0 would take everything.
            if len >= net.max_prefix_len() / 2 {
                *net = IpNet::new_assert(net.addr(), len).trunc();
            }
        }
        self.merge();
    }

    pub fn with_ports(&self) -> impl Iterator<Item = (u8, Ports, IpNet)> + '_ {
        self.ports.iter().flat_map(|((protocol, ports), nets)| nets.iter().map(|net| (*protocol, *ports, *net)))
    }

    pub fn whole(&self) -> impl Iterator<Item = (u8, IpNet)> + '_ {
        self.protocols.iter().flat_map(|(protocol, nets)| nets.iter().map(|net| (*protocol, *net)))
    }

    /// Who may send fragments that no rule with a port matches.
    pub fn fragments(&self) -> BTreeMap<u8, Vec<IpNet>> {
        let mut found: BTreeMap<u8, Vec<IpNet>> = BTreeMap::new();
        for ((protocol, _), nets) in &self.ports {
            found.entry(*protocol).or_default().extend(nets);
        }
        found.values_mut().for_each(|nets| *nets = IpNet::aggregate(nets));
        found
    }
}

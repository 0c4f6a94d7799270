//! The keys of every table, and what to say about others.

/// What may stand in one kind of table.
#[derive(Debug)]
pub(super) struct Keys {
    /// As it is written in the file.
    pub header: &'static str,
    pub known: &'static [&'static str],
    /// Known to the documentation, but not to this version.
    pub later: &'static [&'static str],
}

pub(super) static FILE: Keys = Keys {
    header: "the top of the file",
    known: &["gateway", "conntrack", "limits", "nat", "service", "masquerade", "forward"],
    later: &[],
};

pub(super) static GATEWAY: Keys = Keys {
    header: "[gateway]",
    known: &[
        "mode", "device", "uplink", "queues", "control", "metrics", "routes", "offload", "priority", "mtu", "seed",
        "bridge", "mac", "address", "router", "resolver",
    ],
    later: &[],
};

pub(super) static CONNTRACK: Keys =
    Keys { header: "[conntrack]", known: &["max_flows", "profile", "timeouts"], later: &[] };

pub(super) static TIMEOUTS: Keys = Keys {
    header: "[conntrack.timeouts]",
    known: &[
        "tcp_none",
        "tcp_syn_sent",
        "tcp_syn_recv",
        "tcp_established",
        "tcp_fin_wait",
        "tcp_close_wait",
        "tcp_last_ack",
        "tcp_time_wait",
        "tcp_close",
        "tcp_listen",
        "tcp_synack",
        "udp",
        "icmp",
        "fragment",
    ],
    later: &[],
};

pub(super) static LIMITS: Keys = Keys {
    header: "[limits]",
    known: &[
        "replies_per_second",
        "fragmented_packets",
        "held_fragment_bytes",
        "persistent_clients",
        "expectations",
        "half_open",
        "new_flows_per_client",
        "new_flows_per_second",
        "unsolicited_syns",
    ],
    later: &[],
};

pub(super) static SERVICE: Keys = Keys {
    header: "[[service]]",
    known: &[
        "name",
        "listen",
        "protocol",
        "method",
        "tunnel",
        "scheduler",
        "scheduler_flags",
        "group",
        "persistence",
        "one_packet",
        "sorry_server",
        "on_server_down",
        "on_server_removed",
        "passive",
        "helper",
        "data_ports",
        "pool",
        "pool_ports",
        "proxy_protocol",
        "syn_proxy",
        "new_flows_per_second",
        "check",
        "quorum",
        "hysteresis",
        "quorum_up",
        "quorum_down",
        "server",
    ],
    later: &[],
};

pub(super) static NAT: Keys = Keys { header: "[nat]", known: &["pool", "ports", "quarantine"], later: &[] };

pub(super) static MASQUERADE: Keys = Keys {
    header: "[[masquerade]]",
    known: &["name", "from", "except", "to", "ports", "prefix", "filtering", "helpers", "max_mappings"],
    later: &[],
};

pub(super) static FORWARD: Keys =
    Keys { header: "[[forward]]", known: &["name", "listen", "protocol", "to"], later: &[] };

pub(super) static PERSISTENCE: Keys =
    Keys { header: "persistence = { timeout = \"6m\" }", known: &["timeout", "netmask", "prefix"], later: &[] };

pub(super) static PASSIVE: Keys = Keys { header: "passive = { fall = 3 }", known: &["fall", "hold"], later: &[] };

pub(super) static SERVER: Keys = Keys {
    header: "[[service.server]]",
    known: &[
        "name",
        "address",
        "weight",
        "method",
        "tunnel",
        "max_connections",
        "min_connections",
        "slow_start",
        "check",
    ],
    later: &[],
};

pub(super) static CHECK: Keys = Keys {
    header: "check = { … }",
    known: &[
        "type",
        "interval",
        "timeout",
        "rise",
        "fall",
        "jitter",
        "port",
        "via",
        "initial",
        "path",
        "method",
        "host",
        "version",
        "expect",
        "body",
        "digest",
        "sni",
        "ca",
        "certificate",
        "key",
        "payload",
        "name",
        "query",
        "transport",
        "rcode",
        "answer",
        "helo",
        "user",
        "password",
        "command",
        "weight",
    ],
    later: &[],
};

/// The top of another file than the others'.
pub(super) static REAL_SERVER_FILE: Keys =
    Keys { header: "the file of gatun real-server", known: &["real_server"], later: &[] };

pub(super) static REAL_SERVER: Keys = Keys {
    header: "[real_server]",
    known: &["vip", "gateway", "tunnel", "device", "gue_port", "mtu", "control"],
    later: &[],
};

/// Every table there is.
pub(super) static ALL: [&Keys; 15] = [
    &FILE,
    &GATEWAY,
    &CONNTRACK,
    &TIMEOUTS,
    &LIMITS,
    &SERVICE,
    &SERVER,
    &NAT,
    &MASQUERADE,
    &FORWARD,
    &PERSISTENCE,
    &PASSIVE,
    &CHECK,
    &REAL_SERVER_FILE,
    &REAL_SERVER,
];

/// What is called otherwise elsewhere: the table, the name there that is none here, the name here.
const OTHERWISE: [(&str, &str, &str); 3] =
    [("[[masquerade]]", "pool", "to"), ("[[masquerade]]", "pool_ports", "ports"), ("[nat]", "pool_ports", "ports")];

fn otherwise(key: &str, keys: &Keys) -> Option<&'static str> {
    OTHERWISE.iter().find(|(table, wrong, _)| *table == keys.header && *wrong == key).map(|(.., right)| *right)
}

/// What is wrong with `key` in a table of `keys`.
pub(super) fn unknown(key: &str, keys: &Keys) -> String {
    if keys.later.contains(&key) {
        return format!("{key:?} is not supported by this version yet");
    }
    if let Some(right) = otherwise(key, keys) {
        return format!("unknown key {key:?}; it is called {right:?} here");
    }
    let elsewhere = ALL.iter().find(|other| other.known.contains(&key) || other.later.contains(&key));
    let hint = match (nearest(key, keys.known.iter().chain(keys.later).copied()), elsewhere) {
        (_, Some(other)) => format!("it belongs in {}", other.header),
        (Some(near), None) => format!("did you mean {near:?}?"),
        (None, None) => format!("keys here are {}", keys.known.join(", ")),
    };
    format!("unknown key {key:?}; {hint}")
}

/// Whether the unknown key `found` was most likely meant to be `key`.
pub(super) fn misspells(found: &str, key: &str, keys: &Keys) -> bool {
    let meant = || otherwise(found, keys).or_else(|| nearest(found, keys.known.iter().copied()));
    !keys.known.contains(&found) && meant() == Some(key)
}

/// What is wrong with `text` where one of `words` should stand, as the end of a sentence that begins with the text.
pub(super) fn unknown_word<'a>(text: &str, words: impl Iterator<Item = &'a str> + Clone, later: &[&'a str]) -> String {
    let all = words.clone().collect::<Vec<_>>().join(", ");
    let choice = if words.clone().count() == 1 { format!("only {all} is") } else { format!("there are {all}") };
    if later.contains(&text) {
        return format!("is not supported by this version yet; {choice}");
    }
    match nearest(text, words.chain(later.iter().copied())) {
        Some(near) => format!("is unknown; did you mean {near:?}? ({all})"),
        None => format!("is unknown; {choice}"),
    }
}

/// The one of `words` that `text` is most likely a misspelling of.
fn nearest<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any word and every one of its likely misspellings.
    if text.len() > 64 {
        return None;
    }
    let text = text.to_lowercase().replace('-', "_");
    let distance = |word: &str| strsim::damerau_levenshtein(&text, word);
    let (distance, word) = words.map(|word| (distance(word), word)).min()?;
    // One wrong letter in three still reads as the word; in a short word a single one does.
    (distance <= (word.len() / 3).max(1)).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_find_their_word() {
        let rows = [
            ("schedular", Some("scheduler")),
            ("Scheduler", Some("scheduler")),
            ("shceduler", Some("scheduler")),
            ("lisen", Some("listen")),
            ("protocoll", Some("protocol")),
            ("servers", Some("server")),
            ("nam", Some("name")),
            ("frobnicate", None),
            ("x", None),
            ("", None),
        ];
        for (text, expected) in rows {
            assert_eq!(nearest(text, SERVICE.known.iter().copied()), expected, "{text:?}");
        }
    }

    #[test]
    fn every_key_stands_once_in_its_table() {
        for keys in ALL {
            let mut all: Vec<_> = keys.known.iter().chain(keys.later).collect();
            all.sort();
            let count = all.len();
            all.dedup();
            assert_eq!(all.len(), count, "{}", keys.header);
        }
    }

    #[test]
    fn the_timeouts_are_those_of_the_engine() {
        let names = crate::timeouts::Timeouts::default().entries().map(|(name, _)| name);
        assert_eq!(TIMEOUTS.known, names);
    }
}

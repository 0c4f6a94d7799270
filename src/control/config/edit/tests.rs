use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::super::Config;
use super::*;

const FILE: &str = r#"# The gateway of the shop.

# Who looks after it: ops.
[gateway]
device = "gatun0"   # the usual one

[[service]]
name = "web"        # the front page
listen = "203.0.113.10:80"
scheduler = "rr"    # in turn

  # In the first rack.
  [[service.server]]
  address = "10.20.0.11:8080"
  weight = 1   # slow

  [[service.server]]
  name = "two"
  address = "10.20.0.12:8080"

# Inline, for a change.
[[service]]
name = "dns"
listen = "203.0.113.10:53"
protocol = "udp"
server = [
  { address = "10.20.0.11:53" },   # old
  { address = "10.20.0.12:53" },
]

# The end.
"#;

/// The edits as they come over the socket.
fn edits(json: Json) -> Vec<Edit> {
    serde_json::from_value(json).unwrap()
}

fn edited(text: &str, json: Json) -> String {
    let text = apply(text, &edits(json)).unwrap_or_else(|error| panic!("{error}"));
    let config = Config::parse(Path::new("x.toml"), &text);
    config.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    text
}

/// Lines that are only in the old text, and those only in the new one.
fn changed(old: &str, new: &str) -> (Vec<String>, Vec<String>) {
    let only = |a: &str, b: &str| {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).map(str::to_owned).collect::<Vec<_>>()
    };
    (only(old, new), only(new, old))
}

#[test]
fn a_service_by_fullnat_comes_with_its_pool() {
    let keys = json!({"listen": "203.0.113.10:443", "method": "fullnat", "pool": ["10.20.0.100", "10.20.0.101"],
                      "pool_ports": "2000-3000", "proxy_protocol": "v2", "syn_proxy": "always",
                      "new_flows_per_second": 500, "server": [{"address": "10.20.0.11:8443"}]});
    let added = edited(FILE, json!([{"edit": "service.add", "service": "tls", "keys": keys}]));
    let (gone, come) = changed(FILE, &added);
    assert!(gone.is_empty(), "{gone:?}");
    assert!(come.contains(&r#"pool = ["10.20.0.100", "10.20.0.101"]"#.to_owned()), "{come:?}");
    let compiled = Config::parse(Path::new("x.toml"), &added).unwrap().compiled().unwrap();
    let spec = compiled.snapshot.services.last().unwrap();
    assert_eq!((spec.pool.addresses.len(), spec.pool.ports.to_string()), (2, "2000-3000".to_owned()));
    assert_eq!(spec.proxy_protocol.map(|version| version.word()), Some("v2"));
    assert_eq!((spec.syn_proxy.word(), spec.new_flows_per_second), ("always", Some(500)));
    let set = json!([{"edit": "service.set", "service": "tls", "keys": {"pool_ports": null, "syn_proxy": "never"}}]);
    let (gone, come) = changed(&added, &edited(&added, set));
    assert_eq!((gone.len(), come), (2, vec![r#"syn_proxy = "never""#.to_owned()]));
}

#[test]
fn a_value_changes_and_all_else_stays() {
    let rows = [
        (
            json!([{"edit": "service.set", "service": "web", "keys": {"scheduler": "wlc"}}]),
            vec![r#"scheduler = "rr"    # in turn"#],
            vec![r#"scheduler = "wlc"    # in turn"#],
        ),
        (
            json!([{"edit": "server.set", "service": "web", "server": "10.20.0.11:8080", "keys": {"weight": 0}}]),
            vec!["  weight = 1   # slow"],
            vec!["  weight = 0   # slow"],
        ),
        (
            json!([{"edit": "server.set", "service": "web", "server": "two", "keys": {"weight": 7, "name": "second"}}]),
            vec![r#"  name = "two""#],
            vec![r#"  name = "second""#, "  weight = 7"],
        ),
        (
            json!([{"edit": "server.set", "service": "dns", "server": "10.20.0.12:53", "keys": {"weight": 3}}]),
            vec![r#"  { address = "10.20.0.12:53" },"#],
            vec![r#"  { address = "10.20.0.12:53", weight = 3 },"#],
        ),
        (
            json!([{"edit": "service.set", "service": "web", "keys": {"persistence": {"timeout": "6m", "netmask": 24}}}]),
            vec![],
            vec![r#"persistence = { netmask = 24, timeout = "6m" }"#],
        ),
        (
            json!([{"edit": "server.set", "service": "web", "server": "10.20.0.11:8080", "keys": {"weight": null}}]),
            vec!["  weight = 1   # slow"],
            vec![],
        ),
    ];
    for (edits, gone, new) in rows {
        let text = edited(FILE, edits.clone());
        let expected = (gone.into_iter().map(str::to_owned).collect(), new.into_iter().map(str::to_owned).collect());
        assert_eq!(changed(FILE, &text), expected, "{edits}\n{text}");
    }
}

#[test]
fn servers_and_services_come_in_the_style_of_the_others() {
    let text = edited(
        FILE,
        json!([
            {"edit": "server.add", "service": "web", "keys": {"weight": 2, "address": "10.20.0.13:8080"}},
            {"edit": "server.add", "service": "dns", "keys": {"address": "10.20.0.13:53"}},
            {"edit": "service.add", "service": "mail", "keys": {
                "listen": "203.0.113.10:25", "scheduler": "lc", "server": [{"address": "10.20.0.11:25"}]
            }},
        ]),
    );
    let web = r#"
  [[service.server]]
  name = "two"
  address = "10.20.0.12:8080"

  [[service.server]]
  address = "10.20.0.13:8080"
  weight = 2

# Inline, for a change."#;
    let dns = r#"
  { address = "10.20.0.12:53" },
  { address = "10.20.0.13:53" },
]
"#;
    let mail = r#"
[[service]]
name = "mail"
listen = "203.0.113.10:25"
scheduler = "lc"

[[service.server]]
address = "10.20.0.11:25"

# The end.
"#;
    assert!(text.contains(web) && text.contains(dns) && text.ends_with(mail), "{text}");
    assert_eq!(changed(FILE, &text).0, [""; 0]);
}

#[test]
fn a_service_is_the_first_and_another_the_last() {
    let text = edited(
        "[gateway]\ndevice = \"gatun1\"\n",
        json!([{"edit": "service.add", "service": "web", "keys": {"listen": "203.0.113.10:80"}}]),
    );
    assert_eq!(
        text,
        "[gateway]\ndevice = \"gatun1\"\n\n[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nserver = []\n"
    );
    assert_eq!(
        edited(&text, json!([{"edit": "service.remove", "service": "web"}])),
        "[gateway]\ndevice = \"gatun1\"\n"
    );
    let cleared = edited(FILE, json!([{"edit": "service.clear"}]));
    assert!(cleared.contains("device = \"gatun0\"   # the usual one") && !cleared.contains("web"), "{cleared}");
}

#[test]
fn all_inline_is_as_good() {
    let file = r#"service = [{ name = "web", listen = "203.0.113.10:80", server = [{ address = "10.20.0.11" }] }]"#;
    let text = edited(
        file,
        json!([
            {"edit": "server.add", "service": "web", "keys": {"address": "10.20.0.12"}},
            {"edit": "service.add", "service": "two", "keys": {"listen": "203.0.113.10:81"}},
            {"edit": "server.add", "service": "two", "keys": {"address": "10.20.0.12", "name": "a"}},
            {"edit": "server.set", "service": "two", "server": "a", "keys": {"weight": 2}},
            {"edit": "server.remove", "service": "web", "server": "10.20.0.11"},
        ]),
    );
    let expected = r#"service = [{ name = "web", listen = "203.0.113.10:80", server = [{ address = "10.20.0.12" }] }, { name = "two", listen = "203.0.113.10:81", server = [{ name = "a", address = "10.20.0.12", weight = 2 }] }]"#;
    assert_eq!(text.trim_end(), expected);
}

#[test]
fn a_comment_stays_with_its_server_in_a_list() {
    let file = r#"[[service]]
name = "web"
listen = "203.0.113.10:80"
server = [
  # The first.
  { address = "10.20.0.11" }, # rack one
  { address = "10.20.0.12" }, # rack two
  # The third.
  { address = "10.20.0.13" }, # rack three
]
"#;
    for (last, gone) in [
        (11, &["  # The first.", "  { address = \"10.20.0.11\" }, # rack one"][..]),
        (12, &["  { address = \"10.20.0.12\" }, # rack two"]),
        (13, &["  # The third.", "  { address = \"10.20.0.13\" }, # rack three"]),
    ] {
        let server = format!("10.20.0.{last}");
        let text = edited(file, json!([{"edit": "server.remove", "service": "web", "server": server}]));
        let expected: String =
            file.lines().filter(|line| !gone.contains(line)).map(|line| format!("{line}\n")).collect();
        assert_eq!(text, expected);
    }
    let all = [11, 12, 13]
        .map(|last| json!({"edit": "server.remove", "service": "web", "server": format!("10.20.0.{last}")}));
    assert!(!edited(file, json!(all)).contains("rack"));
    // However it is written, it can be read.
    let [a, b, c] = [11, 12, 13].map(|last| format!("{{ address = \"10.20.0.{last}\" }}"));
    for (list, without_the_second) in [
        (format!("[{a}, {b}, {c}]"), format!("[{a}, {c}]")),
        (format!("[ {a}, {b}, {c} ]"), format!("[ {a}, {c} ]")),
        (format!("[{a}, # 1\n{b}, {c}]"), format!("[{a}, # 1\n{c}]")),
        (format!("[\n {a}, {b}, # 1 and 2\n {c} # 3\n]"), format!("[\n {a}, # 1 and 2\n {c} # 3\n]")),
        (format!("[ # all\n {a} # 1\n , {b}, {c}]"), format!("[ # all\n {a} # 1\n , {c}]")),
    ] {
        let file = format!("[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nserver = {list}\n");
        let removals = [11, 12, 13].map(|last| {
            edited(&file, json!([{"edit": "server.remove", "service": "web", "server": format!("10.20.0.{last}")}]))
        });
        assert!(removals[1].ends_with(&format!("server = {without_the_second}\n")), "{}", removals[1]);
    }
}

#[test]
fn the_comment_above_a_table_outlives_its_replacement() {
    let file = r#"[[service]]
name = "web"
listen = "203.0.113.10:80"
server = []

# What the shop answers.
[service.check] # of it
type = "http"

# Who pays.
[[service]]
name = "two"
listen = "203.0.113.11:80"
server = []
"#;
    let check = json!({"type": "tcp"});
    let text = edited(file, json!([{"edit": "service.set", "service": "web", "keys": {"check": check}}]));
    for kept in ["# What the shop answers.", "# of it", "# Who pays.", "type = \"tcp\""] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
    let gone = edited(file, json!([{"edit": "service.set", "service": "web", "keys": {"check": null}}]));
    assert!(!gone.contains("check") && !gone.contains("of it") && gone.contains("# Who pays."), "{gone}");
}

#[test]
fn the_last_server_goes_and_the_service_stays() {
    let text = edited(
        FILE,
        json!([
            {"edit": "server.remove", "service": "web", "server": "10.20.0.11:8080"},
            {"edit": "server.remove", "service": "web", "server": "two"},
            {"edit": "server.remove", "service": "dns", "server": "10.20.0.11:53"},
            {"edit": "server.remove", "service": "dns", "server": "10.20.0.12:53"},
        ]),
    );
    let config = Config::parse(Path::new("x.toml"), &text).unwrap();
    assert!(config.services.iter().all(|service| service.servers.is_empty()), "{text}");
    // And may have some again.
    let again = edited(&text, json!([{"edit": "server.add", "service": "web", "keys": {"address": "10.20.0.9"}}]));
    assert!(again.contains("[[service.server]]\naddress = \"10.20.0.9\""), "{again}");
}

#[test]
fn a_comment_of_the_file_outlives_the_service_below_it() {
    let file = "# The file.\n\n# Of web.\n[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nserver = []\n";
    let two = format!("{file}\n# Of two.\n[[service]]\nname = \"two\"\nlisten = \"203.0.113.10:81\"\nserver = []\n");
    let remove = json!([{"edit": "service.remove", "service": "web"}]);
    let text = edited(&two, remove.clone());
    assert!(text.starts_with("# The file.\n\n# Of two.\n[[service]]"), "{text}");
    assert_eq!(edited(file, remove).trim_end(), "# The file.");
}

#[test]
fn timeouts_are_set_one_by_one() {
    let set = |timeouts: Json| json!([{"edit": "conntrack.set", "keys": {"timeouts": timeouts}}]);
    let text = edited(FILE, set(json!({"udp": "10s", "icmp": "20s"})));
    let text = edited(&text, set(json!({"udp": null, "tcp_established": "15m"})));
    let config = Config::parse(Path::new("x.toml"), &text).unwrap();
    let seconds = |timeout: std::time::Duration| timeout.as_secs();
    let timeouts = config.timeouts;
    assert_eq!((seconds(timeouts.udp), seconds(timeouts.icmp), seconds(timeouts.tcp_established)), (300, 20, 900));
    let inline = "conntrack = { timeouts = { udp = \"1m\" } } # all\n";
    let text = edited(inline, set(json!({"icmp": "20s"})));
    assert_eq!(text, "conntrack = { timeouts = { udp = \"1m\", icmp = \"20s\" } } # all\n");
    assert!(edited("conntrack = {}\n", set(json!({"icmp": "20s"}))).contains("timeouts = {"));
    let profile = edited(FILE, json!([{"edit": "conntrack.set", "keys": {"profile": "ipvs"}}]));
    assert!(profile.contains("[conntrack]\nprofile = \"ipvs\"\n"), "{profile}");
}

#[test]
fn what_cannot_be_edited_is_a_sentence() {
    let rows = [
        (json!([{"edit": "service.set", "service": "wen", "keys": {}}]), "no service is named \"wen\""),
        (json!([{"edit": "service.remove", "service": "wen"}]), "no service is named \"wen\""),
        (json!([{"edit": "server.add", "service": "wen", "keys": {}}]), "no service is named \"wen\""),
        (
            json!([{"edit": "server.remove", "service": "web", "server": "10.20.0.12:8080"}]),
            "service \"web\" has no server named \"10.20.0.12:8080\"",
        ),
        (
            json!([{"edit": "server.add", "service": "web", "keys": {"address": "10.20.0.11:8080"}}]),
            "service \"web\" has a server named \"10.20.0.11:8080\" already",
        ),
        (
            json!([{"edit": "service.add", "service": "web", "keys": {"listen": "203.0.113.11:80"}}]),
            "there is a service named \"web\" already",
        ),
        (
            json!([{"edit": "service.add", "service": "a", "keys": {"name": "b"}}]),
            "service.add: \"name\" is \"b\" in the keys of what is to be called \"a\"; leave it out",
        ),
        (
            json!([{"edit": "server.set", "service": "web", "server": "two", "keys": {"weight": 18_446_744_073_709_551_615_u64}}]),
            "service \"web\", server \"two\": weight = 18446744073709551615 is more than a TOML number can be",
        ),
    ];
    for (json, expected) in rows {
        let error = apply(FILE, &edits(json.clone())).expect_err(expected);
        assert_eq!(error.to_string(), expected, "{json}");
    }
}

// Keys and values are the parser's to judge; what it says needs no place in a file to be understood.
#[test]
fn wrong_keys_are_told_as_in_a_file() {
    let rows = [
        (
            json!({"wieght": 1}),
            r#"[[service]] "web", server "10.20.0.11:8080": unknown key "wieght"; did you mean "weight"?"#,
        ),
        (
            json!({"weight": "many"}),
            r#"[[service]] "web", server "10.20.0.11:8080": "weight" must be a whole number from 0 to 65535, not a string"#,
        ),
        (
            json!({"address": null}),
            r#"[[service]] "web", server number 1: "address" is missing; add for example address = "10.20.0.11:8080""#,
        ),
    ];
    for (keys, expected) in rows {
        let json = json!([{"edit": "server.set", "service": "web", "server": "10.20.0.11:8080", "keys": keys}]);
        let text = apply(FILE, &edits(json)).unwrap();
        let errors = Config::parse(Path::new("x.toml"), &text).expect_err(expected);
        assert_eq!(errors.problems()[0].message, expected);
    }
}

#[test]
fn an_address_is_a_name_however_it_is_written() {
    let file = "[[service]]\nname = \"six\"\nlisten = \"[2001:db8::1]:80\"\nserver = [{ address = \"fd20:0::11\" }]\n";
    let text =
        edited(file, json!([{"edit": "server.set", "service": "six", "server": "[fd20::11]", "keys": {"weight": 2}}]));
    assert!(text.contains("{ address = \"fd20:0::11\", weight = 2 }"), "{text}");
}

fn name() -> impl Strategy<Value = String> {
    "[a-e]"
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let value = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i32>().prop_map(Json::from),
        "[ -~]{0,6}".prop_map(Json::from),
        Just(json!([{"address": "10.0.0.1"}, 1, [null]])),
        Just(json!({"timeout": "5m", "udp": null})),
    ];
    let key = prop_oneof!["(server|name|address|weight|listen|timeouts)", "[a-z \"]{0,3}"];
    let keys =
        || proptest::collection::hash_map(key.clone(), value.clone(), 0..4).prop_map(|map| map.into_iter().collect());
    prop_oneof![
        (name(), keys()).prop_map(|(service, keys)| Edit::AddService { service, keys }),
        (name(), keys()).prop_map(|(service, keys)| Edit::SetService { service, keys }),
        name().prop_map(|service| Edit::RemoveService { service }),
        Just(Edit::ClearServices {}),
        (name(), keys()).prop_map(|(service, keys)| Edit::AddServer { service, keys }),
        (name(), name(), keys()).prop_map(|(service, server, keys)| Edit::SetServer { service, server, keys }),
        (name(), name()).prop_map(|(service, server)| Edit::RemoveServer { service, server }),
        keys().prop_map(|keys| Edit::SetConntrack { keys }),
    ]
}

proptest! {
    // Whatever is asked for, the outcome is TOML again or an error.
    #[test]
    fn no_edit_breaks_the_syntax(list in proptest::collection::vec(any_edit(), 0..8), inline: bool) {
        let file = if inline { "service = [{ name = \"a\", server = [{ name = \"b\" }] }]" } else { FILE };
        if let Ok(text) = apply(file, &list) {
            prop_assert!(text.parse::<DocumentMut>().is_ok(), "{text}");
        }
    }

    // What is added and removed again leaves no trace.
    #[test]
    fn adding_and_removing_is_nothing(
        names in proptest::collection::hash_set("[a-z]{3,6}", 1..6),
        service in proptest::sample::select(vec!["web", "dns"]),
        weight in 0..9,
        together: bool,
    ) {
        prop_assume!(!["web", "dns", "two"].iter().any(|name| names.contains(*name)));
        let mut list = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let address = format!("10.1.0.{number}:99");
            let keys = json!({"name": name, "address": address, "weight": weight});
            list.push(json!({"edit": "server.add", "service": service, "keys": keys.clone()}));
            list.push(json!({"edit": "service.add", "service": name, "keys": {
                "listen": format!("203.0.113.20:{}", number + 1), "server": [keys]
            }}));
        }
        for name in &names {
            list.push(json!({"edit": "server.remove", "service": service, "server": name}));
            list.push(json!({"edit": "service.remove", "service": name}));
        }
        let text = if together {
            edited(FILE, Json::Array(list))
        } else {
            list.into_iter().fold(FILE.to_owned(), |text, edit| edited(&text, json!([edit])))
        };
        prop_assert_eq!(text, FILE);
    }
}

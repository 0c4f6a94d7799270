use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::control::config::Config;
use crate::service::Snapshot;

/// A file of keepalived, and what is made of it.
const SAMPLES: [(&str, &str, &str); 3] = [
    ("web", include_str!("../../../tests/import/web.conf"), include_str!("../../../tests/import/web.toml")),
    (
        "services",
        include_str!("../../../tests/import/services.conf"),
        include_str!("../../../tests/import/services.toml"),
    ),
    ("group", include_str!("../../../tests/import/group.conf"), include_str!("../../../tests/import/group.toml")),
];

/// With `GATUN_BLESS` set the golden files are written instead.
#[test]
fn samples_come_out_as_they_should() {
    for (name, conf, golden) in SAMPLES {
        let made = keepalived("keepalived.conf", conf);
        if std::env::var_os("GATUN_BLESS").is_some() {
            std::fs::write(format!("tests/import/{name}.toml"), &made.text).expect("the tree can be written");
            continue;
        }
        assert_eq!(made.text, golden, "{name}");
    }
}

#[test]
fn what_comes_out_is_a_configuration() {
    for (name, conf, _) in SAMPLES {
        let made = keepalived("keepalived.conf", conf);
        let config =
            Config::parse(Path::new(name), &made.text).unwrap_or_else(|errors| panic!("{errors}\n{}", made.text));
        assert_eq!(config.services.len(), made.services);
        let compiled = config.compiled().unwrap_or_else(|errors| panic!("{errors}"));
        assert!(Snapshot::build(compiled.snapshot, None).is_ok());
    }
}

#[test]
fn nothing_to_carry_is_no_loss() {
    let made = keepalived("x", "! empty\n\n# nothing\n");
    assert_eq!((made.services, made.lost.len()), (0, 0));
}

// Of keepalived, by checker: how often it asks again, and after how many seconds.
#[test]
fn how_soon_a_server_is_taken_down_is_kept_or_told() {
    let losses = |checker: &str, more: &str| {
        let text = format!(
            "virtual_server 203.0.113.10 80 {{\n delay_loop 10\n real_server 10.0.0.1 80 {{\n  {checker} {{\n   \
             {}\n{more}\n  }}\n }}\n}}\n",
            match checker {
                "MISC_CHECK" => "misc_path /bin/true",
                "HTTP_GET" => "url {\n path /\n }",
                _ => "",
            }
        );
        let made = keepalived("x", &text);
        let (_, fall) = made.text.split_once("fall = ").unwrap_or_else(|| panic!("{}", made.text));
        let told = made.lost.into_iter().map(|lost| lost.what).collect::<Vec<_>>().join("\n");
        (fall.chars().take_while(char::is_ascii_digit).collect::<String>(), told)
    };
    for (checker, more, fall, after) in [
        ("TCP_CHECK", "", "2", "1s"),
        ("PING_CHECK", "", "2", "1s"),
        ("SMTP_CHECK", "", "2", "1s"),
        ("HTTP_GET", "", "2", "3s"),
        ("HTTP_GET", "retry 0", "1", ""),
        ("MISC_CHECK", "", "1", ""),
        ("MISC_CHECK", "retry 2", "3", "1s"),
        ("DNS_CHECK", "", "4", ""),
        ("DNS_CHECK", "delay_before_retry 2", "4", "2s"),
        ("TCP_CHECK", "delay_before_retry 10", "2", ""),
        ("TCP_CHECK", "delay_before_retry 20", "2", "20s"),
        ("TCP_CHECK", "delay_loop 1", "2", ""),
    ] {
        let (made, told) = losses(checker, more);
        assert_eq!(made, fall, "{checker} {more}");
        match after {
            "" => assert_eq!(told, "", "{checker} {more}"),
            after => assert!(told.contains(&format!("and not after {after};")), "{checker} {more}: {told}"),
        }
    }
}

#[test]
fn ranges_of_addresses_are_bounded() {
    let text = "virtual_server_group g {\n 2001:db8::1-ffff 80\n}\nvirtual_server group g {\n real_server fd20::1 80 {\n }\n}\n";
    let made = keepalived("x", text);
    assert_eq!(made.services, MAX_SERVICES);
    assert_eq!(made.lost, [Lost { line: 4, what: "virtual_server: more than 4096 services".to_owned() }]);
}

#[test]
fn blocks_within_blocks_are_bounded() {
    let made = keepalived("x", &"a {\n".repeat(100_000));
    assert!(made.lost.iter().any(|lost| lost.what == "too many blocks within blocks"));
    assert!(keepalived("x", &"}\n".repeat(3)).lost.iter().all(|lost| lost.what == "\"}\" closes no block"));
}

proptest! {
    /// Whatever is in the file, the outcome is TOML; and pieces of a real file make a configuration or an error, no panic.
    #[test]
    fn any_text_comes_out_as_toml(
        lines in prop::collection::vec(prop::sample::select(
            SAMPLES.iter().flat_map(|(_, conf, _)| conf.lines()).collect::<Vec<_>>()), 0..60),
        noise in ".{0,40}",
    ) {
        let text = format!("{}\n{noise}\n{}", lines.join("\n"), lines.join("\n"));
        let made = keepalived("x\ny", &text);
        prop_assert!(made.text.parse::<::toml::Table>().is_ok(), "{}", made.text);
    }
}

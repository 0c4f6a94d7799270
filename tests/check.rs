//! `gatun check` as an operator calls it.
#![cfg(feature = "gateway")]

use std::path::Path;
use std::process::Command;

const SERVICE: &str =
    "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nserver = [{ address = \"10.20.0.11\" }]\n";

/// Exit code, standard output and standard error for a file of this text.
fn check(text: &str) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().expect("a place for temporary files");
    std::fs::write(directory.path().join("x.toml"), text).expect("a file of our own");
    run(directory.path(), &["check", "-c", "x.toml"])
}

fn run(directory: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gatun")).args(args).current_dir(directory).output();
    let output = output.expect("the program was built");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("gatun writes UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_good_file_is_counted() {
    let (code, stdout, stderr) = check(SERVICE);
    assert_eq!((code, stdout.as_str()), (Some(0), "x.toml: ok: 1 service, 1 server\n"), "{stderr}");
    let lan = "[[masquerade]]\nname = \"lan\"\nfrom = [\"10.21.0.0/24\"]\nto = [\"203.0.113.100\"]\n";
    let (code, stdout, stderr) = check(&format!("{SERVICE}{lan}"));
    assert_eq!((code, stdout.as_str()), (Some(0), "x.toml: ok: 1 service, 1 server, 1 masquerade\n"), "{stderr}");
}

#[test]
fn the_file_of_a_real_server_is_known() {
    let text = "[real_server]\nvip = [\"203.0.113.10\"]\ngateway = [\"10.20.0.1\", \"fd20::1\"]\n";
    let (code, stdout, stderr) = check(text);
    assert_eq!((code, stdout.as_str()), (Some(0), "x.toml: ok: a real server, 1 VIP, 2 gateways\n"), "{stderr}");
    let (code, _, stderr) = check(&text.replace("vip", "vips"));
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("x.toml:2:1: [real_server]: unknown key \"vips\"; did you mean \"vip\"?\n"), "{stderr}");
}

#[test]
fn what_the_host_lacks_is_a_warning() {
    let (code, stdout, stderr) = check(&format!("[gateway]\nuplink = [\"no-such-link\"]\n{SERVICE}"));
    assert_eq!((code, stdout.as_str()), (Some(0), "x.toml: ok: 1 service, 1 server\n"));
    let warning =
        "x.toml: warning: [gateway] uplink \"no-such-link\": there is no such interface; `ip link` lists them\n";
    assert!(stderr.contains(warning), "{stderr}");
}

#[test]
fn a_bad_file_fails_with_every_mistake() {
    let (code, stdout, stderr) = check(&format!("[gateway]\nqueues = 99\n{SERVICE}schedular = \"rr\"\n"));
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let expected = "x.toml:2:10: [gateway]: queues = 99 is out of range; it must be \"auto\" or a whole number from 1 to 16\n    \
                    2 | queues = 99\n      |          ^^\n\
                    x.toml:7:1: [[service]] \"web\": unknown key \"schedular\"; did you mean \"scheduler\"?\n    \
                    7 | schedular = \"rr\"\n      | ^^^^^^^^^\n";
    assert_eq!(stderr, expected);
}

#[test]
fn a_missing_file_and_wrong_usage_differ() {
    let here = Path::new(".");
    let (code, _, stderr) = run(here, &["check", "-c", "/nonexistent/gatun.toml"]);
    assert_eq!(code, Some(1));
    assert_eq!(stderr, "/nonexistent/gatun.toml: cannot be read: No such file or directory (os error 2)\n");
    assert_eq!(run(here, &["check", "--frobnicate"]).0, Some(2));
    let default = "/etc/gatun/gatun.toml";
    let (code, _, stderr) = run(here, &["check"]);
    let hint = stderr.starts_with(&format!("gatun: there is no {default}: ")) && stderr.contains("-c FILE");
    assert_eq!(hint && code == Some(1), !Path::new(default).exists(), "{stderr}");
}

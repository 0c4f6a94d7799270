//! What is left of a scenario that failed, and how one is skipped.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::lab::Lab;

/// Daemons that give up root.
const OF_SEVERAL_USERS: [&str; 5] = ["postfix", "dovecot", "innd", "squid", "vsftpd"];

/// What keeps a scenario from running on this host, in one sentence.
pub fn obstacle(needs: &[&str]) -> Option<String> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Some("it needs root, or to be run by scripts/test where user namespaces are allowed".to_string());
    }
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun: {error}"));
    }
    // The one thing that clang is for.
    if needs.contains(&"clang") && in_user_namespace() {
        return Some("it loads a BPF program, which root of a user namespace may not".to_string());
    }
    let users = needs.iter().find(|program| OF_SEVERAL_USERS.contains(program));
    if let Some(program) = users.filter(|_| in_user_namespace()) {
        return Some(format!("{program} runs as users whom a user namespace has not"));
    }
    let missing: Vec<&str> = needs.iter().chain(&["ip", "nsenter"]).copied().filter(|p| !installed(p)).collect();
    (!missing.is_empty()).then(|| format!("not installed: {} (scripts/setup installs them)", missing.join(", ")))
}

/// Whether user ids are mapped (user_namespaces(7)): in the first namespace each stands for itself.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The news server's programs are in no ordinary place.
    let mut places = std::env::split_paths(&path).chain(["/usr/lib/news/bin".into()]);
    places.any(|directory| directory.join(program).is_file())
}

/// Notes that a scenario did not run: on stderr, and in the file that `scripts/test` prints at its end. With `CI=true`
/// that is a failure.
pub fn skip(name: &str, reason: &str) {
    let line = format!("{name}: {reason}");
    eprintln!("skipped: {line}");
    if let Some(path) = std::env::var_os("GATUN_SKIPPED") {
        let written =
            fs::File::options().create(true).append(true).open(&path).and_then(|mut file| writeln!(file, "{line}"));
        written.expect("the file in GATUN_SKIPPED can be written to");
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped, which CI=true forbids: {line}");
}

/// Writes down the state of the lab, and keeps logs and captures, under netns-tests/captures. Answers what a reader
/// wants to see at once.
pub fn write(lab: &Lab, name: &str) -> String {
    let kept = directory(name);
    forget(name);
    if let Err(error) = fs::create_dir_all(&kept) {
        return format!("{}: {error}", kept.display());
    }
    let mut state = String::new();
    for (node, line) in [
        ("gw", "ip rule; ip -6 rule"),
        ("gw", "ip route show table all; ip -6 route show table all"),
        ("gw", "ip -s link; ip addr; ip neigh; ip neigh show proxy"),
        ("gw", "cat /proc/net/snmp /proc/net/netstat /proc/net/snmp6"),
        ("client", "ip addr; ip route; ip -6 route; ip neigh"),
    ] {
        let _ = writeln!(state, "# {node}: {line}\n{}", lab.sh(node, line).unwrap_or_else(|e| format!("{e:#}")));
    }
    let mut summary = String::new();
    for gateway in lab.gateways.borrow().iter() {
        for words in [&["status"][..], &["conntrack", "list", "-o", "wide"], &["conntrack", "stats"]] {
            let answer = gateway.gatun(words).map_or_else(|e| format!("{e:#}"), |finished| finished.to_string());
            let _ = writeln!(state, "# gatun {}\n{answer}", words.join(" "));
        }
        gateway.stop_capture();
        let log = fs::read_to_string(&gateway.log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        let _ = writeln!(summary, "the gateway's last words:\n{}", tail.join("\n"));
    }
    let _ = fs::write(kept.join("state.txt"), state);
    for file in files_of(&lab.directory) {
        let Some(file_name) = file.file_name() else { continue };
        // Bulk data says nothing.
        if fs::metadata(&file).is_ok_and(|meta| meta.len() < 64 << 20) {
            let _ = fs::copy(&file, kept.join(file_name));
        }
    }
    let _ = write!(summary, "state, logs and captures: {}", kept.display());
    summary
}

/// Removes what an earlier run of a scenario left.
pub fn forget(name: &str) {
    let _ = fs::remove_dir_all(directory(name));
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("netns-tests/captures").join(name.replace("::", "-"))
}

fn files_of(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()).map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

//! `gatun run` as a service manager sees it: start, reload, stop, and starts that cannot succeed. Each gateway runs in a
//! network namespace of its own; what cannot run here is skipped by name.
#![cfg(feature = "gateway")]

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

/// A directory with a configuration, a place for notifications, and maybe a gateway.
struct Fixture {
    directory: TempDir,
    notifications: UnixDatagram,
    gateway: Option<Child>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(gateway) = &mut self.gateway {
            let _ = gateway.kill();
            let _ = gateway.wait();
        }
    }
}

/// `None`, after saying so, where this host does not let a gateway run.
fn fixture(name: &str) -> Option<Fixture> {
    let namespace = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    let reason = if !namespace.is_ok_and(|status| status.success()) {
        "no network namespace can be made (run as root)"
    } else if OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
        "/dev/net/tun cannot be opened"
    } else {
        let directory = tempfile::tempdir().unwrap();
        let notifications = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        notifications.set_read_timeout(Some(SOON)).unwrap();
        return Some(Fixture { directory, notifications, gateway: None });
    };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} cannot run: {reason}");
    eprintln!("SKIPPED {name}: {reason}");
    if let Some(list) = std::env::var_os("GATUN_SKIPPED") {
        let mut list = OpenOptions::new().create(true).append(true).open(list).unwrap();
        writeln!(list, "{name}: {reason}").unwrap();
    }
    None
}

fn config(device: &str, scheduler: &str, servers: &[&str]) -> String {
    let servers: Vec<String> = servers.iter().map(|server| format!("{{ address = \"{server}\" }}")).collect();
    format!(
        "[gateway]\ndevice = \"{device}\"\nqueues = 2\nmetrics = \"off\"\n\n[[service]]\nname = \"web\"\n\
         listen = \"203.0.113.10:80\"\nscheduler = \"{scheduler}\"\nserver = [{}]\n",
        servers.join(", ")
    )
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write_config(&self, text: &str) {
        std::fs::write(self.path("gatun.toml"), text).unwrap();
    }

    /// `gatun run` in a namespace of its own.
    fn command(&self) -> Command {
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            env!("CARGO_BIN_EXE_gatun"),
            "run",
            "-c",
            "gatun.toml",
            "--control",
            "run/control.sock",
        ]);
        command.current_dir(self.directory.path()).env("NOTIFY_SOCKET", self.path("notify"));
        command.env("GATUN_STATE_DIR", "state");
        command
            .env_remove("RUST_LOG")
            .env_remove("GATUN_CONTROL")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Starts the gateway and waits until it says that it is ready.
    fn start(&mut self, command: &mut Command) {
        self.gateway = Some(command.spawn().unwrap());
        self.expect_notification("READY=1");
    }

    fn expect_notification(&self, wanted: &str) {
        let mut message = [0; 512];
        loop {
            let length = self.notifications.recv(&mut message).unwrap_or_else(|error| panic!("{wanted}: {error}"));
            if String::from_utf8_lossy(&message[..length]).lines().any(|line| line == wanted) {
                return;
            }
        }
    }

    /// Exit code, and what was printed on both ways out.
    fn gatun(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatun"));
        command.args(args).args(["--control", "run/control.sock"]).current_dir(self.directory.path());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    fn status(&self) -> Value {
        let (code, text) = self.gatun(&["status", "--json"]);
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn pid(&self) -> String {
        self.gateway.as_ref().unwrap().id().to_string()
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid()]).status().unwrap().success());
    }

    /// How the gateway ended, and its log.
    fn wait(&mut self) -> (ExitStatus, String) {
        let mut gateway = self.gateway.take().unwrap();
        let deadline = Instant::now() + SOON;
        let status = loop {
            match gateway.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    gateway.kill().unwrap();
                    panic!("the gateway did not end");
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut log = String::new();
        gateway.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status, log)
    }

    /// A start that must fail, with this in its only line.
    fn fails_to_start(&mut self, command: &mut Command, sentence: &str) {
        self.gateway = Some(command.spawn().unwrap());
        let (status, log) = self.wait();
        assert_eq!(status.code(), Some(1), "{log}");
        let errors: Vec<&str> = log.lines().filter(|line| !line.contains(" INFO ")).collect();
        assert!(errors.len() == 1 && errors[0].starts_with("gatun: ") && errors[0].contains(sentence), "{log}");
    }
}

fn capabilities(pid: &str, set: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{set}:"))).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

const CAP_SYS_NICE: u64 = 1 << 23;

fn is_first_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().nth(2) == Some("4294967295")
}

/// The second and the 19th field of `/proc/PID/stat` (proc_pid_stat(5)).
fn name_and_nice(pid: &str) -> (String, i32) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (name, rest) = stat.rsplit_once(") ").unwrap();
    let nice = rest.split(' ').nth(16).unwrap().parse().unwrap();
    (name.rsplit_once('(').unwrap().1.to_owned(), nice)
}

#[test]
fn a_gateway_from_start_to_end() {
    let Some(mut fixture) = fixture("a_gateway_from_start_to_end") else { return };
    fixture.write_config(&config("gatun-dt0", "rr", &["10.20.0.11:8080"]));
    let mut command = fixture.command();
    fixture.start(&mut command);
    let status = fixture.status();
    assert_eq!(status["generation"], 1);
    assert_eq!(status["device"]["name"], "gatun-dt0");
    assert_eq!(status["pid"].to_string(), fixture.pid());

    // CAP_NET_ADMIN (12) and CAP_NET_RAW (13) are all it keeps, in every thread.
    let kept = 1 << 12 | 1 << 13;
    let mut workers = 0;
    for thread in std::fs::read_dir(format!("/proc/{}/task", fixture.pid())).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap();
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(capabilities(&thread, set) & !kept, 0, "{set} of thread {thread}");
        }
        assert_ne!(capabilities(&thread, "CapEff") & 1 << 12, 0);
        assert_eq!(capabilities(&thread, "NoNewPrivs"), 1);
        // Root of the first user namespace may raise priorities: those of the workers, and of no other thread.
        if capabilities("self", "CapEff") & CAP_SYS_NICE != 0 && is_first_user_namespace() {
            let (name, nice) = name_and_nice(&thread);
            let (_, ours) = name_and_nice("self");
            assert_eq!(nice, if name.starts_with("gatun-q") { ours.min(-4) } else { ours }, "thread {name}");
            workers += usize::from(name.starts_with("gatun-q"));
        }
    }
    assert!(workers == 2 || workers == 0 && !is_first_user_namespace(), "{workers} workers");

    // A reload by order of a client.
    fixture.write_config(&config("gatun-dt0", "wlc", &["10.20.0.11:8080", "10.20.0.12:8080"]));
    let expected = "~ service \"web\": scheduler \"rr\" -> \"wlc\"\n+ service \"web\", server \"10.20.0.12:8080\": \
                    10.20.0.12:8080, weight 1\n";
    assert_eq!(fixture.gatun(&["diff"]), (Some(0), expected.to_owned()));
    assert_eq!(fixture.status()["generation"], 1, "diff changes nothing");
    assert_eq!(fixture.gatun(&["reload"]), (Some(0), expected.to_owned()));
    fixture.expect_notification("RELOADING=1");
    fixture.expect_notification("READY=1");
    let status = fixture.status();
    assert_eq!((&status["generation"], &status["reloads_ok"]), (&2.into(), &1.into()));
    assert_eq!(status["services"][0]["servers"].as_array().unwrap().len(), 2);
    assert_eq!(fixture.gatun(&["diff"]), (Some(0), "nothing changes\n".to_owned()));

    // A bad file changes nothing, and says where it is bad.
    let good = config("gatun-dt0", "wlc", &["10.20.0.13:8080"]);
    fixture.write_config(&good.replace("scheduler", "sheduler"));
    let (code, text) = fixture.gatun(&["reload"]);
    assert!(code == Some(1) && text.contains("gatun.toml:9:1: ") && text.contains("scheduler"), "{text}");
    fixture.signal("-HUP");
    fixture.expect_notification("RELOADING=1");
    fixture.expect_notification("READY=1");
    fixture.expect_notification("READY=1");
    let status = fixture.status();
    assert_eq!((&status["generation"], &status["reloads_failed"]), (&2.into(), &2.into()));
    assert_eq!(status["services"][0]["servers"].as_array().unwrap().len(), 2);

    // SIGHUP reloads, and so does a good file from elsewhere.
    std::fs::write(fixture.path("other.toml"), &good).unwrap();
    fixture.write_config(&good);
    fixture.signal("-HUP");
    fixture.expect_notification("READY=1");
    assert_eq!(fixture.status()["generation"], 3);
    let (code, text) = fixture.gatun(&["reload", "-c", "other.toml"]);
    assert_eq!((code, text.as_str()), (Some(0), "nothing changes\n"));
    assert_eq!(fixture.status()["config"], fixture.path("other.toml").to_str().unwrap());

    // What needs a restart is said, and is not done.
    std::fs::write(fixture.path("other.toml"), good.replace("gatun-dt0", "gatun-dt9")).unwrap();
    let (code, text) = fixture.gatun(&["reload"]);
    assert!(code == Some(0) && text.contains("\"gatun-dt0\" -> \"gatun-dt9\" (needs a restart)"), "{text}");
    assert_eq!(fixture.status()["device"]["name"], "gatun-dt0");
    let (code, _) = fixture.gatun(&["reload"]);
    assert_eq!((code, &fixture.status()["generation"]), (Some(0), &3.into()), "nothing changed");

    fixture.signal("-TERM");
    fixture.expect_notification("STOPPING=1");
    let (status, log) = fixture.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(log.matches("not changed before a restart").count(), 1, "{log}");
    assert!(log.contains("stopped") && !log.contains(" WARN gatun is"), "{log}");
    assert!(!fixture.path("run/control.sock").exists());
}

#[test]
fn the_log_as_json_and_the_watchdog() {
    let Some(mut fixture) = fixture("the_log_as_json_and_the_watchdog") else { return };
    fixture.write_config(&config("gatun-dt1", "rr", &["10.20.0.11:8080"]));
    let mut command = fixture.command();
    command.args(["--no-routes", "--log-format", "json", "--log", "debug"]).env("WATCHDOG_USEC", "200000");
    fixture.start(&mut command);
    for _ in 0..3 {
        fixture.expect_notification("WATCHDOG=1");
    }
    fixture.signal("-INT");
    let (status, log) = fixture.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["fields"]["message"].is_string(), "{line}");
    }
}

#[test]
fn a_gateway_whose_device_is_taken_away_ends_with_an_error() {
    let Some(mut fixture) = fixture("a_gateway_whose_device_is_taken_away_ends_with_an_error") else { return };
    fixture.write_config(&config("gatun-dt2", "rr", &["10.20.0.11:8080"]));
    let mut command = fixture.command();
    fixture.start(&mut command);
    let delete = ["--net", "--target", &fixture.pid(), "--", "ip", "link", "del", "gatun-dt2"];
    assert!(Command::new("nsenter").args(delete).status().unwrap().success());
    let (status, log) = fixture.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("gatun: a packet worker ended"), "{log}");
    assert!(!fixture.path("run/control.sock").exists());
}

#[test]
fn starts_that_cannot_succeed_say_why_in_one_sentence() {
    let Some(mut fixture) = fixture("starts_that_cannot_succeed_say_why_in_one_sentence") else { return };
    let good = config("gatun-dt3", "rr", &["10.20.0.11:8080"]);

    fixture.fails_to_start(&mut fixture.command(), "gatun.toml: cannot be read: No such file");
    fixture.write_config(&good);
    let mut unprivileged = Command::new("setpriv");
    unprivileged.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_gatun"), "run", "-c"]);
    unprivileged
        .env("GATUN_STATE_DIR", "state")
        .args(["gatun.toml", "--control", "control.sock"])
        .current_dir(fixture.directory.path());
    fixture.fails_to_start(unprivileged.stderr(Stdio::piped()), "CAP_NET_ADMIN");
    assert!(!fixture.path("control.sock").exists());

    let mut bad_filter = fixture.command();
    fixture.fails_to_start(bad_filter.args(["--log", "gatun=shout"]), "is no log filter: error parsing");
    // Root may read and write everything until it has given CAP_DAC_OVERRIDE up.
    let lock = fixture.path("foreign/.lock");
    std::fs::create_dir_all(fixture.path("foreign")).unwrap();
    std::fs::write(&lock, "").unwrap();
    std::os::unix::fs::chown(&lock, Some(12345), None).unwrap();
    let mut foreign = fixture.command();
    let state_dir = fixture.path("foreign");
    let sentence = format!("{} belongs to user 12345", lock.display());
    fixture.fails_to_start(foreign.arg("--state-dir").arg(state_dir), &sentence);
    std::fs::create_dir_all(fixture.path("run")).unwrap();
    std::fs::write(fixture.path("run/control.sock"), "precious").unwrap();
    fixture.fails_to_start(&mut fixture.command(), "is no socket");
    assert_eq!(std::fs::read(fixture.path("run/control.sock")).unwrap(), b"precious");
    std::fs::remove_file(fixture.path("run/control.sock")).unwrap();

    // Nothing is left of the failures that the next start could stumble over.
    let mut command = fixture.command();
    fixture.start(&mut command);
    let output = fixture.command().output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && log.contains("another gatun answers on run/control.sock"), "{log}");
    // Another one with the same device learns that, whatever else is taken.
    let pid = fixture.pid();
    // 127.0.0.1 cannot be used there either: the loopback is down.
    std::fs::write(fixture.path("other.toml"), good.replace("\"off\"", "\"127.0.0.1:9108\"")).unwrap();
    let mut second = Command::new("nsenter");
    second.arg(format!("--net=/proc/{pid}/ns/net")).args([env!("CARGO_BIN_EXE_gatun"), "run", "-c", "other.toml"]);
    second.args(["--control", "run/other.sock"]).current_dir(fixture.directory.path());
    let output = second.env("GATUN_STATE_DIR", "state").output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    let sentence = format!("another gateway (process {pid}) uses device gatun-dt3 already");
    assert!(output.status.code() == Some(1) && log.contains(&sentence), "{log}");
    // The first one is as it was.
    assert_eq!(fixture.status()["generation"], 1);
    fixture.signal("-TERM");
    assert!(fixture.wait().0.success());
}

#[test]
fn the_commands_for_the_host_are_printed_without_privilege() {
    let Some(fixture) = fixture("the_commands_for_the_host_are_printed_without_privilege") else { return };
    fixture.write_config(&config("gatun-dt4", "rr", &["10.20.0.11:8080"]));
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_gatun"), "run", "--print-routes"]);
    command.args(["-c", "gatun.toml"]).current_dir(fixture.directory.path());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("203.0.113.10") && text.contains("dev gatun-dt4"), "{text}");
    assert!(!Path::new("/sys/class/net/gatun-dt4").exists());
}

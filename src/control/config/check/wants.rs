//! What checks ask of the host that it does not have.

use std::os::unix::fs::PermissionsExt;

use super::super::Config;
use super::check_of;
use crate::control::health::Prepared;
use crate::control::health::spec::{CheckSpec, Command, ProbeSpec, Via};

/// Why a gateway would neither start nor reload here: a certificate that is not there or none.
pub(in super::super) fn obstacle(config: &Config) -> Option<String> {
    Prepared::new(super::compile(config)).err()
}

/// One sentence for each thing that will not work here.
pub(in super::super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for service in &config.services {
        let name = &service.name.value;
        let mut checks: Vec<&CheckSpec> = Vec::new();
        for check in service.servers.iter().filter_map(|server| check_of(service, server)) {
            if !checks.contains(&&*check.value) {
                checks.push(&check.value);
            }
        }
        if config.gateway.tap.is_some() && checks.iter().any(|check| is_by_host(check)) {
            warnings.push(format!(
                "service {name:?}: in mode \"tap\" the host has a way of its own to the servers, if it has one; a check with \
                 via = \"path\" asks them through the gateway"
            ));
        }
        let of_checks = checks.iter().filter_map(|check| match &check.probe {
            ProbeSpec::Exec(exec) => Some(&exec.command),
            _ => None,
        });
        let quorum = &service.health.quorum;
        for command in of_checks.chain(&quorum.up).chain(&quorum.down) {
            warnings.extend(not_executable(command).map(|what| format!("service {name:?}: {what}")));
        }
    }
    warnings
}

fn is_by_host(check: &CheckSpec) -> bool {
    check.via == Via::Host && !matches!(check.probe, ProbeSpec::Exec(_))
}

fn not_executable(command: &Command) -> Option<String> {
    let path = command.0.first()?;
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => None,
        Ok(_) => Some(format!("{path} cannot be executed")),
        Err(error) => Some(format!("{path} cannot be executed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn warned(text: &str) -> Vec<String> {
        warnings(&Config::parse(Path::new("x.toml"), text).unwrap_or_else(|errors| panic!("{errors}")))
    }

    fn service(keys: &str) -> String {
        let servers = "server = [{ address = \"10.0.0.1:80\" }, { address = \"10.0.0.2:80\" }]";
        format!("[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:80\"\n{servers}\n{keys}\n")
    }

    #[test]
    fn files_that_are_not_there() {
        let text = service("check = { type = \"https\", ca = \"/nonexistent/ca\" }");
        let config = Config::parse(Path::new("x.toml"), &text).unwrap_or_else(|errors| panic!("{errors}"));
        let found = obstacle(&config).expect("it could not start");
        assert!(found.starts_with("service \"a\": check: /nonexistent/ca: "), "{found}");
        assert_eq!(warned(&text), [""; 0]);
        let found =
            warned(&service("check = { type = \"exec\", command = [\"/nonexistent/c\"] }\nquorum_up = [\"/etc\"]"));
        let expected = "service \"a\": /nonexistent/c cannot be executed: No such file or directory (os error 2)";
        assert_eq!(found, [expected, "service \"a\": /etc cannot be executed"]);
        assert_eq!(warned(&service("check = { type = \"exec\", command = \"true\" }")), [""; 0]);
    }

    #[test]
    fn a_host_that_may_have_no_way() {
        let tap = "[gateway]\nmode = \"tap\"\naddress = [\"10.0.0.254/24\"]\n";
        let found = warned(&(tap.to_owned() + &service("check = { type = \"tcp\" }")));
        assert!(found.len() == 1 && found[0].contains("via = \"path\""), "{found:?}");
        assert_eq!(warned(&(tap.to_owned() + &service("check = { type = \"tcp\", via = \"path\" }"))), [""; 0]);
        assert_eq!(warned(&service("check = { type = \"tcp\" }")), [""; 0]);
    }
}

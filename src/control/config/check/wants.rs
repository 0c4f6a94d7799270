//! What checks ask of the host that it does not have.

use std::os::unix::fs::PermissionsExt;

use super::super::{Config, ServerConfig, ServiceConfig};
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
        if let Some(server) = service.servers.iter().find(|server| is_without_header(service, server)) {
            warnings.push(format!(
                "service {name:?}: server {:?} expects the header of proxy_protocol at the port where its check asks without one, and                  will go down; let the check have via = \"path\", or a port that expects none",
                server.name.value
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

/// Whether a server is asked for something by the host, at a port where it waits for a header first. Who only connects is
/// let in.
fn is_without_header(service: &ServiceConfig, server: &ServerConfig) -> bool {
    let Some(check) = check_of(service, server).filter(|_| service.nat.proxy_protocol.is_some()) else { return false };
    let asks_by_tcp = match &check.value.probe {
        ProbeSpec::Http(_) | ProbeSpec::Smtp(_) | ProbeSpec::Ftp(_) | ProbeSpec::Nntp(_) => true,
        ProbeSpec::Dns(dns) => dns.over_tcp,
        ProbeSpec::Tcp | ProbeSpec::Ping | ProbeSpec::Udp(_) | ProbeSpec::Exec(_) => false,
    };
    let ports = service.listen.value.ports;
    let first = server.address.value.port.unwrap_or(ports.first);
    let port = check.value.port.unwrap_or(first);
    let is_served = port >= first && port - first <= ports.last - ports.first;
    asks_by_tcp && is_by_host(&check.value) && is_served
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
    fn a_check_without_the_header_that_a_server_expects() {
        let with = |check: &str| warned(&service(&format!("proxy_protocol = \"v2\"\ncheck = {{ {check} }}")));
        let found = with("type = \"http\"");
        assert!(
            matches!(&found[..], [one] if one.contains("server \"10.0.0.1:80\" expects the header of proxy_protocol")),
            "{found:?}"
        );
        assert_eq!(with("type = \"dns\", transport = \"tcp\", port = 80").len(), 1);
        for fine in
            ["type = \"http\", port = 8080", "type = \"http\", via = \"path\"", "type = \"tcp\"", "type = \"ping\""]
        {
            assert_eq!(with(fine), [""; 0], "{fine}");
        }
        assert_eq!(warned(&service("check = { type = \"http\" }")), [""; 0]);
        let range = service("proxy_protocol = \"v1\"\ncheck = { type = \"http\", port = 89 }")
            .replace(":80\"\nserver", ":80-90\"\nserver");
        assert_eq!(warned(&range).len(), 1);
        assert_eq!(warned(&range.replace("port = 89", "port = 91")), [""; 0]);
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

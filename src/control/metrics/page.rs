//! The status as a page for a browser: no script, nothing to load.

use std::fmt::Write;

use crate::control::api;

const HEAD: &str = "<!doctype html>
<meta charset=\"utf-8\">
<meta http-equiv=\"refresh\" content=\"5\">
<title>gatun</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em; max-width: 70em }
table { border-collapse: collapse; margin: 0 0 1.5em }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
h2 { font-size: 1.1em; margin: 1em 0 .3em }
</style>
";

pub fn html(status: &api::Status) -> String {
    let mut page = HEAD.to_owned();
    let device = status.device.as_ref().map_or("no device", |device| &device.name);
    line(&mut page, &format!("<h1>gatun {} on {}</h1>", escape(&status.version), escape(device)));
    line(
        &mut page,
        &format!(
            "<p>Up {} s, configuration generation {}, {} of {} flows, {:.1} new/s. <a href=\"/metrics\">Metrics</a></p>",
            status.uptime, status.generation, status.flows, status.flows_limit, status.rates.flows
        ),
    );
    for service in &status.services {
        let api::Service { name, listen, protocol, method, scheduler, .. } = service;
        let title = [name, protocol, listen, method, scheduler].map(|text| escape(text)).join(" &middot; ");
        line(&mut page, &format!("<h2>{title}</h2>"));
        let heads =
            ["Server", "Weight", "Active", "Inactive", "Admitted", "New/s", "Bytes/s to server", "Bytes/s to client"];
        table(&mut page, &heads, service.servers.iter().map(server));
    }
    let api::Nat { masquerades, pools, .. } = &status.nat;
    if !masquerades.is_empty() {
        line(&mut page, "<h2>Masquerades</h2>");
        table(&mut page, &["Masquerade", "From", "To", "Flows", "Mappings"], masquerades.iter().map(masquerade));
    }
    if !pools.is_empty() {
        line(&mut page, "<h2>Pools</h2>");
        let heads = ["Address", "Ports", "For", "In use", "Quarantine", "Size", "Fullest"];
        table(&mut page, &heads, pools.iter().map(pool));
    }
    if !status.drops.is_empty() {
        line(&mut page, "<h2>Dropped packets</h2>");
        let row = |drops: &api::Drops| vec![escape(&drops.reason), drops.packets.to_string(), escape(&drops.meaning)];
        table(&mut page, &["Reason", "Packets", "Meaning"], status.drops.iter().map(row));
    }
    page
}

fn server(server: &api::Server) -> Vec<String> {
    vec![
        escape(&server.name),
        server.weight.to_string(),
        server.active.to_string(),
        server.inactive.to_string(),
        server.admitted.to_string(),
        format!("{:.1}", server.rates.flows),
        format!("{:.0}", server.rates.bytes_to_server),
        format!("{:.0}", server.rates.bytes_to_client),
    ]
}

fn masquerade(masquerade: &api::Masquerade) -> Vec<String> {
    let api::Masquerade { name, from, to, prefix, flows, mappings, .. } = masquerade;
    let pool = || to.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let to = prefix.clone().unwrap_or_else(pool);
    let figure = |figure: &u64| if prefix.is_some() { "-".to_owned() } else { figure.to_string() };
    vec![escape(name), from.join(", "), to, figure(flows), figure(mappings)]
}

fn pool(pool: &api::Pool) -> Vec<String> {
    vec![
        pool.address.to_string(),
        pool.ports.clone(),
        format!("{} {}", pool.usage, escape(&pool.users.join(", "))),
        pool.in_use.to_string(),
        pool.quarantined.to_string(),
        pool.size.to_string(),
        format!("{:.1} %", f64::from(pool.fullest) / 10.0),
    ]
}

/// The cells are HTML already.
fn table(page: &mut String, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let row = |tag: &str, cells: &[String]| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{cell}</{tag}>")).collect();
        format!("<tr>{cells}</tr>")
    };
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    line(page, &format!("<table>{}", row("th", &heads)));
    for cells in rows {
        line(page, &row("td", &cells));
    }
    line(page, "</table>");
}

fn line(page: &mut String, html: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(page, "{html}");
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}

//! What `gatun top` draws.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, TableState};

use super::{Sort, View};
use crate::cli::format::number::{bits, duration, short};
use crate::cli::server::state;
use crate::cli::status::nat;
use crate::control::api;

/// Eighths of a cell's height, for sparklines within a line.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Cells of such a sparkline.
const SPARK: usize = 16;
const DROPS_SHOWN: usize = 4;

pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let Some(status) = &view.status else {
        frame.render_widget(Paragraph::new("waiting for the gateway"), frame.area());
        return;
    };
    let order = services(status, view.sort);
    let drops = status.drops.len().min(DROPS_SHOWN) as u16;
    // Services have as much as they need, up to about half.
    let wanted = order.len() as u16 + 2;
    let nat = nat::text(&status.nat);
    let height = 4 + u16::from(nat.is_some());
    let room = frame.area().height.saturating_sub(5 + height + drops);
    let [head, spark, list, servers, dropped, keys] = Layout::vertical([
        Constraint::Length(height),
        Constraint::Length(2),
        Constraint::Length(wanted.min(room.div_ceil(2).max(3))),
        Constraint::Min(0),
        Constraint::Length(if drops == 0 { 0 } else { drops + 1 }),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, status, nat, view.trouble.as_deref());
    let history: Vec<u64> = history(view, "").collect();
    // The latest at the right.
    let shown = &history[history.len().saturating_sub(usize::from(spark.width))..];
    frame.render_widget(Sparkline::default().data(shown).style(Style::new().fg(Color::Cyan)), spark);
    draw_services(frame, list, view, &order);
    if let Some(service) = order.get(view.chosen) {
        draw_servers(frame, servers, view, service);
    }
    draw_drops(frame, dropped, status);
    let help = format!(" q quit  ↑↓ choose  tab services/servers  s sort: {}", view.sort.word());
    frame.render_widget(Paragraph::new(help).style(Style::new().add_modifier(Modifier::REVERSED)), keys);
}

/// Of all servers of a service.
pub(super) fn rates(service: &api::Service) -> api::Rates {
    let mut sum = api::Rates::default();
    for server in &service.servers {
        sum.add(&server.rates);
    }
    sum
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, status: &api::Status, nat: Option<String>, trouble: Option<&str>) {
    let up = duration(std::time::Duration::from_secs(status.uptime));
    let device = status.device.as_ref().map(|device| format!(" on {}", device.name)).unwrap_or_default();
    let title = format!("gatun {}{device}, up {up}, generation {}", status.version, status.generation);
    let full = 100.0 * status.flows as f64 / status.flows_limit.max(1) as f64;
    let rates = &status.rates;
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let last = match trouble {
        // The figures are old ones then.
        Some(trouble) => Line::styled(trouble.to_owned(), Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)),
        None => Line::raw("new flows per second"),
    };
    let mut lines = vec![
        Line::styled(title, bold),
        Line::raw(format!(
            "flows {} of {} ({full:.1} %), {} new/s",
            status.flows,
            status.flows_limit,
            short(rates.flows)
        )),
        Line::raw(format!(
            "to servers {} packets/s, {}; to clients {} packets/s, {}",
            short(rates.packets_to_server),
            bits(rates.bytes_to_server),
            short(rates.packets_to_client),
            bits(rates.bytes_to_client)
        )),
    ];
    lines.extend(nat.map(Line::raw));
    lines.push(last);
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_services(frame: &mut Frame<'_>, area: Rect, view: &View, order: &[&api::Service]) {
    let rows = order.iter().map(|service| {
        let rates = rates(service);
        let up = service.servers.iter().filter(|server| server.state == "up").count();
        let all = service.servers.len();
        let colour = match up {
            _ if !service.has_quorum => Some(Color::Red),
            0 => Some(Color::Red),
            up if up < all => Some(Color::Yellow),
            _ => None,
        };
        let sum = |of: fn(&api::Server) -> u64| service.servers.iter().map(of).sum::<u64>().to_string();
        Row::new([
            Cell::from(service.name.clone()),
            Cell::from(format!("{} {}", service.protocol, service.listen)),
            right(format!("{up}/{all}"), 7),
            right(sum(|server| server.active), 8),
            right(sum(|server| server.inactive), 8),
            right(short(rates.flows), 6),
            right(bits(rates.bytes_to_server), 10),
            right(bits(rates.bytes_to_client), 10),
            Cell::from(spark(history(view, &service.name))),
        ])
        .style(style(colour))
    });
    let widths = [
        Constraint::Min(8),
        Constraint::Min(20),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(SPARK as u16),
    ];
    let heading =
        Row::new(["SERVICE", "LISTEN", "SERVERS", "  ACTIVE", "INACTIVE", " NEW/S", " TO SERVER", " TO CLIENT", ""]);
    let table = Table::new(rows, widths)
        .header(heading.style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::new())
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut chosen = TableState::default().with_selected(Some(view.chosen));
    frame.render_stateful_widget(table, area, &mut chosen);
}

fn draw_servers(frame: &mut Frame<'_>, area: Rect, view: &View, service: &api::Service) {
    let mut servers: Vec<&api::Server> = service.servers.iter().chain(&service.sorry).collect();
    sort(&mut servers, view.sort, |server| (server.active + server.inactive, server.rates));
    // At the end there is nothing to scroll to.
    let skipped = view.scrolled.min(servers.len().saturating_sub(1));
    let rows = servers.into_iter().skip(skipped).map(|server| {
        let colour = match &*server.state {
            "up" => None,
            "down" | "unreachable" => Some(Color::Red),
            _ => Some(Color::Yellow),
        };
        Row::new([
            Cell::from(server.name.clone()),
            Cell::from(state(server)),
            right(server.weight.to_string(), 7),
            right(server.active.to_string(), 8),
            right(server.inactive.to_string(), 8),
            right(short(server.rates.flows), 6),
            right(bits(server.rates.bytes_to_server), 10),
            right(bits(server.rates.bytes_to_client), 10),
        ])
        .style(style(colour))
    });
    let widths = [
        Constraint::Min(20),
        Constraint::Length(26),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(10),
        Constraint::Length(10),
    ];
    let heading =
        Row::new(["SERVER", "STATE", " WEIGHT", "  ACTIVE", "INACTIVE", " NEW/S", " TO SERVER", " TO CLIENT"]);
    let name = format!("{}, {}, {}", service.name, service.method, service.scheduler);
    let title = if view.on_servers { Span::styled(name, style(Some(Color::Cyan))) } else { Span::raw(name) };
    let table = Table::new(rows, widths)
        .header(heading.style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::new().borders(ratatui::widgets::Borders::TOP).title(title));
    frame.render_widget(table, area);
}

fn draw_drops(frame: &mut Frame<'_>, area: Rect, status: &api::Status) {
    let mut lines = vec![Line::styled("DROPPED", Style::new().add_modifier(Modifier::BOLD))];
    lines.extend(
        status.drops.iter().take(DROPS_SHOWN).map(|drop| Line::raw(format!("{:>9}  {}", drop.packets, drop.reason))),
    );
    frame.render_widget(Paragraph::new(lines), area);
}

fn services(status: &api::Status, by: Sort) -> Vec<&api::Service> {
    let mut services: Vec<&api::Service> = status.services.iter().collect();
    sort(&mut services, by, |service| {
        (service.servers.iter().map(|server| server.active + server.inactive).sum(), rates(service))
    });
    services
}

/// The most first; among equals the order of the configuration.
fn sort<T>(list: &mut [T], by: Sort, of: impl Fn(&T) -> (u64, api::Rates)) {
    let key = |item: &T| {
        let (flows, rates) = of(item);
        match by {
            Sort::Configured => 0.0,
            Sort::Flows => flows as f64,
            Sort::Rate => rates.flows,
            Sort::Traffic => rates.bytes_to_server + rates.bytes_to_client,
        }
    };
    list.sort_by(|a, b| key(b).total_cmp(&key(a)));
}

fn history<'a>(view: &'a View, service: &str) -> impl Iterator<Item = u64> + 'a {
    view.history.get(service).into_iter().flatten().copied()
}

/// The last figures as bars, against their own highest.
fn spark(history: impl Iterator<Item = u64>) -> String {
    let all: Vec<u64> = history.collect();
    let last = &all[all.len().saturating_sub(SPARK)..];
    let most = last.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: &u64| BARS[(value * (BARS.len() as u64 - 1)).div_ceil(most) as usize];
    last.iter().map(bar).collect()
}

fn right(text: String, width: usize) -> Cell<'static> {
    Cell::from(format!("{text:>width$}"))
}

fn style(colour: Option<Color>) -> Style {
    colour.map_or_else(Style::new, |colour| Style::new().fg(colour))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use serde_json::{Value, json};

    use super::*;

    fn server(name: &str, state: &str, flows: f64, active: u64) -> Value {
        json!({
            "service": "x", "name": name, "address": "10.20.0.11", "port": 8080, "weight": 1, "method": "nat",
            "tunnel": null, "path_mtu": null, "reachable": true, "state": state, "active": active, "inactive": 3,
            "admitted": 9, "to_server": {"packets": 0, "bytes": 0}, "to_client": {"packets": 0, "bytes": 0},
            "rates": {"flows": flows, "packets_to_server": 0.0, "bytes_to_server": 1000.0, "packets_to_client": 0.0,
                      "bytes_to_client": 250_000.0},
        })
    }

    fn status(flows: f64) -> api::Status {
        let service = |name: &str, servers: &[Value]| {
            json!({"name": name, "listen": "203.0.113.10:80", "protocol": "tcp", "method": "nat", "scheduler": "wlc",
                   "servers": servers})
        };
        let status = json!({
            "version": "1.2.3", "pid": 42, "uptime": 187,
            "device": {"name": "gatun0", "received": 5, "sent": 5, "send_errors": 0, "dropped": 0},
            "config": null, "generation": 2, "reloads_ok": 1, "reloads_failed": 0, "shards": 2, "flows": 12,
            "flows_limit": 1000,
            "rates": {"flows": flows, "packets_to_server": 10.0, "bytes_to_server": 2000.0, "packets_to_client": 9.0,
                      "bytes_to_client": 500_000.0},
            "services": [
                service("web", &[server("10.20.0.11:8080", "up", flows, 7), server("two", "down", 0.0, 0)]),
                service("dns", &[server("10.20.0.12:53", "up", 1.0, 40)]),
            ],
            "drops": [{"reason": "no_flow", "packets": 9, "meaning": "A TCP packet."}],
        });
        serde_json::from_value(status).unwrap()
    }

    fn view() -> View {
        let mut view = View::new();
        for flows in [0.0, 10.0, 20.0, 40.0] {
            view.take(Ok(status(flows)));
        }
        view
    }

    fn press(view: &mut View, code: KeyCode) -> bool {
        view.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn screen(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(row).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_screen() {
        let expected = "\
gatun 1.2.3 on gatun0, up 3m07s, generation 2
flows 12 of 1000 (1.2 %), 40 new/s
to servers 10 packets/s, 16.0kbit/s; to clients 9 packets/s, 4.00Mbit/s
new flows per second
   █
 ▄██
SERVICE                    LISTEN                    SERVERS   ACTIVE INACTIVE  NEW/S  TO SERVER  TO CLIENT
web                        tcp 203.0.113.10:80           1/2        7        6     40 16.0kbit/s 4.00Mbit/s ▁▃▅█
dns                        tcp 203.0.113.10:80           1/1       40        3      1 8.00kbit/s 2.00Mbit/s ████

web, nat, wlc───────────────────────────────────────────────────────────────────────────────────────────────────────────────
SERVER                                     STATE                       WEIGHT   ACTIVE INACTIVE  NEW/S  TO SERVER  TO CLIENT
10.20.0.11:8080                            up                               1        7        3     40 8.00kbit/s 2.00Mbit/s
two                                        down                             1        0        3      0 8.00kbit/s 2.00Mbit/s

DROPPED
        9  no_flow
 q quit  ↑↓ choose  tab services/servers  s sort: configured";
        let shown = screen(&view(), 124, 18);
        assert_eq!(shown, expected, "\n{shown}");
    }

    #[test]
    fn masquerades_have_a_line_of_the_head() {
        let mut with_nat = status(1.0);
        with_nat.nat = serde_json::from_value(json!({
            "masquerades": [{"name": "lan", "from": [], "except": [], "to": [], "ports": "*", "prefix": null,
                             "filtering": "endpoint", "helpers": [], "max_mappings": 1, "flows": 23, "mappings": 17}],
            "pools": [{"address": "203.0.113.100", "ports": "*", "usage": "masquerade", "users": ["lan"],
                       "user_count": 1, "retired": false, "in_use": 500, "quarantined": 0, "size": 1000, "fullest": 500}],
            "forwards": [], "quarantine": 5, "hosts": 9,
        }))
        .unwrap();
        let mut view = View::new();
        view.take(Ok(with_nat));
        let shown = screen(&view, 124, 20);
        let expected =
            "masquerades 1, inside hosts 9, mappings 17; addresses 1, the fullest 203.0.113.100: 50.0 % taken";
        assert_eq!(shown.lines().nth(3), Some(expected), "{shown}");
        assert_eq!(shown.lines().nth(4), Some("new flows per second"), "{shown}");
    }

    #[test]
    fn keys_choose_sort_and_scroll() {
        let mut view = view();
        assert!(press(&mut view, KeyCode::Down) && press(&mut view, KeyCode::Down));
        assert!(screen(&view, 120, 20).contains("dns, nat, wlc"), "no further than the last");
        press(&mut view, KeyCode::Home);
        press(&mut view, KeyCode::Char('s'));
        let by_flows = screen(&view, 120, 20);
        assert!(by_flows.contains("sort: flows") && by_flows.contains("dns, nat, wlc"), "{by_flows}");
        press(&mut view, KeyCode::Down);
        press(&mut view, KeyCode::Tab);
        press(&mut view, KeyCode::Down);
        let scrolled = screen(&view, 120, 20);
        assert!(scrolled.contains("web, nat, wlc") && !scrolled.contains("10.20.0.11:8080"), "{scrolled}");
        assert!(!press(&mut view, KeyCode::Char('q')) && !press(&mut view, KeyCode::Esc));
        assert!(!view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }

    #[test]
    fn a_gateway_that_goes_is_told_and_comes_back() {
        let mut view = view();
        view.take(Err("no gateway answers".to_owned()));
        let shown = screen(&view, 120, 20);
        assert!(shown.contains("no gateway answers") && shown.contains("web"), "{shown}");
        view.take(Ok(api::Status { services: Vec::new(), ..status(1.0) }));
        let shown = screen(&view, 120, 20);
        assert!(!shown.contains("no gateway answers") && !shown.contains("web"), "{shown}");
        assert!(!view.history.contains_key("web"), "what is gone is forgotten");
    }

    #[test]
    fn every_size_is_drawn() {
        let (full, empty) = (view(), View::new());
        for (width, height) in [(1, 1), (2, 40), (40, 3), (10, 10), (80, 24), (500, 2), (300, 100)] {
            screen(&full, width, height);
            screen(&empty, width, height);
        }
    }
}

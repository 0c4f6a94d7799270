//! What `gatun status` says of masquerades and pools.

use std::net::IpAddr;

use super::Line;
use crate::cli::format::table::{Align, Table};
use crate::cli::nat::per_cent;
use crate::cli::output::Colour;
use crate::control::api;

/// Masquerades and addresses that the screen has room for.
const SHOWN: usize = 8;
/// From so many thousandths on a pool is nearly used up.
const NEARLY: u16 = 800;
/// And from so many on new flows are about to be refused.
const AS_GOOD_AS: u16 = 950;

/// One line for the head of the screen; `None` where no source is translated.
pub(super) fn summary(nat: &api::Nat) -> Option<Line> {
    let text = text(nat)?;
    Some(match nat.pools.iter().filter_map(colour).min() {
        Some(colour) => Line::Coloured(colour, format!("nat      {text}")),
        None => Line::Text(format!("nat      {text}")),
    })
}

/// `masquerades 2, inside hosts 5, mappings 17; addresses 3, the fullest 203.0.113.100: 45.1 % taken`.
pub fn text(nat: &api::Nat) -> Option<String> {
    let mut parts = Vec::new();
    if !nat.masquerades.is_empty() {
        let mappings: u64 = nat.masquerades.iter().map(|masquerade| masquerade.mappings).sum();
        parts.push(format!("masquerades {}, inside hosts {}, mappings {mappings}", nat.masquerades.len(), nat.hosts));
    }
    if let Some(fullest) = worst_first(&nat.pools).first() {
        let api::Pool { address, fullest, .. } = fullest;
        parts.push(format!("addresses {}, the fullest {address}: {} taken", nat.pools.len(), per_cent(*fullest)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The sections; of many only the first ones, unless `all`.
pub(super) fn sections(nat: &api::Nat, all: bool) -> Vec<Line> {
    let shown = if all { usize::MAX } else { SHOWN };
    let mut lines = Vec::new();
    if !nat.masquerades.is_empty() {
        lines.extend([Line::Text(String::new()), Line::Heading("masquerades".to_owned())]);
        lines.extend(masquerade_table(nat, shown).lines().into_iter().map(Line::Text));
        lines.extend(more(nat.masquerades.len(), shown, "masquerades"));
    }
    let pools = worst_first(&nat.pools);
    if !pools.is_empty() {
        lines.extend([Line::Text(String::new()), Line::Heading("pools".to_owned())]);
        let mut rows = pool_table(&pools, shown).lines().into_iter();
        lines.extend(rows.next().map(Line::Text));
        lines.extend(rows.zip(&pools).map(|(text, pool)| match colour(pool) {
            Some(colour) => Line::Coloured(colour, text),
            None => Line::Text(text),
        }));
        lines.extend(more(pools.len(), shown, "addresses"));
    }
    lines
}

fn masquerade_table(nat: &api::Nat, shown: usize) -> Table {
    let columns = [
        ("  NAME", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("FLOWS", Align::Right),
        ("MAPPINGS", Align::Right),
        ("FILTERING", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for masquerade in nat.masquerades.iter().take(shown) {
        let api::Masquerade { name, from, flows, mappings, filtering, .. } = masquerade;
        let keeps_state = masquerade.prefix.is_none();
        let figure = |figure: u64| if keeps_state { figure.to_string() } else { "-".to_owned() };
        table.row([
            format!("  {name}"),
            few(from),
            to(masquerade),
            figure(*flows),
            figure(*mappings),
            if keeps_state { filtering.clone() } else { "none, by prefix".to_owned() },
        ]);
    }
    table
}

fn pool_table(pools: &[&api::Pool], shown: usize) -> Table {
    let columns = [
        ("  ADDRESS", Align::Left),
        ("FOR", Align::Left),
        ("IN USE", Align::Right),
        ("QUARANTINE", Align::Right),
        ("SIZE", Align::Right),
        ("FULLEST", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for pool in pools.iter().take(shown) {
        let users = if pool.user_count == 1 { pool.users.join("") } else { format!("{} users", pool.user_count) };
        table.row([
            format!("  {}", pool.address),
            if pool.retired { format!("{}, retired", pool.usage) } else { format!("{} {users}", pool.usage) },
            pool.in_use.to_string(),
            pool.quarantined.to_string(),
            pool.size.to_string(),
            per_cent(pool.fullest),
        ]);
    }
    table
}

/// Where a masquerade's hosts go out.
pub fn to(masquerade: &api::Masquerade) -> String {
    match &masquerade.prefix {
        Some(prefix) => prefix.clone(),
        None => few(&masquerade.to.iter().map(IpAddr::to_string).collect::<Vec<_>>()),
    }
}

/// Two of them, and how many more there are.
pub fn few(list: &[String]) -> String {
    let first = list.iter().take(2).cloned().collect::<Vec<_>>().join(", ");
    if list.len() > 2 { format!("{first} and {} more", list.len() - 2) } else { first }
}

/// An address with nothing but forwarded ports cannot run out.
fn worst_first(pools: &[api::Pool]) -> Vec<&api::Pool> {
    let mut pools: Vec<&api::Pool> = pools.iter().filter(|pool| pool.usage != "forward").collect();
    pools.sort_by_key(|pool| std::cmp::Reverse((pool.fullest, pool.in_use)));
    pools
}

fn colour(pool: &api::Pool) -> Option<Colour> {
    match pool.fullest {
        taken if taken >= AS_GOOD_AS => Some(Colour::Red),
        taken if taken >= NEARLY => Some(Colour::Yellow),
        _ => None,
    }
}

fn more(count: usize, shown: usize, what: &str) -> Option<Line> {
    (count > shown).then(|| Line::Text(format!("  and {} more {what}: --all shows them", count - shown)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(last: u8, in_use: u64) -> api::Pool {
        api::Pool {
            address: IpAddr::from([203, 0, 113, last]),
            ports: "1024-65535".to_owned(),
            usage: "masquerade".to_owned(),
            users: vec!["lan".to_owned()],
            user_count: 1,
            retired: false,
            in_use,
            quarantined: 10,
            size: 1000,
            fullest: in_use as u16 + 10,
        }
    }

    fn nat() -> api::Nat {
        let lan = api::Masquerade {
            name: "lan".to_owned(),
            from: vec!["10.20.0.0/24".to_owned()],
            except: Vec::new(),
            to: [100, 101, 102].map(|last| IpAddr::from([203, 0, 113, last])).to_vec(),
            ports: "1024-65535".to_owned(),
            prefix: None,
            filtering: "endpoint".to_owned(),
            helpers: Vec::new(),
            max_mappings: 8192,
            flows: 23,
            mappings: 17,
        };
        let six = api::Masquerade {
            name: "six".to_owned(),
            from: vec!["fd20::/48".to_owned()],
            to: Vec::new(),
            prefix: Some("2001:db8:20::/48".to_owned()),
            flows: 0,
            mappings: 0,
            ..lan.clone()
        };
        let forward = api::Pool { usage: "forward".to_owned(), ..pool(9, 0) };
        let fullnat = api::Pool { usage: "fullnat".to_owned(), user_count: 4, ..pool(103, 0) };
        api::Nat {
            masquerades: vec![lan, six],
            pools: vec![pool(100, 5), pool(101, 945), pool(102, 800), forward, fullnat],
            hosts: 5,
            forwards: Vec::new(),
            quarantine: 5,
        }
    }

    fn plain(line: &Line) -> String {
        match line {
            Line::Heading(text) | Line::Text(text) => text.clone(),
            Line::Coloured(colour, text) => format!("{colour:?}:{text}"),
        }
    }

    #[test]
    fn the_worst_comes_first() {
        let expected = "
masquerades
  NAME  FROM          TO                                       FLOWS  MAPPINGS  FILTERING
  lan   10.20.0.0/24  203.0.113.100, 203.0.113.101 and 1 more     23        17  endpoint
  six   fd20::/48     2001:db8:20::/48                             -         -  none, by prefix

pools
  ADDRESS        FOR              IN USE  QUARANTINE  SIZE  FULLEST
Red:  203.0.113.101  masquerade lan      945          10  1000   95.5 %
Yellow:  203.0.113.102  masquerade lan      800          10  1000   81.0 %
  203.0.113.100  masquerade lan        5          10  1000    1.5 %
  203.0.113.103  fullnat 4 users       0          10  1000    1.0 %";
        let lines: Vec<String> = sections(&nat(), false).iter().map(plain).collect();
        assert_eq!(lines.join("\n"), expected);
        let head =
            "nat      masquerades 2, inside hosts 5, mappings 17; addresses 5, the fullest 203.0.113.101: 95.5 % taken";
        assert_eq!(summary(&nat()).as_ref().map(plain), Some(format!("Red:{head}")));
        assert_eq!(summary(&api::Nat::default()), None);
        assert!(sections(&api::Nat::default(), true).is_empty());
    }

    #[test]
    fn many_are_one_screen_too() {
        let mut many = nat();
        many.pools = (0..200).map(|last| pool(last, 1)).collect();
        let lines = sections(&many, false);
        assert!(lines.len() < 20, "{lines:?}");
        assert_eq!(lines.last().map(plain).as_deref(), Some("  and 192 more addresses: --all shows them"));
        assert!(sections(&many, true).len() > 200);
    }
}

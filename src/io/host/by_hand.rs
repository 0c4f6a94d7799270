//! The changes as commands, for an operator who makes them by hand, and the way back.
//!
//! What is made by hand carries no mark of ours: marks are what a killed gateway is cleaned up after by, and the next
//! start would take the operator's work for remains.

use super::HostError;
use super::change::{Change, ip};
use super::facts::{self, Rules};
use super::make::{FORWARDING6, forwarding_flags};
use super::netlink::Net;
use super::plan::{self, HostPlan};
use super::sysctl;

/// Every line is a command or a comment; the way back is in comments.
pub async fn commands(net: &Net, plan: &HostPlan) -> Result<String, HostError> {
    let facts = facts::gather(net, plan, None, &[]).await?;
    let rules = Rules::read(net).await?;
    let device = &plan.device;
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for change in plan::changes(plan, &facts) {
        let moved = match &change {
            Change::MoveLocal(family) => rules.to_move(*family),
            _ => Vec::new(),
        };
        there.extend(change.commands(&moved));
        back.push(undo(&change, device, &moved));
    }
    let mut text = format!(
        "# What gatun would change on this host. The device {device} has to be there first: start the gateway with\n\
         # --no-routes, then run these commands.\n"
    );
    for command in there {
        text.push_str(&command);
        text.push('\n');
    }
    text.push_str("#\n# The way back, for when the gateway has stopped; routes to the device have gone with it:\n");
    for command in back.into_iter().rev().flatten() {
        text.push_str(&format!("# {command}\n"));
    }
    Ok(text)
}

/// Nothing for what goes together with the device.
fn undo(change: &Change, device: &str, moved: &[(u32, u32)]) -> Vec<String> {
    match change {
        Change::Link { .. }
        | Change::Port { .. }
        | Change::Route { .. }
        | Change::Anchor { .. }
        | Change::Address { .. } => Vec::new(),
        Change::Reply(_) => vec![change.to_string().replacen(" route add ", " route del ", 1)],
        Change::Sysctl { path, .. } if path.split('/').any(|part| part == device) => Vec::new(),
        Change::Sysctl { path, value } => match sysctl::read(path) {
            Ok(former) if former != *value => vec![set(path, former)],
            _ => Vec::new(),
        },
        // Writing `all` overwrites every interface, so those that forward already are switched on again.
        Change::ForwardAll6 => match sysctl::read(FORWARDING6) {
            Ok(former) if former == "0" => {
                let flags = forwarding_flags().into_iter().filter(|(_, value)| value != "0");
                let flags = flags.map(|(name, value)| set(&format!("net/ipv6/conf/{name}/forwarding"), value));
                std::iter::once(set(FORWARDING6, former)).chain(flags).collect()
            }
            _ => Vec::new(),
        },
        Change::Rule(rule) => vec![rule.to_string().replacen(" rule add ", " rule del ", 1)],
        Change::Proxy { .. } => vec![change.to_string().replacen(" neigh add ", " neigh del ", 1)],
        Change::MoveLocal(family) => moved
            .iter()
            .flat_map(|(from, to)| {
                let ip = ip(*family);
                [
                    format!("{ip} rule add pref {from} lookup local protocol kernel"),
                    format!("{ip} rule del pref {to} lookup local"),
                ]
            })
            .collect(),
    }
}

fn set(path: &str, value: String) -> String {
    Change::Sysctl { path: path.to_owned(), value }.to_string()
}

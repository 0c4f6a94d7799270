//! RFC 4787 sections 10 and 11: packets that are too big, and fragments.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::net::{BOTH, Family, Nat, Net, requirement};
use super::wire::Seen;
use crate::process::eventually;
use crate::support::oracle;
use crate::support::packet::{Build, udp};

/// The way out takes no more than 1400 bytes.
fn narrow(net: &Net<'_>) -> Result<()> {
    net.lab.sh("gw", "ip link set wan mtu 1400").map(drop)
}

fn big(from: SocketAddr, to: SocketAddr, length: usize) -> Build {
    udp(from, to).payload((0..length).map(|n| (n / 7) as u8).collect::<Vec<_>>())
}

/// The host inside hears from a NAT whose way out is narrower what fits through.
#[test]
fn rfc4787_req_13_what_may_not_be_fragmented_is_told_so() {
    requirement(Nat::new(), |net| {
        narrow(net)?;
        for family in BOTH {
            let (inside, server) = (family.inside(1, 40000), family.outside(1, 53));
            let mut packet = big(inside, server, 1440);
            packet.dont_fragment = true;
            net.inside.send(packet.bytes())?;
            let seen = net.inside.expect("too big", |seen| seen.icmp().is_some_and(|icmp| icmp.mtu().is_some()))?;
            ensure!(seen.to().ip() == inside.ip() && seen.checksums_are_right(), "{seen:?}");
            ensure!(seen.icmp().and_then(|icmp| icmp.mtu()) == Some(1400), "another MTU: {seen:?}");
            let quoted = seen.quoted().context("a quoted packet")?;
            ensure!((quoted.from, quoted.to) == (inside, server), "about another packet: {quoted:?}");
            // What fits passes.
            let mut fits = big(inside, server, 1340);
            fits.dont_fragment = true;
            net.out(&fits)?;
        }
        Ok(())
    });
}

/// IPv4 only: routers of IPv6 fragment nothing.
#[test]
fn rfc4787_req_13a_otherwise_it_is_fragmented_in_order() {
    requirement(Nat::new(), |net| {
        narrow(net)?;
        let (inside, server) = (Family::V4.inside(1, 40000), Family::V4.outside(1, 53));
        let packet = big(inside, server, 1440);
        net.inside.send(packet.bytes())?;
        let first = net.outside.expect("a first fragment", |seen| seen.decoded.fragment.is_some())?;
        let second = net.outside.expect("a second fragment", |seen| seen.decoded.fragment.is_some())?;
        let offset = |seen: &Seen| seen.decoded.fragment.map(|(_, offset, _)| offset);
        ensure!(offset(&first) == Some(0) && offset(&second) > Some(0), "{first:?}, {second:?}");
        let whole = oracle::reassemble(&[first.bytes, second.bytes]).context("fragments of one packet")?;
        ensure!(oracle::checksums_are_right(&whole) && whole.ends_with(&packet.payload), "not what was sent");
        Ok(())
    });
}

/// Fragments that came by to this host, put together.
fn collect(wire: &super::wire::Wire, to: SocketAddr, count: usize) -> Result<Vec<u8>> {
    let fragments: Vec<Vec<u8>> = (0..count)
        .map(|_| {
            let is = |seen: &Seen| seen.decoded.fragment.is_some() && seen.to().ip() == to.ip();
            Ok(wire.expect("a fragment", is)?.bytes)
        })
        .collect::<Result<_>>()?;
    let whole = oracle::reassemble(&fragments).context("fragments of one packet")?;
    ensure!(oracle::checksums_are_right(&whole), "wrong checksums");
    Ok(whole)
}

/// Fragments in the order that `order` makes of theirs, out and in.
fn fragments_pass(net: &Net<'_>, order: impl Fn(&mut Vec<Vec<u8>>)) -> Result<()> {
    for family in BOTH {
        for round in 0..8 {
            let (inside, server) = (family.inside(1 + round, 40000), family.outside(1 + round % 3, 53));
            // The reply has to find a mapping, which whole packets need not have made.
            let packet = big(inside, server, 3000).id(u16::from(round) + 1);
            let mut fragments = packet.fragments(1000);
            let count = fragments.len();
            order(&mut fragments);
            fragments.iter().try_for_each(|fragment| net.inside.send(fragment))?;
            let whole = collect(&net.outside, server, count).with_context(|| format!("out, {inside}"))?;
            let decoded = oracle::decode(&whole).context("a packet")?;
            ensure!(decoded.payload == packet.payload && decoded.src != inside.ip(), "{decoded:?}");
            let out = SocketAddr::new(decoded.src, decoded.ports.context("ports")?.0);
            let mut fragments = big(server, out, 3000).id(0x7700 + u16::from(round)).fragments(1000);
            order(&mut fragments);
            fragments.iter().try_for_each(|fragment| net.outside.send(fragment))?;
            let whole = collect(&net.inside, inside, count).with_context(|| format!("in, {inside}"))?;
            let decoded = oracle::decode(&whole).context("a packet")?;
            ensure!(decoded.payload == packet.payload && decoded.ports == Some((53, 40000)), "{decoded:?}");
        }
    }
    Ok(())
}

#[test]
fn rfc4787_req_14_fragments_in_order_pass() {
    requirement(Nat::new(), |net| fragments_pass(net, |_| {}));
}

#[test]
fn rfc4787_req_14_fragments_out_of_order_pass() {
    requirement(Nat::new(), |net| {
        fragments_pass(net, |fragments| fragments.reverse())?;
        fragments_pass(net, |fragments| fragments.rotate_left(1))
    });
}

/// Later fragments whose first one never comes, from everywhere, to a mapping, more than there is room for: whole packets and
/// fragments in order pass.
#[test]
fn rfc4787_req_14a_a_flood_of_fragments_hurts_nobody_else() {
    requirement(Nat::new().tables("[limits]\nheld_fragment_bytes = 65536").one_worker(), |net| {
        let full = || net.gateway()?.metric("gatun_drops_total", &["reason=\"fragment_table_full\""]);
        for family in BOTH {
            let before = full()?;
            let (inside, server) = (family.inside(1, 40000), family.outside(1, 53));
            let out = net.mapped(&udp(inside, server).payload("out"))?;
            for n in 0..1500_u32 {
                let stranger = family.outside(2 + (n % 8) as u8, 1000 + (n / 8) as u16);
                let lone = big(stranger, out, 1200).id(n as u16).fragments(800).swap_remove(1);
                net.outside.send(&lone)?;
                if n % 250 == 249 {
                    net.back(&udp(server, out).payload(format!("whole {n}")), inside)?;
                    net.out(&udp(inside, server).payload(format!("whole {n}")))?;
                }
            }
            for piece in big(server, out, 3000).id(0x7777).fragments(1000) {
                net.outside.send(&piece)?;
            }
            collect(&net.inside, inside, 4)?;
            let is_met = || full().is_ok_and(|now| now >= before + 500.0);
            eventually("the bound is met", Duration::from_secs(5), is_met)?;
        }
        Ok(())
    });
}

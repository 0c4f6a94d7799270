//! RFC 5508 sections 4 and 5: errors about translated packets, from both sides.
//!
//! The hosts that these packets are of have another port outside than inside, so that a port which is not restored shows.
//! One worker has all ports: there the first host keeps its own, and the next one cannot.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use super::net::{BOTH, Family, Nat, Net, Opener, requirement};
use super::wire::{Quoted, Seen};
use crate::support::oracle;
use crate::support::packet::{Build, Extension, IcmpError, icmp_error, udp};

const OPENERS: [Opener; 3] = [Opener::Udp, Opener::Tcp, Opener::Echo];

/// An error that has come by, of this type and code.
fn is_error(family: Family, error: IcmpError) -> impl Fn(&Seen) -> bool {
    let (kind, code, _) = error.header(family.is_v4());
    move |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code, icmp.v4) == (kind, code, family.is_v4()))
}

/// Errors that every NAT has to translate.
fn errors(family: Family) -> Vec<IcmpError> {
    match family {
        Family::V4 => [(3, 0), (3, 1), (3, 2), (3, 3), (3, 5), (3, 10), (3, 13), (11, 0), (11, 1), (12, 0)]
            .map(|(kind, code)| IcmpError::Raw(kind, code, [0; 4]))
            .into_iter()
            .chain([IcmpError::TooBig(1300)])
            .collect(),
        Family::V6 => [(1, 0), (1, 1), (1, 3), (1, 4), (3, 0), (3, 1), (4, 0)]
            .map(|(kind, code)| IcmpError::Raw(kind, code, [0; 4]))
            .into_iter()
            .chain([IcmpError::TooBig(1300)])
            .collect(),
    }
}

/// A host inside has sent a packet, which has come out: as it was, and as it is, from another port.
fn sent(net: &Net<'_>, family: Family, opener: Opener) -> Result<(Build, Seen)> {
    // Of three hosts two share one of at most two addresses.
    for host in 1..=3 {
        let server = family.outside(1, if opener == Opener::Echo { 0 } else { 80 });
        let packet = opener.packet(family.inside(host, 5000), server);
        let seen = net.out(&packet)?;
        if seen.from().port() != packet.src.port() {
            return Ok((packet, seen));
        }
    }
    bail!("three hosts have one port, and keep it")
}

/// Where the quoted packet went from and to, as the host inside knows it.
fn ends_of(packet: &Build, opener: Opener) -> (SocketAddr, SocketAddr) {
    let mut to = packet.dst;
    if opener == Opener::Echo {
        to.set_port(packet.src.port());
    }
    (packet.src, to)
}

/// An error about a UDP packet that went out, changed by `change`; `None` when it does not come inside.
fn changed(net: &Net<'_>, family: Family, change: impl Fn(&mut Vec<u8>)) -> Result<Option<Seen>> {
    let (_, seen) = sent(net, family, Opener::Udp)?;
    let mut error = icmp_error(family.router(), seen.from(), IcmpError::PortUnreachable, &seen.bytes).bytes();
    change(&mut error);
    net.outside.send(error)?;
    net.settle()?;
    Ok(net.inside.take_all(is_error(family, IcmpError::PortUnreachable))?.pop())
}

/// Where the ICMP header stands, and where the quoted packet.
fn places(family: Family) -> (usize, usize) {
    if family.is_v4() { (20, 28) } else { (40, 48) }
}

#[test]
fn rfc5508_req_03_a_wrong_icmp_checksum_is_dropped() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            ensure!(changed(net, family, |_| {})?.is_some(), "a right one does not pass");
            let (icmp, _) = places(family);
            ensure!(changed(net, family, |error| error[icmp + 2] ^= 0x10)?.is_none(), "a wrong one passes");
        }
        Ok(())
    });
}

/// IPv6 headers have no checksum.
#[test]
fn rfc5508_req_03a_a_wrong_embedded_header_checksum_is_dropped() {
    requirement(Nat::new().one_worker(), |net| {
        let (_, quoted) = places(Family::V4);
        let change = |error: &mut Vec<u8>| {
            error[quoted + 10] ^= 0x10;
            oracle::fix_checksums(error);
        };
        ensure!(changed(net, Family::V4, |_| {})?.is_some(), "a right one does not pass");
        ensure!(changed(net, Family::V4, change)?.is_none(), "it passes");
        Ok(())
    });
}

/// IPv4 options, and the extension headers of IPv6, in the quoted packet.
#[test]
fn rfc5508_req_03b_embedded_options_are_skipped() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            net.out(&Opener::Udp.packet(family.inside(2, 5000), family.outside(1, 80)))?;
            let packet = udp(family.inside(1, 5000), family.outside(1, 80)).payload("out");
            let packet = match family {
                // Three times "no operation", and the end.
                Family::V4 => packet.ip_options(&[1, 1, 1, 0]),
                Family::V6 => packet.extensions(&[Extension::Destination(1)]),
            };
            net.inside.send(packet.bytes())?;
            let seen = net.outside.expect("a packet with options", |seen| seen.payload() == b"out")?;
            ensure!(seen.from().port() != 5000, "another host's port: {seen:?}");
            let error = icmp_error(family.router(), seen.from(), IcmpError::PortUnreachable, &seen.bytes);
            net.outside.send(error.bytes())?;
            let seen = net.inside.expect("port unreachable", is_error(family, IcmpError::PortUnreachable))?;
            ensure!(seen.checksums_are_right() && seen.to().ip() == packet.src.ip(), "{seen:?}");
            let inner = oracle::decode(seen.payload()).context("the quoted packet")?;
            ensure!(inner.src == packet.src.ip() && inner.ports == Some((5000, 80)), "{inner:?}");
        }
        Ok(())
    });
}

/// A transport checksum that is wrong, as it is where an offload had it done later: none of the NAT's business.
#[test]
fn rfc5508_req_03c_the_embedded_transport_checksum_is_not_validated() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            let (_, quoted) = places(family);
            let header = if family.is_v4() { 20 } else { 40 };
            let seen = changed(net, family, |error| {
                error[quoted + header + 6] ^= 0x10;
                oracle::fix_checksums(error);
            })?;
            let seen = seen.context("it is dropped")?;
            ensure!(seen.checksums_are_right(), "{seen:?}");
        }
        Ok(())
    });
}

/// The quoted packet padded to 128 bytes, and an extension behind it (RFC 4884 section 7): both stay as they are.
#[test]
fn rfc5508_req_03d_extensions_are_no_part_of_the_embedded_packet() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            let (packet, seen) = sent(net, family, Opener::Udp)?;
            let mut payload = seen.bytes.clone();
            payload.resize(128, 0);
            // Version 2, and an object of class 1 with four bytes of payload; its checksum.
            let mut extension = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0xde, 0xad, 0xbe, 0xef];
            let sum = !oracle::sum(&extension);
            extension[2..4].copy_from_slice(&sum.to_be_bytes());
            payload.extend(&extension);
            // The length is in the second word: of IPv4 in its second byte in units of 4, of IPv6 in its first of 8.
            let word = if family.is_v4() { [0, 32, 0, 0] } else { [16, 0, 0, 0] };
            let (kind, code, _) = IcmpError::TimeExceeded.header(family.is_v4());
            let error = icmp_error(family.router(), seen.from(), IcmpError::Raw(kind, code, word), &payload);
            net.outside.send(error.bytes())?;
            let got = net.inside.expect("time exceeded", is_error(family, IcmpError::TimeExceeded))?;
            ensure!(got.checksums_are_right() && got.icmp().is_some_and(|icmp| icmp.word == word), "{got:?}");
            let tail = &got.payload()[seen.bytes.len()..];
            ensure!(tail == &payload[seen.bytes.len()..], "padding or extension changed: {tail:02x?}");
            let quoted = got.quoted().context("a quoted packet")?;
            ensure!((quoted.from, quoted.to) == (packet.src, packet.dst), "{quoted:?}");
        }
        Ok(())
    });
}

#[test]
fn rfc5508_req_04_an_error_from_outside_without_a_mapping_is_dropped() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            let seen = net.out(&Opener::Udp.packet(family.inside(1, 5000), family.outside(1, 80)))?;
            // About a port of the pool that is nobody's, and about a server that nobody talked to.
            let nobody = SocketAddr::new(seen.from().ip(), seen.from().port() ^ 2);
            for quoted in [udp(nobody, seen.to()), udp(seen.from(), family.outside(3, 99))] {
                let error = icmp_error(family.router(), quoted.src, IcmpError::PortUnreachable, &quoted.bytes());
                net.outside.send(error.bytes())?;
            }
            net.settle()?;
            net.inside.refute("an error about nothing", is_error(family, IcmpError::PortUnreachable))?;
        }
        Ok(())
    });
}

/// An error from outside as it arrives inside, for every error and for all that may be quoted.
fn from_outside(check: impl Fn(&Seen, &Quoted, &Build, Opener, IcmpError) -> Result<()>) {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            for opener in OPENERS {
                for error in errors(family) {
                    let (packet, seen) = sent(net, family, opener)?;
                    net.outside.send(icmp_error(family.router(), seen.from(), error, &seen.bytes).bytes())?;
                    let got = net.inside.expect(&format!("{error:?} about {opener:?}"), is_error(family, error))?;
                    ensure!(got.checksums_are_right(), "wrong checksums: {got:?}");
                    let quoted = got.quoted().context("a quoted packet")?;
                    check(&got, &quoted, &packet, opener, error)?;
                }
            }
        }
        Ok(())
    });
}

/// Quoted addresses, ports and checksums are those that the host inside has sent.
#[test]
fn rfc5508_req_04a_embedded_headers_are_restored() {
    from_outside(|got, quoted, packet, opener, _| {
        ensure!((quoted.from, quoted.to) == ends_of(packet, opener) && quoted.header_is_right, "{quoted:?}");
        ensure!(oracle::checksums_are_right(got.payload()), "the quoted checksums: {got:?}");
        Ok(())
    });
}

#[test]
fn rfc5508_req_04b_type_and_code_stay() {
    from_outside(|got, _, packet, _, error| {
        let (kind, code, word) = error.header(packet.src.is_ipv4());
        let icmp = got.icmp().context("ICMP")?;
        ensure!((icmp.kind, icmp.code, icmp.word) == (kind, code, word), "{icmp:?}");
        Ok(())
    });
}

#[test]
fn rfc5508_req_04c_it_goes_to_the_host_inside() {
    from_outside(|got, _, packet, _, _| {
        ensure!(got.to().ip() == packet.src.ip(), "{got:?}");
        Ok(())
    });
}

/// A packet that came in from outside, as it was sent and as it arrived.
fn came_in(net: &Net<'_>, family: Family, opener: Opener) -> Result<(Build, Seen)> {
    let (packet, seen) = sent(net, family, opener)?;
    let answer = match opener {
        Opener::Echo => {
            let mut reply = opener.packet(seen.from(), seen.to()).reversed();
            if let crate::support::packet::Transport::Icmp(kind, ..) = &mut reply.transport {
                *kind = if family.is_v4() { 0 } else { 129 };
            }
            reply
        }
        _ => opener.packet(seen.to(), seen.from()).payload("in"),
    };
    let arrived = net.back(&answer, packet.src)?;
    Ok((answer, arrived))
}

/// An error from inside as it arrives outside, from the host that got the packet, and from a router on its way.
fn from_inside(check: impl Fn(&Seen, &Quoted, &Build, Opener, IcmpError) -> Result<()>) {
    requirement(Nat::new().pool(2).one_worker(), |net| {
        for family in BOTH {
            for opener in OPENERS {
                for (number, error) in errors(family).into_iter().enumerate() {
                    let (answer, arrived) = came_in(net, family, opener)?;
                    let reporter = if number % 2 == 0 { arrived.to() } else { family.inside(9, 0) };
                    net.inside.send(icmp_error(reporter, arrived.from(), error, &arrived.bytes).bytes())?;
                    let got = net.outside.expect(&format!("{error:?} about {opener:?}"), is_error(family, error))?;
                    ensure!(got.checksums_are_right(), "wrong checksums: {got:?}");
                    let quoted = got.quoted().context("a quoted packet")?;
                    check(&got, &quoted, &answer, opener, error)?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn rfc5508_req_05_an_error_from_inside_without_a_mapping_is_dropped() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            let (inside, server) = (family.inside(1, 5000), family.outside(1, 80));
            let quoted = udp(server, inside).payload("never came").bytes();
            net.inside.send(icmp_error(inside, server, IcmpError::PortUnreachable, &quoted).bytes())?;
            net.settle()?;
            net.outside.refute("an error about nothing", is_error(family, IcmpError::PortUnreachable))?;
        }
        Ok(())
    });
}

#[test]
fn rfc5508_req_05a_embedded_headers_are_restored() {
    from_inside(|got, quoted, answer, opener, _| {
        let ends = match opener {
            Opener::Echo => ((answer.src.ip(), quoted.from.port()).into(), (answer.dst.ip(), answer.dst.port()).into()),
            _ => (answer.src, answer.dst),
        };
        ensure!((quoted.from, quoted.to) == ends && quoted.header_is_right, "{quoted:?}, not {ends:?}");
        ensure!(oracle::checksums_are_right(got.payload()), "the quoted checksums: {got:?}");
        Ok(())
    });
}

#[test]
fn rfc5508_req_05b_type_and_code_stay() {
    from_inside(|got, _, answer, _, error| {
        let (kind, code, word) = error.header(answer.src.is_ipv4());
        let icmp = got.icmp().context("ICMP")?;
        ensure!((icmp.kind, icmp.code, icmp.word) == (kind, code, word), "{icmp:?}");
        Ok(())
    });
}

#[test]
fn rfc5508_req_05c_its_source_becomes_the_public_address() {
    from_inside(|got, _, answer, _, _| {
        ensure!(got.from().ip() == answer.dst.ip(), "from {}, not {}", got.from(), answer.dst);
        ensure!(got.to().ip() == answer.src.ip(), "{got:?}");
        Ok(())
    });
}

/// What a hairpinned packet meets comes back to its sender, and both see nothing but outside addresses of the other.
fn hairpinned(check: impl Fn(&Seen, &Quoted, SocketAddr, SocketAddr) -> Result<()>) {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            for error in [IcmpError::PortUnreachable, IcmpError::TimeExceeded, IcmpError::TooBig(1300)] {
                let (one, two) = (family.inside(1, 5000), family.inside(2, 5001));
                for port in [5000, 5001] {
                    net.out(&Opener::Udp.packet(family.inside(3, port), family.outside(1, 80)))?;
                }
                let target = net.mapped(&udp(one, family.outside(1, 80)).payload("out"))?;
                net.inside.send(udp(two, target).payload("hairpin").bytes())?;
                let arrived = net.inside.expect("a hairpinned packet", |seen| seen.payload() == b"hairpin")?;
                let ports = [target.port(), arrived.from().port()];
                ensure!(ports.iter().all(|port| ![5000, 5001].contains(port)), "another host's port: {ports:?}");
                net.inside.send(icmp_error(one, arrived.from(), error, &arrived.bytes).bytes())?;
                let got = net.inside.expect(&format!("{error:?}"), is_error(family, error))?;
                ensure!(got.checksums_are_right() && got.from().ip() == target.ip(), "{got:?}");
                check(&got, &got.quoted().context("a quoted packet")?, two, target)?;
            }
        }
        Ok(())
    });
}

#[test]
fn rfc5508_req_07_hairpinned_errors_pass() {
    hairpinned(|_, quoted, sender, target| {
        ensure!((quoted.from, quoted.to) == (sender, target) && quoted.header_is_right, "{quoted:?}");
        Ok(())
    });
}

#[test]
fn rfc5508_req_07a_a_hairpinned_error_goes_to_the_embedded_source() {
    hairpinned(|got, quoted, sender, _| {
        ensure!(got.to().ip() == sender.ip() && quoted.from == sender, "{got:?}");
        Ok(())
    });
}

/// The messages that a NAT has to support: unreachable, time exceeded, and echo.
#[test]
fn rfc5508_req_10a_unreachable_time_exceeded_and_echo_are_supported() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            for opener in OPENERS {
                let (_, seen) = sent(net, family, opener)?;
                for error in [IcmpError::PortUnreachable, IcmpError::TimeExceeded] {
                    net.outside.send(icmp_error(family.router(), seen.from(), error, &seen.bytes).bytes())?;
                    net.inside.expect(&format!("{error:?} about {opener:?}"), is_error(family, error))?;
                }
                // Echo replies among them.
                came_in(net, family, opener)?;
            }
        }
        Ok(())
    });
}

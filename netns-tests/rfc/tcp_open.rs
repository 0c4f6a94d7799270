//! RFC 5382 REQ-4: what becomes of a SYN from outside that nobody waits for.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::net::{BOTH, Family, Nat, Net, requirement};
use super::wire::Seen;
use crate::process::eventually;
use crate::support::packet::{ACK, SYN, tcp};

/// An inside host whose mapping takes nothing but from whom it asked, and a stranger's SYN to it.
fn unsolicited(net: &Net<'_>, family: Family, number: u8) -> Result<(std::net::SocketAddr, std::net::SocketAddr)> {
    let inside = family.inside(number, 5000);
    let out = net.mapped(&tcp(inside, family.outside(1, 80)).syn())?;
    net.outside.send(tcp(family.outside(2, 6000), out).syn().seq(700, 0).bytes())?;
    Ok((inside, out))
}

fn strict() -> Nat {
    Nat::new().with("filtering = \"address-port\"").one_worker()
}

/// Nothing for six seconds, and then port unreachable; but nothing where an outbound SYN comes meanwhile, which opens the
/// connection from both sides.
#[test]
fn rfc5382_req_04_an_unsolicited_syn_is_answered_after_six_seconds() {
    requirement(strict(), |net| {
        let mut waiting = Vec::new();
        let begin = Instant::now();
        for family in BOTH {
            waiting.push((family, unsolicited(net, family, 1)?.1, unsolicited(net, family, 2)?));
        }
        for (family, _, (inside, out)) in &waiting {
            let stranger = family.outside(2, 6000);
            ensure!(net.mapped(&tcp(*inside, stranger).syn().seq(100, 0))? == *out, "another mapping");
            net.back(&tcp(stranger, *out).flags(SYN | ACK).seq(700, 101), *inside)?;
            net.out(&tcp(*inside, stranger).flags(ACK).seq(101, 701))?;
        }
        let error = |family: Family| {
            let kind = if family.is_v4() { (3, 3) } else { (1, 4) };
            move |seen: &Seen| {
                seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == kind && icmp.v4 == family.is_v4())
            }
        };
        for (family, out, _) in &waiting {
            let what = "port unreachable for the SYN that nobody took";
            let seen = net.outside.expect_within(Duration::from_secs(15), what, error(*family))?;
            ensure!(begin.elapsed() >= Duration::from_secs(6), "{seen:?} after {:?}", begin.elapsed());
            let quoted = seen.quoted().ok_or_else(|| anyhow::anyhow!("no quoted packet: {seen:?}"))?;
            ensure!(quoted.to == *out && quoted.from == family.outside(2, 6000), "{seen:?}");
            ensure!(seen.to().ip() == family.outside(2, 0).ip() && seen.checksums_are_right(), "{seen:?}");
        }
        // No RST, no SYN-ACK, no second error: nothing else has come for strangers.
        net.settle()?;
        let strangers = |seen: &Seen| BOTH.iter().any(|family| seen.to().ip() == family.outside(2, 0).ip());
        net.outside.refute("something for the stranger", strangers)
    });
}

/// An operator whose policy is silence: the SYN is not kept, so there is nothing to wait for (and nothing comes later,
/// tests/golden/filtering.rs).
#[test]
fn rfc5382_req_04a_policy_may_silence_the_answer() {
    requirement(strict().tables("[limits]\nunsolicited_syns = 0"), |net| {
        for family in BOTH {
            unsolicited(net, family, 1)?;
        }
        let unanswered = || net.gateway()?.metric("gatun_syns_unanswered_total", &[]);
        eventually("both are dropped", Duration::from_secs(5), || unanswered().is_ok_and(|count| count == 2.0))?;
        net.settle()?;
        let strangers = |seen: &Seen| BOTH.iter().any(|family| seen.to().ip() == family.outside(2, 0).ip());
        net.outside.refute("something for the stranger", strangers)
    });
}

//! Two gateways in one namespace, with devices of their own: neither disturbs the other, not even in dying.

use crate::cleanup::{ensure_same, snapshot};
use crate::client::answers;
use crate::gateway::Setup;
use crate::lab::scenario;
use crate::servers::{THREE, VIPS, dual_service, three_nginx};

#[test]
fn side_by_side() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let before = snapshot(lab)?;
        let one = dual_service(80, "tcp", "rr", &THREE, 8080);
        let other = one.replace("203.0.113.10", "203.0.113.11").replace("2001:db8:f::10", "2001:db8:f::11");
        let others_vips = ["203.0.113.11", "[2001:db8:f::11]"];
        let works = |vips: &[&str]| vips.iter().try_for_each(|vip| answers(lab, vip, 6).map(drop));

        let first = Setup::new(one).start(lab)?;
        let alone = snapshot(lab)?;
        let second = Setup::new(other).device("gatun1", 9109).start(lab)?;
        works(&VIPS)?;
        works(&others_vips)?;

        second.stop()?;
        works(&VIPS)?;
        ensure_same(&alone, &snapshot(lab)?)?;

        second.restart(lab)?;
        works(&others_vips)?;
        // A restart after a crash cleans up its own remains only.
        second.crash();
        second.restart(lab)?;
        works(&VIPS)?;
        works(&others_vips)?;
        // The first one, which switched the sysctls on, goes: the second still needs them.
        first.stop()?;
        works(&others_vips)?;
        second.stop()?;
        ensure_same(&before, &snapshot(lab)?)
    });
}

//! What masquerades were before reloads, for as long as flows live that began by them.
//!
//! Which shard a flow is in follows from who was inside when it began, and packets of its inside host come to the gateway by a
//! rule of the host for its network. So both are known until the flows have ended; new flows are none of their business.

use std::sync::Arc;

use super::{Masquerade, Pools};
use crate::wire::Addr;

/// Reloads of which what was before is known, the latest first. A gateway that is never without a flow keeps them for ever, and
/// every packet that stays among strangers is held against each.
const MAX_FORMER: usize = 16;

/// By reload: the masquerades that were live before it.
#[derive(Debug, Default)]
pub(super) struct Former(Vec<Vec<Arc<Masquerade>>>);

impl Former {
    /// Of who follows `previous` with these. What was live there may be used up to the moment that a shard swaps.
    pub fn after(previous: &Pools, live: &[Arc<Masquerade>]) -> Former {
        let mut all: Vec<Vec<Arc<Masquerade>>> = Vec::new();
        let used = |old: &&Arc<Masquerade>| old.state.count() > 0;
        let older = previous.former.0.iter().map(|old| old.iter().filter(used).cloned().collect());
        for old in std::iter::once(previous.live.clone()).chain(older) {
            if !old.is_empty() && !is_same(&old, live) && !all.iter().any(|known| is_same(known, &old)) {
                all.push(old);
            }
        }
        all.truncate(MAX_FORMER);
        Former(all)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Masquerade>> {
        self.0.iter().flatten()
    }

    /// Whether one that was live before has no flows any more.
    pub fn has_idle(&self) -> bool {
        self.iter().any(|old| old.state.count() == 0)
    }

    /// Whether a packet from `src` to `dst` went out by a masquerade.
    #[inline]
    pub fn was_outward(&self, src: Addr, dst: Addr) -> bool {
        self.0.iter().any(|old| outward(old, src, dst).is_some())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Which of `all` a packet from `src` to `dst` goes out by: that of the narrowest network.
#[inline]
pub(super) fn outward(all: &[Arc<Masquerade>], src: Addr, dst: Addr) -> Option<&Arc<Masquerade>> {
    if all.is_empty() || is_inside(all, dst) {
        return None;
    }
    let width =
        |masquerade: &Masquerade| masquerade.spec.from.iter().filter(|net| net.contains(src)).map(|net| net.len).max();
    let found = all.iter().filter_map(|masquerade| Some((width(masquerade)?, masquerade)));
    let (_, masquerade) = found.max_by_key(|(width, _)| *width)?;
    (!masquerade.spec.except.iter().any(|net| net.contains(dst))).then_some(masquerade)
}

pub(super) fn is_inside(all: &[Arc<Masquerade>], addr: Addr) -> bool {
    all.iter().any(|masquerade| masquerade.spec.from.iter().any(|net| net.contains(addr)))
}

/// Whether flows begin by both for the same ends.
fn is_same(one: &[Arc<Masquerade>], other: &[Arc<Masquerade>]) -> bool {
    let ends = |of: &Masquerade| (of.id, of.spec.from.clone(), of.spec.except.clone());
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| ends(one) == ends(other))
}

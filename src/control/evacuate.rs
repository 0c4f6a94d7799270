//! Moving flows off servers that serve no more, without keeping the control plane from anything else.

use crate::io::{Cause, Evacuation, Gateway};
use crate::service::ServerId;

/// Ends the flows of these servers as their services want it, and tells both ends where that is to be; returns how many that
/// were. A slice of a shard per lock hold, and other tasks in between.
pub async fn evacuate(gateway: &Gateway, servers: &[ServerId], cause: Cause) -> u64 {
    let mut evacuation = Evacuation::new(gateway, servers, cause);
    while evacuation.step(gateway) {
        tokio::task::yield_now().await;
    }
    evacuation.ended()
}

//! Method `direct`: the packet goes to the server's MAC address as it is; the server holds the VIP and answers the client
//! itself (Linux, `ip_vs_dr_xmit`). Which MAC address that is, the link layer knows: here only the neighbour is named.

use super::refuse::Refusal;
use super::{Context, Obstacle, count_down};
use crate::verdict::DropReason;
use crate::wire::PacketBuf;

pub fn apply(buf: &mut PacketBuf, context: Context<'_>) -> Result<(), Obstacle> {
    let unreachable = Obstacle { reason: DropReason::ServerUnreachable, refusal: Some(Refusal::HostUnreachable) };
    let server = context.server.ok_or(unreachable)?;
    if server.path.is_unreachable() {
        return Err(unreachable);
    }
    count_down(buf, context.spec);
    buf.hop = Some(server.address);
    Ok(())
}

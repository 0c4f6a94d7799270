//! TEMPORARY STUB
use super::{PacketBuf, View, VnetHdr, Wrap};
pub enum Fit {
    Whole,
    Pieces,
    TooBig { mtu: u16 },
}
pub fn fit(_view: &View, _vnet: &VnetHdr, _df: bool, _overhead: usize, _outer_is_v4: bool, _mtu: u16) -> Fit {
    Fit::Whole
}
pub enum CutError<E> {
    Packet(crate::verdict::DropReason),
    Write(E),
}
pub fn pieces<E>(
    _buf: &PacketBuf,
    _wrap: &Wrap,
    _each: impl FnMut(&VnetHdr, &[u8], &[u8]) -> Result<(), E>,
) -> Result<usize, CutError<E>> {
    Ok(0)
}

//! Capture files of both formats.

use std::io::{BufRead, Read};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};

/// The type of the first block of every pcapng file; the same in both byte orders.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Microseconds, where an interface does not say otherwise (draft-ietf-opsawg-pcapng section 4.2).
const DEFAULT_RESOLUTION: u8 = 6;

/// A frame of the capture.
pub struct Captured<'a> {
    /// Since 1970.
    pub time: Duration,
    pub link: DataLink,
    pub frame: &'a [u8],
}

/// Hands over every packet.
pub fn packets(mut input: impl BufRead, each: impl FnMut(Captured<'_>) -> Result<()>) -> Result<()> {
    if input.fill_buf()?.starts_with(&PCAPNG) { pcapng(input, each) } else { pcap(input, each) }
}

fn pcap(input: impl Read, mut each: impl FnMut(Captured<'_>) -> Result<()>) -> Result<()> {
    let mut reader = PcapReader::new(input).context("this is neither a pcap nor a pcapng file")?;
    let link = reader.header().datalink;
    while let Some(packet) = reader.next_packet() {
        let packet = packet.context("the capture is damaged")?;
        each(Captured { time: packet.timestamp, link, frame: &packet.data })?;
    }
    Ok(())
}

fn pcapng(input: impl Read, mut each: impl FnMut(Captured<'_>) -> Result<()>) -> Result<()> {
    let mut reader = PcapNgReader::new(input).context("this is no pcapng file")?;
    // By interface: link type and resolution of its times.
    let mut interfaces: Vec<(DataLink, u8)> = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.context("the capture is damaged")? {
            Block::SectionHeader(_) => interfaces.clear(),
            Block::InterfaceDescription(interface) => {
                let resolution = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
                    _ => None,
                });
                interfaces.push((interface.linktype, resolution.unwrap_or(DEFAULT_RESOLUTION)));
            }
            Block::EnhancedPacket(packet) => {
                let Some(&(link, resolution)) = interfaces.get(packet.interface_id as usize) else {
                    bail!("a packet is of an interface that the capture does not describe");
                };
                // The reader takes the units for nanoseconds, whatever the interface says.
                let time = time(packet.timestamp.as_nanos(), resolution);
                each(Captured { time, link, frame: &packet.data })?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A time from units of 10⁻ⁿ s, or of 2⁻ⁿ s when the highest bit is set.
fn time(units: u128, resolution: u8) -> Duration {
    let exponent = u32::from(resolution & 0x7f);
    let per_second = if resolution & 0x80 == 0 { 10_u128.checked_pow(exponent) } else { 2_u128.checked_pow(exponent) };
    let per_second = per_second.unwrap_or(u128::MAX);
    let seconds = u64::try_from(units / per_second).unwrap_or(u64::MAX);
    let rest = units % per_second;
    // `rest` is below 2⁶⁴, as `units` is, so that the product fits.
    let nanoseconds = rest * 1_000_000_000 / per_second;
    Duration::new(seconds, u32::try_from(nanoseconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(1_500_000, 6), Duration::from_millis(1500));
        assert_eq!(time(1_500_000_000, 9), Duration::from_millis(1500));
        assert_eq!(time(3 << 9, 0x80 | 10), Duration::from_millis(1500));
        assert_eq!(time(u128::from(u64::MAX), 127).as_secs(), 0);
        assert_eq!(time(7, 0), Duration::from_secs(7));
    }
}

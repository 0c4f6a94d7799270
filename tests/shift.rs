//! What a shift does to packets: random segments with random options, in every form that checksums come in, against an
//! independent reading.

#[path = "support/mod.rs"]
mod support;

use gatun::flow::{Lead, LeadStage, Sender, Shift};
use gatun::forward::shift::{requote, to_client, to_server};
use gatun::wire::{PacketBuf, View};
use proptest::prelude::*;

use support::oracle;
use support::packet::{ACK, Build, PSH, tcp};

const AT: u32 = 0xffff_ff00;

/// Sequence number, acknowledgement, payload, whether an odd option stands in front, SACK blocks.
#[derive(Clone, Debug)]
struct Said {
    v4: bool,
    seq: u32,
    ack: u32,
    payload: Vec<u8>,
    is_odd: bool,
    timestamps: Option<(u32, u32)>,
    blocks: Vec<(u32, u32)>,
    form: u8,
}

fn said() -> impl Strategy<Value = Said> {
    let near = |from: u32| (0u32..100_000).prop_map(move |n| from.wrapping_add(n));
    let blocks = proptest::collection::vec((0u32..100_000, 1u32..5000), 0..3);
    let parts =
        (any::<bool>(), prop_oneof![Just(AT), near(AT)], near(AT), proptest::collection::vec(any::<u8>(), 0..300));
    let rest = (any::<bool>(), proptest::option::of(any::<(u32, u32)>()), blocks, 0u8..3);
    (parts, rest).prop_map(|((v4, seq, ack, payload), (is_odd, timestamps, blocks, form))| Said {
        v4,
        seq,
        ack,
        payload,
        is_odd,
        timestamps,
        blocks: blocks.into_iter().map(|(left, len)| (AT.wrapping_add(left), AT.wrapping_add(left + len))).collect(),
        form,
    })
}

impl Said {
    fn build(&self) -> Build {
        let (src, dst) = match self.v4 {
            true => ("198.51.100.2:40000", "203.0.113.10:80"),
            false => ("[2001:db8:1::2]:40000", "[2001:db8:f::10]:80"),
        };
        let mut options = if self.is_odd { vec![1] } else { vec![1, 1] };
        if let Some((value, echo)) = self.timestamps {
            options.extend([8, 10]);
            options.extend(value.to_be_bytes());
            options.extend(echo.to_be_bytes());
        }
        if !self.blocks.is_empty() {
            options.extend([5, 2 + 8 * self.blocks.len() as u8]);
            for (left, right) in &self.blocks {
                options.extend(left.to_be_bytes());
                options.extend(right.to_be_bytes());
            }
        }
        options.resize(options.len().next_multiple_of(4), 0);
        tcp(src, dst).flags(PSH | ACK).seq(self.seq, self.ack).tcp_options(&options).payload(&self.payload)
    }

    fn buf(&self) -> PacketBuf {
        match self.form {
            0 => self.build().buf(),
            1 => self.build().partial(),
            _ => self.build().super_packet(100),
        }
    }
}

fn shift(len: u8, stage: LeadStage, server: u32, time: u32) -> Shift {
    Shift { lead: Lead { len, form: 0, stage, at: AT }, server, time, ..Shift::default() }
}

/// Whether the packet says just that, with right sums, in the form in which it came.
fn says(buf: &PacketBuf, before: &PacketBuf, expected: &Said) {
    assert_eq!(buf.vnet, before.vnet);
    assert_eq!(oracle::complete(buf), expected.build().bytes());
}

proptest! {
    #[test]
    fn what_goes_to_the_server(said in said(), server: u32, time: u32, len in 1u8..108) {
        let lead: Vec<u8> = (0..len).collect();
        let mut shift = shift(len, LeadStage::Placed, server, time);
        let before = said.buf();
        let mut buf = before.clone();
        let view = View::parse(buf.packet()).expect("it is well-formed");
        let is_longer = to_server(&mut buf, &view, &mut shift, &lead).expect("it can go there");
        let mut expected = said.clone();
        if said.seq == AT {
            expected.payload = [&lead[..], &said.payload].concat();
        } else {
            expected.seq = said.seq.wrapping_add(u32::from(len));
        }
        prop_assert_eq!(is_longer, said.seq == AT);
        expected.ack = said.ack.wrapping_sub(server);
        expected.timestamps = said.timestamps.map(|(value, echo)| (value, echo.wrapping_sub(time)));
        expected.blocks.iter_mut().for_each(|(left, right)| {
            *left = left.wrapping_sub(server);
            *right = right.wrapping_sub(server);
        });
        says(&buf, &before, &expected);
    }

    #[test]
    fn what_goes_to_the_client(said in said(), server: u32, time: u32, len in 0u8..108) {
        let stage = if len == 0 { LeadStage::Unplaced } else { LeadStage::Done };
        let mut shift = shift(len, stage, server, time);
        let before = said.buf();
        let mut buf = before.clone();
        let view = View::parse(buf.packet()).expect("it is well-formed");
        let counted = to_client(&mut buf, &view, &mut shift, AT);
        let mut expected = said.clone();
        (expected.seq, expected.ack) = (said.seq.wrapping_add(server), said.ack.wrapping_sub(u32::from(len)));
        expected.timestamps = said.timestamps.map(|(value, echo)| (value.wrapping_add(time), echo));
        expected.blocks.iter_mut().for_each(|(left, right)| {
            *left = left.wrapping_sub(u32::from(len));
            *right = right.wrapping_sub(u32::from(len));
        });
        says(&buf, &before, &expected);
        let told = View::parse(buf.packet()).expect("it still is");
        prop_assert_eq!(format!("{counted:?}"), format!("{told:?}"));
    }

    /// As far as it is quoted, an error says what the other end has sent; and what was right stays so.
    #[test]
    fn what_is_quoted(said in said(), server: u32, cut in 0usize..80) {
        let shift = shift(50, LeadStage::Done, server, 0);
        let l4 = if said.v4 { 20 } else { 40 };
        let mut sent = said.build().buf();
        let view = View::parse(sent.packet()).expect("it is well-formed");
        to_server(&mut sent, &view, &mut shift.clone(), &[]).expect("it can go there");
        let original = said.build().bytes();
        let end = (l4 + cut).min(original.len());
        let mut quoted = sent.packet()[l4..end].to_vec();
        requote(&mut quoted, &shift, Sender::Server);
        // Without the flags it does not say that there is an acknowledgement, and half a checksum is none. SACK blocks of the
        // quote are left alone.
        let known = match quoted.len() {
            ..14 => 8,
            14..18 => 16,
            _ => 20,
        };
        let upto = quoted.len().min(known).min(if said.blocks.is_empty() { 20 } else { 16 });
        if cut >= 8 {
            prop_assert_eq!(&quoted[..upto], &original[l4..l4 + upto]);
        }
    }
}

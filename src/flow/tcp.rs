//! The TCP state machine of a middlebox, as a table.
//!
//! It is the table of IPVS (Linux, `net/netfilter/ipvs/ip_vs_proto_tcp.c`, `tcp_states`): rows by direction and by the
//! flag that counts (RST before SYN before FIN before ACK), columns by the state the flow is in.

/// The state of a TCP flow as seen from the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    #[default]
    None = 0,
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait = 4,
    TimeWait = 5,
    Close = 6,
    CloseWait = 7,
    LastAck = 8,
    Listen = 9,
    SynAck = 10,
}

use std::time::Duration;

use crate::timeouts::Timeouts;

use TcpState::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI, SynAck as SA,
    SynRecv as SR, SynSent as SS, TimeWait as TW,
};

impl TcpState {
    pub const ALL: [TcpState; 11] = [TcpState::None, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA];

    /// The word of conntrack-tools where it has one.
    pub const fn word(self) -> &'static str {
        match self {
            TcpState::None => "NONE",
            ES => "ESTABLISHED",
            SS => "SYN_SENT",
            SR => "SYN_RECV",
            FW => "FIN_WAIT",
            TW => "TIME_WAIT",
            CL => "CLOSE",
            CW => "CLOSE_WAIT",
            LA => "LAST_ACK",
            LI => "LISTEN",
            SA => "SYNACK",
        }
    }

    /// Whether the three-way handshake has not been seen to its end.
    pub const fn is_half_open(self) -> bool {
        matches!(self, TcpState::None | SS | SR | LI | SA)
    }
}

/// How long a flow in `state` lives without a packet.
pub const fn timeout(timeouts: &Timeouts, state: TcpState) -> Duration {
    match state {
        TcpState::None => timeouts.tcp_none,
        ES => timeouts.tcp_established,
        SS => timeouts.tcp_syn_sent,
        SR => timeouts.tcp_syn_recv,
        FW => timeouts.tcp_fin_wait,
        TW => timeouts.tcp_time_wait,
        CL => timeouts.tcp_close,
        CW => timeouts.tcp_close_wait,
        LA => timeouts.tcp_last_ack,
        LI => timeouts.tcp_listen,
        SA => timeouts.tcp_synack,
    }
}

/// The flag of a segment that moves the state; the order is that of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Trigger {
    Syn = 0,
    Fin = 1,
    Ack = 2,
    Rst = 3,
}

/// Who sent the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sender {
    Client = 0,
    Server = 1,
}

/// `[sender][trigger][state]`.
#[rustfmt::skip]
static TABLE: [[[TcpState; 11]; 4]; 2] = [
    //  NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    [
        [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR], // syn
        [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW], // fin
        [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES], // ack
        [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR], // rst
    ],
    [
        [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR], // syn
        [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW], // fin
        [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES], // ack
        [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL], // rst
    ],
];

/// `[trigger][state]`, where the client's segments are all that is seen (`tcp_states`, the part of `INPUT_ONLY`).
#[rustfmt::skip]
static INPUT_ONLY: [[TcpState; 11]; 4] = [
    //  NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR], // syn
    [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW], // fin
    [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES], // ack
    [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL], // rst
];

/// The state after a client's segment with `trigger`, where the server's are not seen.
#[inline]
pub fn next_blind(state: TcpState, trigger: Trigger) -> TcpState {
    INPUT_ONLY[trigger as usize][state as usize]
}

/// The state after a segment with `trigger` from `sender`.
#[inline]
pub fn next(state: TcpState, sender: Sender, trigger: Trigger) -> TcpState {
    TABLE[sender as usize][trigger as usize][state as usize]
}

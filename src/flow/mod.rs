//! Flows: the table, the TCP states, expiry, and fragments that follow their first one.

mod expiry;
mod fragments;
mod index;
mod pieces;
mod shift;
mod table;
mod tcp;
pub mod track;

pub use fragments::{Bounds, Fate, Fragments, Later};
pub use pieces::{MAX_PIECES, Piece};
pub use shift::{Lead, Scale, Shift, Stage as LeadStage};
pub use table::{Flow, FlowId, FlowTable, InsertError, MAX_PROBES, Marks, Owner, Sequence, Standing};
pub use tcp::{Sender, TcpState, Trigger, next, next_blind};

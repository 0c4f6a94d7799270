//! `tcp`: a connection comes about.

use super::{Asked, Asking, Good, Probe};
use crate::control::health::transport::Connect;

#[derive(Debug)]
pub struct Tcp;

impl Probe for Tcp {
    fn ask<'a>(&'a self, asked: &'a Asked, by: &'a dyn Connect) -> Asking<'a> {
        Box::pin(async move {
            by.stream(asked.target).await?;
            Ok(Good::said("connected"))
        })
    }
}

//! Probes that go through the gateway, as clients' packets do: [`crate::io::probe`] carries them.

use std::io;
use std::sync::Arc;

use super::transport::{Answer, Connect, Datagrams, Stream, Target};
use crate::io::Gateway;
use crate::io::probe::{self, Probes};
use crate::service::ServerId;

/// The gateway's own data path.
pub struct Path(Probes);

impl Path {
    pub fn new(gateway: Arc<Gateway>) -> Path {
        Path(Probes::new(gateway))
    }
}

impl Connect for Path {
    fn stream(&self, to: Target) -> Answer<'_, Box<dyn Stream>> {
        Box::pin(async move { Ok(Box::new(self.0.stream(through(to)?, to.address).await?) as Box<dyn Stream>) })
    }

    fn datagrams(&self, to: Target) -> Answer<'_, Box<dyn Datagrams>> {
        Box::pin(async move { Ok(Box::new(self.0.datagrams(through(to)?, to.address)?) as Box<dyn Datagrams>) })
    }
}

fn through(to: Target) -> io::Result<ServerId> {
    to.through.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no server to go through the gateway to"))
}

impl Datagrams for probe::Datagrams {
    fn send<'a>(&'a mut self, payload: &'a [u8]) -> Answer<'a, ()> {
        Box::pin(probe::Datagrams::send(self, payload))
    }

    fn receive<'a>(&'a mut self, into: &'a mut [u8]) -> Answer<'a, usize> {
        Box::pin(probe::Datagrams::receive(self, into))
    }
}

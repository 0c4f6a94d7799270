//! Which gateway ipvsadm is about, and how one is started.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cli::DEFAULT_CONTROL;
use crate::cli::client::Client;

/// Where the gateway is, or would be.
pub struct Place {
    control: PathBuf,
}

impl Place {
    pub fn new(control: Option<PathBuf>) -> Place {
        Place { control: control.unwrap_or_else(|| PathBuf::from(DEFAULT_CONTROL)) }
    }

    /// A connection to the gateway; `None` where none runs.
    pub fn client(&self) -> Result<Option<Client>> {
        Ok(Client::connect(&self.control).ok())
    }

    /// Starts one.
    pub fn start(&self) -> Result<()> {
        bail!("no gateway runs")
    }
}

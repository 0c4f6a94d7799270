//! Counters that an operator has set to zero. What the engines count goes on, and metrics tell that; what people and
//! `ipvsadm` are shown is the difference.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::command::Volume;
use crate::service::{Server, ServerId, ServerLoad, Snapshot};
use crate::stats::Traffic;

/// What servers had counted when they were set to zero.
#[derive(Debug, Default)]
pub(super) struct Baselines(Mutex<HashMap<ServerId, Baseline>>);

#[derive(Clone, Debug)]
struct Baseline {
    /// An id may be given away; the load is the server's own.
    load: Arc<ServerLoad>,
    counted: (u64, Traffic),
}

impl Baselines {
    /// From now on `server` is shown as if it had counted nothing yet. `traffic` by [`ServerId`].
    pub(super) fn set<'a>(&self, servers: impl Iterator<Item = &'a Arc<Server>>, traffic: &[Traffic]) -> u64 {
        let mut baselines = self.0.lock();
        let mut count = 0;
        for server in servers {
            let so_far = traffic.get(server.id.0 as usize).copied().unwrap_or_default();
            let counted = (server.load.admitted(), so_far);
            baselines.insert(server.id, Baseline { load: server.load.clone(), counted });
            count += 1;
        }
        count
    }

    /// Flows admitted, and traffic, since `server` was set to zero.
    pub(super) fn since(&self, server: &Server, traffic: Traffic) -> (u64, Traffic) {
        let baselines = self.0.lock();
        let baseline = baselines.get(&server.id).filter(|baseline| Arc::ptr_eq(&baseline.load, &server.load));
        let (admitted, before) = baseline.map_or_else(Default::default, |baseline| baseline.counted);
        let less = |now: Volume, before: Volume| Volume {
            packets: now.packets.saturating_sub(before.packets),
            bytes: now.bytes.saturating_sub(before.bytes),
        };
        let traffic = Traffic {
            to_server: less(traffic.to_server, before.to_server),
            to_client: less(traffic.to_client, before.to_client),
        };
        (server.load.admitted().saturating_sub(admitted), traffic)
    }

    /// Forgets servers that are gone.
    pub(super) fn tidy(&self, snapshot: &Snapshot) {
        self.0.lock().retain(|id, baseline| {
            snapshot.server(*id).is_some_and(|server| Arc::ptr_eq(&server.load, &baseline.load))
        });
    }
}

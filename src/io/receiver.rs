//! The real server's packet threads: from the tunnel's sockets to the device that holds the VIPs.
//!
//! One thread a socket, run to completion: a batch is received, each packet taken out of its tunnel, what belongs together
//! put together, and written. Nothing comes the other way: the host answers by its own routes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tracing::{debug, error, warn};

use super::device::{Device, is_fatal};
use super::tunnel_socket::{BATCH, TunnelSocket};
use crate::forward::receive::{RealServer, Received};
use crate::wire::coalesce::coalesce;
use crate::wire::{MAX_PACKET, PacketBuf};

/// Running threads; [`Receivers::stop`] ends them, dropping them does as well.
pub struct Receivers {
    threads: Vec<JoinHandle<()>>,
    sockets: Vec<TunnelSocket>,
    stopping: Arc<AtomicBool>,
    accepts: Arc<ArcSwap<RealServer>>,
    counters: Vec<Arc<Counters>>,
}

/// What one thread has done.
#[derive(Debug, Default)]
struct Counters {
    received: Mutex<Received>,
    /// Packets written, super-packets as one.
    written: AtomicU64,
    write_errors: AtomicU64,
}

/// What all threads have done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub received: Received,
    pub written: u64,
    pub write_errors: u64,
    /// Packets that the kernel dropped because they were not taken in time.
    pub overruns: u64,
}

impl Receivers {
    /// Starts a thread for each socket; `device` makes each its own handle of the device.
    pub fn start<D: Device + 'static>(
        accepts: RealServer,
        sockets: Vec<TunnelSocket>,
        mut device: impl FnMut() -> io::Result<D>,
    ) -> io::Result<Receivers> {
        let mut receivers = Receivers {
            threads: Vec::new(),
            sockets: Vec::new(),
            stopping: Arc::new(AtomicBool::new(false)),
            accepts: Arc::new(ArcSwap::from_pointee(accepts)),
            counters: Vec::new(),
        };
        for socket in sockets {
            let counters = Arc::new(Counters::default());
            let mut thread = Receiver {
                socket: socket.try_clone()?,
                device: device()?,
                accepts: receivers.accepts.clone(),
                counters: counters.clone(),
                warned: false,
            };
            let stopping = receivers.stopping.clone();
            let source = socket.source();
            receivers.sockets.push(socket);
            receivers.counters.push(counters);
            let run = move || {
                if let Err(error) = thread.run(&stopping) {
                    error!(?source, %error, "no more packets are received");
                }
            };
            receivers.threads.push(std::thread::Builder::new().name("gatun-rs".to_owned()).spawn(run)?);
        }
        Ok(receivers)
    }

    /// From now on packets are judged by `accepts`.
    pub fn swap(&self, accepts: RealServer) {
        self.accepts.store(Arc::new(accepts));
    }

    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for counters in &self.counters {
            totals.received.merge(&counters.received.lock());
            totals.written += counters.written.load(Ordering::Relaxed);
            totals.write_errors += counters.write_errors.load(Ordering::Relaxed);
        }
        totals.overruns = self.sockets.iter().filter_map(|socket| socket.dropped().ok()).sum();
        totals
    }

    /// Whether a thread ended without being told to.
    pub fn have_failed(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed) && self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends the threads and closes their sockets; returns when they are gone.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        while !self.threads.iter().all(JoinHandle::is_finished) {
            self.sockets.iter().for_each(TunnelSocket::wake);
            std::thread::sleep(Duration::from_millis(2));
        }
        for thread in self.threads.drain(..) {
            // A panic was already printed by the thread's own hook.
            let _ = thread.join();
        }
        self.sockets.clear();
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Receiver<D> {
    socket: TunnelSocket,
    device: D,
    accepts: Arc<ArcSwap<RealServer>>,
    counters: Arc<Counters>,
    warned: bool,
}

impl<D: Device> Receiver<D> {
    fn run(&mut self, stopping: &AtomicBool) -> io::Result<()> {
        // Memory that is never written to is never set aside, so what a batch takes is what its packets need.
        let mut batch: Vec<PacketBuf> = (0..BATCH).map(|_| PacketBuf::with_capacity(MAX_PACKET)).collect();
        while !stopping.load(Ordering::Relaxed) {
            let count = self.socket.receive(&mut batch)?;
            if count > 0 {
                self.hand_over(&mut batch[..count])?;
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, batch: &mut [PacketBuf]) -> io::Result<()> {
        let accepts = self.accepts.load();
        {
            let mut received = self.counters.received.lock();
            for buf in batch.iter_mut() {
                if accepts.handle(buf, &mut received).is_err() {
                    buf.truncate(0);
                }
            }
        }
        coalesce(batch);
        for buf in batch.iter_mut().filter(|buf| !buf.is_empty()) {
            match self.device.send(buf) {
                Ok(()) => {
                    self.counters.written.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if is_fatal(&error) => return Err(error),
                Err(error) => {
                    self.counters.write_errors.fetch_add(1, Ordering::Relaxed);
                    debug!(%error, "the device did not take a packet");
                    if !std::mem::replace(&mut self.warned, true) {
                        warn!(%error, "the device does not take packets; further ones are only counted");
                    }
                }
            }
        }
        Ok(())
    }
}

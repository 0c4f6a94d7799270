//! Clients in the background: each asks again and again, on a new connection each time, and writes down what became of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::wire::{Protocol, Strangers};
use crate::lab::Lab;

/// Between two questions of one client.
const PAUSE: Duration = Duration::from_millis(20);

/// One question.
#[derive(Clone, Debug)]
pub struct Sample {
    pub protocol: &'static str,
    pub udp: bool,
    pub to: SocketAddr,
    pub begun: SystemTime,
    /// The client's port.
    pub port: u16,
    /// The name of the server that answered, or how it failed.
    pub outcome: Result<String, String>,
}

/// Ends when it is dropped.
pub struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// One client for each protocol and address.
    pub fn start(lab: &Lab, protocols: &[Protocol], to: &[IpAddr], strangers: &Strangers) -> Result<Load> {
        let mut load = Load { samples: Arc::default(), stop: Arc::default(), threads: Vec::new() };
        for protocol in protocols {
            for to in to {
                let (protocol, to, strangers) = (protocol.clone(), *to, strangers.clone());
                let (samples, stop) = (load.samples.clone(), load.stop.clone());
                let body = move || ask_until(&stop, &samples, &protocol, (to, &strangers));
                // A thread is in the namespace of the one that starts it.
                load.threads.push(lab.inside("client", || std::thread::spawn(body))?);
            }
        }
        Ok(load)
    }

    /// The questions that were begun since then and have ended.
    pub fn since(&self, begin: SystemTime) -> Vec<Sample> {
        locked(&self.samples).iter().filter(|sample| sample.begun >= begin).cloned().collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn locked(samples: &Mutex<Vec<Sample>>) -> MutexGuard<'_, Vec<Sample>> {
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask_until(
    stop: &AtomicBool,
    samples: &Mutex<Vec<Sample>>,
    protocol: &Protocol,
    (to, strangers): (IpAddr, &Strangers),
) {
    while !stop.load(Ordering::Relaxed) {
        let begun = SystemTime::now();
        let (port, outcome) = protocol.ask_once(strangers.source(protocol, to), to);
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        locked(samples).push(Sample {
            protocol: protocol.name,
            udp: protocol.udp,
            to: SocketAddr::new(to, protocol.port),
            begun,
            port,
            outcome,
        });
        std::thread::sleep(PAUSE);
    }
}

/// How many questions were answered, by protocol and address.
pub fn answered(samples: &[Sample]) -> BTreeMap<(&'static str, SocketAddr), usize> {
    let mut counts = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.outcome.is_ok()) {
        *counts.entry((sample.protocol, sample.to)).or_default() += 1;
    }
    counts
}

/// How often each server answered, by service: protocols on one port take turns with one another.
pub fn shares(samples: &[Sample]) -> BTreeMap<SocketAddr, BTreeMap<&str, usize>> {
    let mut shares: BTreeMap<_, BTreeMap<&str, usize>> = BTreeMap::new();
    for sample in samples {
        if let Ok(server) = &sample.outcome {
            *shares.entry(sample.to).or_default().entry(server).or_default() += 1;
        }
    }
    shares
}

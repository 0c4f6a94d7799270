//! Packet workers: one plain thread a device queue, run to completion. Read, engine, write; nothing else on that path.
//!
//! A worker blocks in its read. To stop it, a flag is raised and a signal sent, again until the thread has ended: a signal
//! that comes just before the read would otherwise be lost.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{debug, error, warn};

use super::Gateway;
use super::device::{Device, is_fatal};
use crate::verdict::DropReason;
use crate::wire::{MAX_FRAME, PacketBuf};

/// The signal that interrupts a worker's read.
const WAKE: libc::c_int = libc::SIGUSR1;

/// What the workers of a device have done.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    /// Packets read.
    pub received: AtomicU64,
    /// Packets written.
    pub sent: AtomicU64,
    /// Packets that the device refused to take.
    pub send_errors: AtomicU64,
}

/// Running workers; [`Workers::stop`] ends them, dropping them does as well.
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
    counters: Arc<DeviceCounters>,
}

/// Starts a worker for each queue.
pub fn start<D: Device + 'static>(gateway: &Arc<Gateway>, queues: Vec<D>) -> io::Result<Workers> {
    ignore_wake_signal();
    let mut workers = Workers {
        threads: Vec::new(),
        stopping: Arc::new(AtomicBool::new(false)),
        counters: Arc::new(DeviceCounters::default()),
    };
    for (number, queue) in queues.into_iter().enumerate() {
        let (gateway, stopping, counters) = (gateway.clone(), workers.stopping.clone(), workers.counters.clone());
        let run = move || {
            if let Err(error) = run(&gateway, queue, &stopping, &counters) {
                error!(queue = number, %error, "the device is gone");
            }
        };
        workers.threads.push(std::thread::Builder::new().name(format!("gatun-q{number}")).spawn(run)?);
    }
    Ok(workers)
}

fn run(gateway: &Gateway, mut queue: impl Device, stopping: &AtomicBool, counters: &DeviceCounters) -> io::Result<()> {
    let mut buf = PacketBuf::with_capacity(MAX_FRAME);
    let mut released = Vec::new();
    let mut warned = false;
    while !stopping.load(Ordering::Relaxed) {
        if !queue.receive(&mut buf)? {
            continue;
        }
        counters.received.fetch_add(1, Ordering::Relaxed);
        let verdict = gateway.handle_packet(&mut buf, &mut released);
        let first = verdict.sends().then_some(&mut buf);
        for packet in first.into_iter().chain(released.iter_mut()) {
            match queue.send(packet) {
                Ok(()) => {
                    counters.sent.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if is_fatal(&error) => return Err(error),
                // Where a server of method direct is has not been found out yet.
                Err(error) if error.kind() == io::ErrorKind::HostUnreachable => {
                    gateway.count_drop(DropReason::ServerUnreachable);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => gateway.count_drop(DropReason::LinkFull),
                Err(error) => {
                    counters.send_errors.fetch_add(1, Ordering::Relaxed);
                    debug!(%error, "the device did not take a packet");
                    if !std::mem::replace(&mut warned, true) {
                        warn!(%error, "the device does not take packets; further ones are only counted");
                    }
                }
            }
        }
        released.clear();
    }
    Ok(())
}

impl Workers {
    /// Ends the workers and closes their queues; returns when they are gone.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        while !self.threads.iter().all(JoinHandle::is_finished) {
            for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
                // SAFETY: the handle has not been joined, so the id is still that of this thread.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), WAKE) };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        for thread in self.threads.drain(..) {
            // A panic was already printed by the thread's own hook.
            let _ = thread.join();
        }
    }

    /// Whether a worker ended without being told to: by a panic, or because its device is gone.
    pub fn have_failed(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed) && self.threads.iter().any(JoinHandle::is_finished)
    }

    pub fn counters(&self) -> &Arc<DeviceCounters> {
        &self.counters
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Gives the signal a handler that does nothing, and that does not restart system calls.
fn ignore_wake_signal() {
    extern "C" fn nothing(_: libc::c_int) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeroes is a valid sigaction (no flags, an empty mask); the handler touches nothing at all, so it may
        // run at any point.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
            libc::sigaction(WAKE, &raw const action, std::ptr::null_mut());
        }
    });
}

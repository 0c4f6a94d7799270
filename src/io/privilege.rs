//! Giving up what is not needed.
//!
//! Capabilities and "no new privileges" belong to a thread and are inherited by the threads it starts: to be called
//! before any other thread is.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

/// Keeps, of `keep`, what this thread has, and gives up every other capability. What a program that is executed could
/// gain goes as well, as far as this thread may say so.
pub fn keep_only(keep: &[Capability]) -> io::Result<()> {
    let keep: CapsHashSet = keep.iter().copied().collect();
    let permitted = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = permitted.intersection(&keep).copied().collect();
    // Needs CAP_SETPCAP, which goes next; who never had it cannot execute anything that has more either, since
    // `forbid_new_privileges` is called as well.
    for capability in caps::all().difference(&keep) {
        let _ = caps::drop(None, CapSet::Bounding, *capability);
    }
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, &kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(io::Error::other)
}

/// Whether this thread may use `capability` now.
pub fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Runs `look` as it would be without any capability but `keep`.
pub fn as_if_only<T>(keep: &[Capability], look: impl FnOnce() -> T) -> io::Result<T> {
    let effective = caps::read(None, CapSet::Effective).map_err(io::Error::other)?;
    let keep: CapsHashSet = keep.iter().copied().collect();
    let fewer: CapsHashSet = effective.intersection(&keep).copied().collect();
    caps::set(None, CapSet::Effective, &fewer).map_err(io::Error::other)?;
    let seen = look();
    caps::set(None, CapSet::Effective, &effective).map_err(io::Error::other)?;
    Ok(seen)
}

/// The nice value of this thread, -20 (first) to 19; threads that it starts from now on have it as well.
///
/// # Errors
/// A lower value than before needs CAP_SYS_NICE or RLIMIT_NICE (setpriority(2)).
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: setpriority(2) takes no pointers; on Linux PRIO_PROCESS with 0 is the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The nice value of this thread.
pub fn nice() -> i32 {
    // SAFETY: getpriority(2) takes no pointers, and cannot fail for the calling thread.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// From now on, executing a program never gives more privileges (prctl(2), PR_SET_NO_NEW_PRIVS).
pub fn forbid_new_privileges() -> io::Result<()> {
    // SAFETY: this prctl takes no pointers; it sets a flag of the calling thread.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

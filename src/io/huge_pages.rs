//! Huge pages for the flow tables.
//!
//! A lookup in a table of a million flows lands on another page each time. With pages of 4 KiB the walk through the page
//! tables (two of them in a virtual machine) costs more than the memory access itself.

use std::ops::Range;

use tracing::debug;

use crate::engine::Engine;

/// Where transparent huge pages are: 2 MiB on x86-64; asking for more alignment than needed elsewhere does no harm.
const HUGE_PAGE: usize = 2 << 20;

/// Asks the kernel to back the engine's tables with huge pages. Does no harm where it has none to give.
pub fn advise(engine: &mut Engine) {
    for range in engine.memory() {
        let Some((start, len)) = whole_pages(range) else { continue };
        // SAFETY: the range is memory of ours, and the advice changes how it is mapped, never what it holds
        // (madvise(2), MADV_HUGEPAGE).
        let done = unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
        if done != 0 {
            debug!(error = %std::io::Error::last_os_error(), "no huge pages for the flow table");
        }
    }
}

/// The part of `range` that is made of whole huge pages: its start and length.
fn whole_pages(range: Range<usize>) -> Option<(usize, usize)> {
    let start = range.start.checked_next_multiple_of(HUGE_PAGE)?;
    let end = range.end / HUGE_PAGE * HUGE_PAGE;
    (start < end).then(|| (start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_are_advised() {
        assert_eq!(whole_pages(1..HUGE_PAGE * 3 + 5), Some((HUGE_PAGE, 2 * HUGE_PAGE)));
        assert_eq!(whole_pages(HUGE_PAGE..2 * HUGE_PAGE), Some((HUGE_PAGE, HUGE_PAGE)));
        assert_eq!(whole_pages(1..2 * HUGE_PAGE - 1), None);
        assert_eq!(whole_pages(0..0), None);
        assert_eq!(whole_pages(usize::MAX - 1..usize::MAX), None);
    }
}

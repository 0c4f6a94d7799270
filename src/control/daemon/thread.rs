//! A task with a thread and a runtime of its own.

use std::future::Future;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::io::privilege;

/// Runs `task` on a thread called `name`, until it ends or this is dropped. What takes much of a CPU must not stand between a
/// control client and its answer.
pub(super) async fn on_its_own_thread(
    name: &'static str,
    task: impl Future<Output = &'static str> + Send + 'static,
) -> &'static str {
    let (ended, end) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let run = move || {
        // The thread that starts this one may have a packet worker's priority.
        if let Err(error) = privilege::set_nice(privilege::nice().max(0)) {
            tracing::debug!(%error, "a thread keeps the workers' priority");
        }
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!("{name}: no runtime: {error}"),
        };
        runtime.block_on(async {
            tokio::select! {
                what = task => {
                    let _ = ended.send(what);
                }
                _ = stopped => {}
            }
        });
    };
    let thread = match std::thread::Builder::new().name(format!("gatun-{name}")).spawn(run) {
        Ok(thread) => thread,
        Err(error) => {
            tracing::error!("{name}: no thread: {error}");
            return name;
        }
    };
    let _running = Running { stop: Some(stop), thread: Some(thread) };
    end.await.unwrap_or(name)
}

/// Stops the thread and waits for it when it is dropped: nothing of it goes on behind the daemon's back.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was already printed by the thread's own hook.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn its_end_is_told() {
        assert_eq!(on_its_own_thread("test", async { "done" }).await, "done");
    }

    #[tokio::test]
    async fn it_does_not_wait_for_this_thread_and_ends_when_it_is_dropped() {
        let beats = Arc::new(AtomicU32::new(0));
        let counted = beats.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(on_its_own_thread("test", async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }));
        tokio::task::yield_now().await;
        // Blocked, as by a long computation.
        std::thread::sleep(Duration::from_millis(200));
        assert!(beats.load(Ordering::Relaxed) > 2, "it stood still while this thread did");
        tasks.shutdown().await;
        let at_the_end = beats.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(beats.load(Ordering::Relaxed), at_the_end, "it goes on");
    }
}

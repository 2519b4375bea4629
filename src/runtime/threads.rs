//! Named threads whose ends are reported, also an end by panic.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

/// Size of a stack. What is not used costs address space only; JSON, SQLite and TLS need more than
/// 64 KiB.
const STACK_BYTES: usize = 512 << 10;

/// A thread that has ended.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone)]
pub struct ThreadExit {
    pub name: String,
    /// Text of the panic, if that ended it.
    pub panic: Option<String>,
}

/// All threads of a process.
pub struct Threads {
    exit_tx: Sender<ThreadExit>,
    exits: Receiver<ThreadExit>,
    members: Vec<(String, JoinHandle<()>)>,
}

impl Default for Threads {
    fn default() -> Self {
        Threads::new()
    }
}

impl Threads {
    /// None yet. The channel of their ends is bounded by their number: one each.
    pub fn new() -> Threads {
        let (exit_tx, exits) = unbounded();
        Threads { exit_tx, exits, members: Vec::new() }
    }

    /// Starts a thread; the system may have none left.
    pub fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        let (exit_tx, exit_name) = (self.exit_tx.clone(), name.to_string());
        let thread = std::thread::Builder::new()
            .name(name.to_string())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let panic =
                    catch_unwind(AssertUnwindSafe(body)).err().map(|cause| text_of(&*cause));
                let _ = exit_tx.send(ThreadExit { name: exit_name, panic });
            });
        self.members.push((name.to_string(), thread?));
        Ok(())
    }

    /// Where each end is reported.
    pub fn exits(&self) -> Receiver<ThreadExit> {
        self.exits.clone()
    }

    /// Joins threads until the limit and returns the names of those that still run. `drain` is
    /// called meanwhile, so that no thread waits on a full lane.
    pub fn join(self, limit: Duration, mut drain: impl FnMut()) -> Vec<String> {
        let until = Instant::now() + limit;
        let mut left: Vec<(String, JoinHandle<()>)> = self.members;
        while !left.is_empty() && Instant::now() < until {
            drain();
            let (done, rest): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|(_, thread)| thread.is_finished());
            for (_, thread) in done {
                let _ = thread.join();
            }
            left = rest;
            if !left.is_empty() {
                let _ = self.exits.recv_timeout(Duration::from_millis(20));
            }
        }
        left.into_iter().map(|(name, _)| name).collect()
    }
}

fn text_of(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".into())
}

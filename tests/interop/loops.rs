//! Busy loops beside a test: what holds on a quiet machine need not hold on a busy one.

use std::process::{Child, Command, Stdio};

/// Loops that keep the machine busy.
pub const LOOPS: usize = 4;

/// Loops that run until they are dropped.
pub struct BusyLoops(Vec<Child>);

impl BusyLoops {
    pub fn start() -> BusyLoops {
        let one = || {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            shell.spawn().expect("a shell")
        };
        BusyLoops((0..LOOPS).map(|_| one()).collect())
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

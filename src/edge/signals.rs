//! Thread `signals`: SIGINT, SIGTERM and SIGHUP as events.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::os;

/// Registers the signals now and calls `each` for every one, on a thread of its own that is never
/// joined. Whoever started us with SIGHUP ignored (`nohup`) wants us to outlive the terminal: it
/// stays ignored.
pub fn watch(mut each: impl FnMut(i32) -> bool + Send + 'static) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    if !os::ignores_hangup() {
        signals.add_signal(SIGHUP)?;
    }
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(move || {
        for signal in signals.forever() {
            if !each(signal) {
                return;
            }
        }
    })?;
    Ok(())
}

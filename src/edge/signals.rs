//! Thread `signals`: SIGINT, SIGTERM and SIGHUP as events.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Registers the signals now and calls `each` for every one, on a thread of its own that is never
/// joined.
pub fn watch(mut each: impl FnMut(i32) -> bool + Send + 'static) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(move || {
        for signal in signals.forever() {
            if !each(signal) {
                return;
            }
        }
    })?;
    Ok(())
}

//! The real clocks. `Instant` stands here and in socket timeouts, nowhere else.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::core::time::{Now, Tick, Wall};

/// Counts from the start of the process.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts counting.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// The time of both clocks.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(|since| since.as_millis() as i64)
            .unwrap_or(0);
        // Starts at one second, so that "long ago" can be expressed.
        Now { tick: Tick(self.0.elapsed().as_micros() as u64 + 1_000_000), wall: Wall(wall) }
    }
}

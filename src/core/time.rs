//! Two clocks that are never mixed: [`Tick`] for durations and deadlines, [`Wall`] for texts and
//! records.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Monotonic time, microseconds since some start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Tick(pub u64);

/// Time of day, milliseconds since the Unix epoch. May jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Wall(pub i64);

/// Both clocks, read once per event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic.
    pub tick: Tick,
    /// Time of day.
    pub wall: Wall,
}

impl Add<Duration> for Tick {
    type Output = Tick;
    fn add(self, by: Duration) -> Tick {
        Tick(self.0.saturating_add(by.as_micros().min(u64::MAX as u128) as u64))
    }
}

impl Sub for Tick {
    type Output = Duration;
    /// The time between; zero if `earlier` is not earlier.
    fn sub(self, earlier: Tick) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// The earlier of two optional deadlines.
pub fn sooner(a: Option<Tick>, b: Option<Tick>) -> Option<Tick> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

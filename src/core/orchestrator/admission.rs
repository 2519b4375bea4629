//! Who fits on this host: how many sessions, how much memory, how many starts at a time. Pure, from
//! the text of `/proc/meminfo`.

use std::time::Duration;

use crate::core::time::Tick;

/// What this host takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Room {
    /// Sessions at most.
    pub sessions_max: usize,
    /// Bytes of memory that stay free.
    pub memory_kept: u64,
    /// Bytes that a session is expected to need that was given no ceiling.
    pub memory_expected: u64,
}

impl Default for Room {
    fn default() -> Self {
        Room { sessions_max: 100, memory_kept: 256 << 20, memory_expected: 128 << 20 }
    }
}

/// Bytes that can be used without swapping, from the text of `/proc/meminfo`.
pub fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000
}

/// Whether one more session fits; the error is a sentence with the figures. `sessions`: those that
/// there are; `promised`: bytes that were promised to sessions that are just starting; `free`: what
/// the machine has, if it tells.
pub fn fits(
    room: &Room,
    sessions: usize,
    need: u64,
    promised: u64,
    free: Option<u64>,
) -> Result<(), String> {
    if sessions >= room.sessions_max {
        return Err(format!(
            "{sessions} sessions are there already and maxSessions is {}; stop one, or raise it in orchestrator.json",
            room.sessions_max
        ));
    }
    let Some(free) = free else { return Ok(()) };
    let wanted = need.saturating_add(promised).saturating_add(room.memory_kept);
    if wanted > free {
        return Err(format!(
            "it does not fit: it needs {} MB, {} MB are promised to sessions that start, {} MB stay free, and {} MB are available; stop a session, or ask for less with memoryMax",
            megabytes(need),
            megabytes(promised),
            megabytes(room.memory_kept),
            megabytes(free)
        ));
    }
    Ok(())
}

/// So many starts in a time: a bucket that fills again.
#[derive(Debug)]
pub struct StartRate {
    burst: u32,
    /// Time for which one start counts.
    each: Duration,
    /// The bucket is full again then.
    full_at: Tick,
}

impl StartRate {
    /// `burst` starts at once, and so many in `time`.
    pub fn new(burst: u32, time: Duration) -> StartRate {
        let burst = burst.max(1);
        StartRate { burst, each: time / burst, full_at: Tick(0) }
    }

    /// Takes a start, or tells how long to wait for one.
    pub fn take(&mut self, now: Tick) -> Result<(), Duration> {
        let used = self.full_at.max(now) - now;
        let most = self.each * self.burst;
        if used + self.each > most {
            return Err(used + self.each - most);
        }
        self.full_at = self.full_at.max(now) + self.each;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        let text = "MemTotal:       24675140 kB\nMemFree:        20971520 kB\nMemAvailable:   22675140 kB\n";
        assert_eq!(available(text), Some(22_675_140 * 1024));
        for text in ["", "MemAvailable:", "MemAvailable: many kB"] {
            assert_eq!(available(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_spawn_fits_or_is_refused_with_the_figures() {
        let room = Room { sessions_max: 3, memory_kept: 100 * MB, memory_expected: 50 * MB };
        for (sessions, need, promised, free, want) in [
            (0, 50, 0, Some(150), None),
            (0, 51, 0, Some(150), Some("needs 51 MB")),
            (0, 50, 1, Some(150), Some("1 MB are promised")),
            (2, 50, 0, None, None),
            (3, 1, 0, Some(1000), Some("maxSessions is 3")),
            (4, 1, 0, None, Some("4 sessions")),
        ] {
            let got = fits(&room, sessions, need * MB, promised * MB, free.map(|mb: u64| mb * MB));
            match want {
                None => assert_eq!(got, Ok(())),
                Some(want) => {
                    assert!(got.as_ref().is_err_and(|text| text.contains(want)), "{got:?}")
                }
            }
        }
        assert!(fits(&room, 0, u64::MAX, 1, Some(5)).is_err());
    }

    #[test]
    fn starts_are_bounded_by_a_rate() {
        let mut rate = StartRate::new(3, Duration::from_secs(30));
        let at = |seconds: u64| Tick(seconds * 1_000_000);
        for _ in 0..3 {
            assert_eq!(rate.take(at(100)), Ok(()));
        }
        assert_eq!(rate.take(at(100)), Err(Duration::from_secs(10)));
        assert_eq!(rate.take(at(109)), Err(Duration::from_secs(1)));
        assert_eq!(rate.take(at(110)), Ok(()));
        assert_eq!(rate.take(at(110)), Err(Duration::from_secs(10)));
        // After a rest there is a whole burst again, not more.
        for _ in 0..3 {
            assert_eq!(rate.take(at(1000)), Ok(()));
        }
        assert!(rate.take(at(1000)).is_err());
    }
}

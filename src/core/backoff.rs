//! How long to wait before trying again. Policies only; the machines own the timers.

use std::time::Duration;

use super::rng::Rng;

/// Reconnects of the bus: 250 ms doubling, full jitter, at most 15 s.
pub fn reconnect(attempt: u32, rng: &mut Rng) -> Duration {
    let top = Duration::from_millis(250)
        .saturating_mul(1 << attempt.min(10))
        .min(Duration::from_secs(15));
    Duration::from_micros(rng.below(top.as_micros() as u64 + 1))
}

/// Outbox attempts: 1 s doubling, at most 60 s, half of it jitter.
pub fn outbox(attempt: u32, rng: &mut Rng) -> Duration {
    let top = Duration::from_secs(1)
        .saturating_mul(1 << attempt.saturating_sub(1).min(10))
        .min(Duration::from_secs(60));
    top / 2 + Duration::from_micros(rng.below(top.as_micros() as u64 / 2 + 1))
}

/// Provider restarts: from `first` doubling to `most`, up to a fifth of jitter.
pub fn restart(attempt: u32, first: Duration, most: Duration, rng: &mut Rng) -> Duration {
    let top = first.saturating_mul(1 << attempt.min(16)).min(most);
    top - Duration::from_micros(rng.below(top.as_micros() as u64 / 5 + 1))
}

/// Delay until a token is renewed: a fifth of its life (1 min to 1 h, but never more than half of
/// it) before its end, less some jitter; `None` when it has expired.
pub fn token_renewal(ttl_ms: i64, unit: f64) -> Option<Duration> {
    if ttl_ms <= 0 {
        return None;
    }
    let lead = (ttl_ms / 5).clamp(60_000, 3_600_000).min(ttl_ms / 2);
    let jitter = (unit * (lead / 2).clamp(0, 30_000) as f64) as i64;
    Some(Duration::from_millis((ttl_ms - lead - jitter).max(1000) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_in_their_bounds() {
        let mut rng = Rng::new(1);
        for attempt in 0..40 {
            assert!(reconnect(attempt, &mut rng) <= Duration::from_secs(15));
            let wait = outbox(attempt, &mut rng);
            assert!(
                wait >= Duration::from_millis(500) && wait <= Duration::from_secs(60),
                "{wait:?}"
            );
            let wait =
                restart(attempt, Duration::from_millis(500), Duration::from_secs(60), &mut rng);
            assert!(
                wait >= Duration::from_millis(400) && wait <= Duration::from_secs(60),
                "{wait:?}"
            );
        }
    }

    #[test]
    fn renewal_leaves_a_fifth_of_the_life() {
        for (ttl_ms, unit, want_ms) in [
            (86_400_000, 0.0, Some(82_800_000)),
            (600_000, 0.0, Some(480_000)),
            (600_000, 0.5, Some(465_000)),
            (30_000, 0.0, Some(15_000)),
            (30_000, 1.0, Some(7500)),
            (90_000, 0.0, Some(45_000)),
            (1500, 0.0, Some(1000)),
            (0, 0.0, None),
            (-5, 0.0, None),
        ] {
            assert_eq!(
                token_renewal(ttl_ms, unit).map(|d| d.as_millis() as i64),
                want_ms,
                "ttl {ttl_ms}"
            );
        }
    }
}

//! Rate limits: a bucket of requests for each token with its renewals, one for all who have none.

use std::collections::HashMap;

use super::rights::{is_runtime, line_of};
use crate::core::limits::*;
use crate::core::time::Tick;
use crate::wire::api::TokenRecord;

/// Requests that may still come, in thousandths.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u64,
    at: Tick,
}

impl Bucket {
    fn take(&mut self, now: Tick, (per_second, burst): (u64, u64)) -> bool {
        let since = (now - self.at).as_millis().min(u128::from(u32::MAX)) as u64;
        if since > 0 {
            self.left = (self.left + since * per_second).min(burst * 1000);
            self.at = now;
        }
        let may = self.left >= 1000;
        self.left -= 1000 * u64::from(may);
        may
    }
}

/// All buckets.
#[derive(Debug, Default)]
pub(super) struct Rates {
    known: HashMap<String, Bucket>,
    strangers: Option<Bucket>,
}

impl Rates {
    /// Whether a request with this token may come now; `None`: without a valid one.
    pub fn take(&mut self, now: Tick, token: Option<&TokenRecord>) -> bool {
        let Some(token) = token else {
            return self
                .strangers
                .get_or_insert(Bucket { left: STRANGER_RATE.1 * 1000, at: now })
                .take(now, STRANGER_RATE);
        };
        let rate = if is_runtime(&token.profile_id) { AGENT_RATE } else { OPERATOR_RATE };
        if let Some(bucket) = self.known.get_mut(line_of(token)) {
            return bucket.take(now, rate);
        }
        self.known
            .entry(line_of(token).to_string())
            .or_insert(Bucket { left: rate.1 * 1000, at: now })
            .take(now, rate)
    }

    /// Charges what a request costs beside itself; whoever owes is refused until that is paid.
    pub fn charge(&mut self, token: &TokenRecord, requests: u64) {
        if let Some(bucket) = self.known.get_mut(line_of(token)) {
            bucket.left = bucket.left.saturating_sub(requests * 1000);
        }
    }

    /// A full bucket says nothing that a missing one does not.
    pub fn forget_full(&mut self, now: Tick) {
        self.known.retain(|_, bucket| (now - bucket.at).as_secs() < 60);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_is_allowed_then_the_rate_counts() {
        let start = Tick::default();
        let agent = TokenRecord {
            jti: "a".into(),
            profile_id: "provider-agent".into(),
            ..Default::default()
        };
        let other = TokenRecord { jti: "b".into(), ..agent.clone() };
        let mut rates = Rates::default();
        let taken = |rates: &mut Rates, now: Tick, token: Option<&TokenRecord>| {
            (0..20_000).filter(|_| rates.take(now, token)).count() as u64
        };
        assert_eq!(taken(&mut rates, start, Some(&agent)), AGENT_RATE.1);
        assert_eq!(
            taken(&mut rates, start + Duration::from_millis(500), Some(&agent)),
            AGENT_RATE.0 / 2
        );
        assert_eq!(
            taken(&mut rates, start, Some(&other)),
            AGENT_RATE.1,
            "others are not slowed down"
        );
        let renewed =
            TokenRecord { jti: "c".into(), renewed_from: Some("b".into()), ..other.clone() };
        assert_eq!(taken(&mut rates, start, Some(&renewed)), 0, "a renewal is the same line");
        assert_eq!(taken(&mut rates, start, None), STRANGER_RATE.1);
        rates.forget_full(start + Duration::from_secs(61));
        assert_eq!(taken(&mut rates, start + Duration::from_secs(61), Some(&agent)), AGENT_RATE.1);
    }
}

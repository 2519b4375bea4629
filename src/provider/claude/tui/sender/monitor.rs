//! A terminal that is not ours: a monitor of the session names what waits, and the session fetches
//! it with its own tool.

use std::time::Duration;

use super::item::Item;
use super::{Channel, Sender};
use crate::core::session::SessionEvent;
use crate::provider::claude::tui::out::Out;

/// What a monitor has named and nobody has fetched is named again after this; each naming wakes the
/// model.
pub(super) const NAMED_AGAIN: Duration = Duration::from_secs(120);

/// A text that a monitor has named.
#[derive(Debug)]
pub(super) struct MonitorProof {
    /// Numbers of its messages that the session has not fetched.
    unfetched: Vec<u64>,
}

impl MonitorProof {
    pub fn new(item: &Item) -> MonitorProof {
        MonitorProof { unfetched: item.numbers() }
    }
}

/// The monitors are told that it waits.
pub(super) fn announce(item: &Item, out: &mut Out) {
    let batch = item.delivery.as_ref().map(|delivery| delivery.batch).unwrap_or_default();
    out.emit(SessionEvent::Announce { batch });
}

impl Sender {
    /// The session has read these messages with its own tool. The place of a text that was read to
    /// its end.
    pub fn on_fetched(&mut self, ids: &[u64]) -> Option<usize> {
        for sent in &mut self.unproven {
            if let Channel::Monitor(proof) = &mut sent.channel {
                proof.unfetched.retain(|id| !ids.contains(id));
            }
        }
        let is_read = |channel: &Channel| matches!(channel, Channel::Monitor(proof) if proof.unfetched.is_empty());
        self.unproven.iter().position(|sent| is_read(&sent.channel))
    }
}

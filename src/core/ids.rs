//! Names of things, so that a number of one kind is never taken for one of another. They count from
//! 1; 0, the default, is none.

use std::fmt;
use std::str::FromStr;

use crate::wire::ids::numbers;
pub use crate::wire::ids::{MessageId, TaskId};

numbers! {
    /// A call of a runner to its relay, while the runner lasts.
    CallNumber
    /// A verb to the provider session, while the runner lasts.
    VerbNumber
    /// Messages that travel to the provider together; durable, counts up in one store.
    BatchNumber
    /// A read that the hub asks of its store, while the hub lasts.
    ReadNumber
    /// A start of the provider, while the runner lasts.
    ProcessNumber
    /// A request at the hub or at the control port that waits for its answer, within one life of
    /// that server.
    Ticket
    /// Somebody connected over WebSocket to the hub or the control port; the number is that of the
    /// ticket that asked for it.
    PeerId
}

impl Ticket {
    /// Nobody waits for the answer.
    pub const NOBODY: Ticket = Ticket(0);

    /// The peer that a request becomes when its upgrade to WebSocket is accepted.
    pub fn peer(self) -> PeerId {
        PeerId(self.0)
    }
}

impl PeerId {
    /// The ticket that the peer came with.
    pub fn ticket(self) -> Ticket {
        Ticket(self.0)
    }
}

/// A process of this boot of the machine: pids are used again, a pid with its start time is not.
/// The default is one that is not alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ProcessRef {
    /// Process id; 0: none.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

/// A message in a runner's own records. Ids of messages mean something only together with the
/// generation of the relay's data that gave them: a relay whose data were put back, or another
/// relay, may give the same id to something else.
///
/// The order is that of delivery to a provider, which holds for each sender: what an earlier relay
/// gave comes first, then ascending by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MessageRef {
    /// Counts up with each relay, or state of a relay's data, that the runner met; generations
    /// within one never reuse ids.
    pub family: u32,
    /// The relay's id.
    pub id: MessageId,
    /// Number of the generation among those that this runner knows.
    pub generation: u32,
}

/// As people know it.
impl fmt::Display for MessageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.id)
    }
}

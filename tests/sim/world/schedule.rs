//! What will happen, in the order of simulated time.

use std::time::Duration;

use agent_relay::core::Cause;
use agent_relay::core::agent::event::{Event, Lane};
use agent_relay::core::http::Request;
use agent_relay::core::hub::event::{Event as HubEvent, Lane as HubLane, ReadAnswer};
use agent_relay::core::ids::{CallNumber, ReadNumber};
use agent_relay::core::session::Input;
use agent_relay::core::time::Tick;
use serde_json::Value;

use super::World;

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Action {
    Agent {
        runner: usize,
        life: u64,
        lane: Lane,
        event: Event,
    },
    Hub {
        life: u64,
        lane: HubLane,
        event: HubEvent,
    },
    /// A commit of a runner reaches the disk.
    Commit {
        runner: usize,
        life: u64,
    },
    HubCommit {
        life: u64,
    },
    HubRead {
        life: u64,
        number: ReadNumber,
        answer: ReadAnswer,
    },
    /// Bytes or verbs for a session machine, bytes for the demo agent.
    Session {
        runner: usize,
        process: u64,
        input: Input,
    },
    Demo {
        runner: usize,
        process: u64,
        bytes: Vec<u8>,
    },
    ProviderDies {
        runner: usize,
        process: u64,
        code: i32,
    },
    StartRunner {
        runner: usize,
    },
    StartHub,
    /// An HTTP request arrives at the hub, or its answer at the client.
    Request {
        from: From,
        request: Request,
        answer: bool,
    },
    Answer {
        from: From,
        result: Result<(u16, Value), Cause>,
    },
    SendNext,
    Trouble,
    EndPartition,
    HealDisk {
        runner: Option<usize>,
    },
    /// The person looks what there is to do.
    Person,
    /// The greedy agent asks for much at once.
    Greedy,
    /// The hub has time for the next event of its gate.
    GateFree,
}

/// Who made an HTTP request.
#[derive(Debug, Clone)]
pub enum From {
    Call { runner: usize, life: u64, call: CallNumber },
    Pump { runner: usize, life: u64, rows: usize, single: bool },
    Sender { index: usize },
}

pub(super) struct Scheduled {
    pub(super) at: Tick,
    pub(super) order: u64,
    pub(super) action: Action,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl World {
    pub(super) fn after_ms(&mut self, ms: u64, action: Action) {
        self.at(self.now.tick + Duration::from_millis(ms), action);
    }

    pub(super) fn at(&mut self, at: Tick, action: Action) {
        self.order += 1;
        self.heap.push(Scheduled { at, order: self.order, action });
    }

    /// After a random delay, but never overtaking what went before on the same way.
    pub(super) fn send(&mut self, way: String, ms_max: u64, action: Action) {
        let delay = Duration::from_micros(50 + self.rng.below(ms_max * 1000 + 1));
        let wanted = self.now.tick + delay;
        let last = self.fifo.get(&way).copied().unwrap_or_default();
        let at = wanted.max(Tick(last.0 + 1));
        self.fifo.insert(way, at);
        self.at(at, action);
    }
}

//! Decisions without I/O.
//!
//! Nothing in this room touches the clock, the network, a file, a thread, a channel or SQL. A
//! machine is told what happened and when, changes itself, and returns what is to be done; the same
//! machines run in production threads, in table tests and in the deterministic simulation of
//! `tests/sim`.

pub mod agent;
pub mod backoff;
pub mod chars;
pub mod commit;
pub mod cost;
pub mod http;
pub mod hub;
pub mod ids;
pub mod limits;
pub mod matching;
pub mod mcp;
pub mod orchestrator;
pub mod rng;
pub mod screen;
pub mod session;
pub mod store;
pub mod time;
pub(crate) mod timers;
pub mod turns;

use time::{Now, Tick};

/// A state machine that never touches the world.
///
/// **In**: one event at a time by [`Machine::handle`], and the passing of time by
/// [`Machine::wake`]. **Out**: what is to be done, as a list of effects.
///
/// The caller guarantees:
/// - Effects are carried out in their order, and all of them before the next event is handled. An
///   effect for an edge is carried out when it stands in the edge's queue; what the edge makes of
///   it comes back as an event of its own, some time or never.
/// - Events of one lane come in the order in which they were put into it. Between lanes there is no
///   order, so a machine must expect an answer that belongs to something older.
/// - An event is handed over only if [`Machine::may_take`] allows its lane just before. Queues of
///   orders are as large as the credit: with it they cannot overflow, without it that is a panic.
/// - `now.tick` never goes back. `now.wall` may jump and is used for texts and records only.
/// - [`Machine::wake`] is called soon after [`Machine::next_deadline`], which is asked anew after
///   every event. To wake a machine too early, too late or for nothing is harmless.
/// - After the effect that says that the machine has finished, nothing more is handed over.
///
/// The machine guarantees: the same seed, events and times give the same effects, and no event
/// makes it fail or block.
pub trait Machine {
    /// Something that happened.
    type Event;
    /// Something to be done.
    type Effect;
    /// Where its events come from.
    type Lane: Lane;
    /// Reacts to one event. Total: never fails, never blocks.
    fn handle(&mut self, now: Now, event: Self::Event) -> Vec<Self::Effect>;
    /// Lets every timer that is due fire.
    fn wake(&mut self, now: Now) -> Vec<Self::Effect>;
    /// When to call [`Machine::wake`] next, if ever.
    fn next_deadline(&self) -> Option<Tick>;
    /// Whether the machine has credit for an event of that lane: room for every effect that may
    /// follow. A lane that is not served fills up, and its edge waits: that is the backpressure.
    fn may_take(&self, lane: Self::Lane) -> bool;
}

/// The lanes of a machine: the queues in which its events wait, one for each source. They are
/// served round robin.
pub trait Lane: Copy + 'static {
    /// Each of them; the state thread knows a lane by its place in here.
    const ALL: &'static [Self];
}

/// The kinds of outside failure that the machines branch on; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Nobody answers there.
    Offline(String),
    /// No answer in time.
    TimedOut(String),
    /// The other side answered with this HTTP status.
    Refused(u16, String),
    /// What came back makes no sense.
    Protocol(String),
    /// Anything the operating system said no to.
    Failed(String),
    /// A store has trouble.
    Store(store::StoreError),
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cause::Offline(text)
            | Cause::TimedOut(text)
            | Cause::Protocol(text)
            | Cause::Failed(text) => f.write_str(text),
            Cause::Refused(status, text) => write!(f, "{text} (HTTP {status})"),
            Cause::Store(error) => f.write_str(&error.text),
        }
    }
}

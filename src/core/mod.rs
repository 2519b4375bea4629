//! Decisions without I/O.
//!
//! Nothing in this room touches the clock, the network, a file, a thread, a channel or SQL. A machine is told what
//! happened and when, changes itself, and returns what is to be done; the same machines run in production threads,
//! in table tests and in the deterministic simulation of `tests/sim`.

pub mod agent;
pub mod backoff;
pub mod chars;
pub mod commit;
pub mod http;
pub mod hub;
pub mod ids;
pub mod limits;
pub mod matching;
pub mod rng;
pub mod screen;
pub mod session;
pub mod store;
pub mod time;
pub(crate) mod timers;
pub mod tracker;

use time::{Now, Tick};

/// A state machine that never touches the world.
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
    /// Whether the machine has credit for an event of that lane: room for every effect that may follow. A lane that
    /// is not served fills up, and its edge waits: that is the backpressure.
    fn may_take(&self, lane: Self::Lane) -> bool;
}

/// The lanes of a machine: the queues in which its events wait, one for each source. They are served
/// round robin.
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
            Cause::Offline(text) | Cause::TimedOut(text) | Cause::Protocol(text) | Cause::Failed(text) => f.write_str(text),
            Cause::Refused(status, text) => write!(f, "{text} (HTTP {status})"),
            Cause::Store(error) => f.write_str(&error.text),
        }
    }
}

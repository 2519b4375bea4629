//! What can happen to an orchestrator.

use serde_json::{Map, Value};

use super::look::Looked;
use super::options::SpawnOptions;
use super::record::{Record, Supervisor};
use super::systemd::Exit;
use crate::core::Cause;
use crate::core::agent::event::BusEvent;
use crate::core::ids::{ProcessRef, Ticket};
use crate::secret::Secret;

/// Lanes of the state thread, one for each edge.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Records,
    Gate,
    Bus,
    Calls,
    Work,
    Watch,
    Look,
    /// Signals and the end of threads.
    Main,
}

impl crate::core::Lane for Lane {
    const ALL: &'static [Lane] = &[
        Lane::Records,
        Lane::Gate,
        Lane::Bus,
        Lane::Calls,
        Lane::Work,
        Lane::Watch,
        Lane::Look,
        Lane::Main,
    ];
}

/// One event of the orchestrator.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Records(RecordsEvent),
    /// Somebody asks over HTTP; the ticket is answered by an effect.
    Asked {
        ticket: Ticket,
        operation: String,
        params: Map<String, Value>,
    },
    Bus(BusEvent),
    Called(Called),
    /// What was ordered for a session is over.
    Worked {
        session: String,
        done: Done,
    },
    /// The main process of a session is gone.
    Gone {
        session: String,
        /// Which start it belonged to.
        launch: String,
        /// How it ended, where that can be told: it was a child of ours.
        exit: Option<Exit>,
    },
    /// What came of a look.
    Looked {
        number: u64,
        looked: Looked,
    },
    StopRequested,
    /// A thread ended although nobody told it to.
    ThreadEnded {
        name: String,
        /// What it said when it panicked.
        panic: Option<String>,
    },
}

impl From<BusEvent> for Event {
    fn from(event: BusEvent) -> Event {
        Event::Bus(event)
    }
}

/// Answers of whoever keeps the records.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum RecordsEvent {
    /// Always the first event.
    Restored {
        records: Vec<Record>,
        /// What became of a file that could not be read, for people.
        note: Option<String>,
    },
    /// All commits up to this number are durable.
    Written { upto: u64 },
    /// The file cannot be written for now.
    Stalled(Cause),
}

/// A call to the relay came back.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Called {
    /// The orchestrator's own token.
    OwnToken(Result<OwnToken, Cause>),
    /// A token for the agent of a session.
    AgentToken { session: String, result: Result<Secret, Cause> },
    /// The runner of a session has another token, or why not.
    TokenHanded { session: String, result: Result<(), Cause> },
}

/// The orchestrator's own token.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct OwnToken {
    pub token: Secret,
    /// The name in it, under which the orchestrator speaks.
    pub name: String,
}

/// What came of an order for a session.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    Prepared(Result<Prepared, String>),
    Started(Result<Started, StartFailure>),
    Inspected(Box<Inspected>),
    /// It was told to end. The error says what of it is still there.
    Stopped(Result<(), String>),
    /// Its main process is gone, and what it had left behind too, or what of it is still there.
    Collected {
        exit: Exit,
        left: Result<(), String>,
    },
    Cleaned,
}

/// The ground of a session.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The folder with links resolved.
    pub cwd: String,
    /// The base folder with links resolved.
    pub base: String,
    /// The text of `/proc/meminfo`; empty where there is none.
    pub meminfo: String,
}

/// A session that runs.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    pub process: ProcessRef,
    pub supervisor: Supervisor,
    /// What people should know of how it was started.
    pub note: Option<String>,
}

/// A session that did not start; nothing of it is left.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct StartFailure {
    pub text: String,
    pub exit: Exit,
}

/// What was found of a session that an earlier orchestrator had.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Inspected {
    /// Its main process, if it lives.
    pub process: Option<ProcessRef>,
    /// How it ended, if it does not.
    pub exit: Exit,
    /// What it was asked for; none if that is not there any more.
    pub options: Option<SpawnOptions>,
    /// What is still there of a session whose main process is gone.
    pub left: Result<(), String>,
}

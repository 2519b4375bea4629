//! What an orchestrator wants done, as orders to its edges.

use serde_json::Value;

use super::look::Look;
use super::record::{Record, RecordOp};
use super::systemd::UnitOrder;
use crate::core::agent::effect::BusCommand;
use crate::core::commit::Commit;
use crate::core::http::GateCommand;
use crate::core::ids::ProcessRef;
use crate::secret::Secret;
use crate::wire::control::LogLevel;

/// One order of the orchestrator.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Records(RecordsCommand),
    Bus(BusCommand),
    Call(Call),
    /// Something to do for one session; there is one at a time for each.
    Work {
        session: String,
        work: Work,
    },
    /// Watch the main process of a session.
    Watch {
        session: String,
        launch: String,
        process: ProcessRef,
    },
    /// Look at something or touch a terminal; answered under the same number.
    Look {
        number: u64,
        look: Look,
    },
    Gate(GateCommand),
    Log {
        level: LogLevel,
        text: String,
    },
    /// A line for the service manager.
    Status(String),
    /// The orchestrator ends; no effect follows. Its sessions stay.
    Finish {
        code: u8,
        message: String,
    },
}

/// A command to whoever keeps the records.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordsCommand {
    /// Make these durable together; answered by `Written` with at least this number.
    Commit(Commit<RecordOp>),
    /// Try the stalled commit again.
    Retry,
}

/// A call to the relay; one attempt.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Get the orchestrator's own token. `refused`: the one that is known does not work.
    OwnToken { refused: bool },
    /// Make a token for the agent of a session.
    AgentToken { session: String, body: Value, own: Secret },
    /// Give the runner of a session another token for its agent.
    HandToken { session: String, runner_info_file: String, token: Secret },
}

/// What is done for a session.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Look at the folder, and write down what was asked for.
    Prepare { cwd: String, options_file: String, options: Value },
    /// End what an earlier start has left, write the files, start it, and see that it runs.
    Start(Box<StartOrder>),
    /// Look whether it lives; if it does not, end what it has left.
    Inspect { record: Box<Record>, options_file: String },
    /// End it: politely for so long, then by force.
    Stop { record: Box<Record>, grace_ms: u64 },
    /// Its main process is gone: tell how, and end what it has left.
    Collect { record: Box<Record>, exit: super::systemd::Exit },
    /// Remove its files; the log stays.
    Clean { files: Vec<String> },
}

/// All that a start needs.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct StartOrder {
    pub record: Record,
    /// What earlier starts carry in their environment; empty: there was none.
    pub former_launch: String,
    pub script_file: String,
    pub script: String,
    pub environment_file: String,
    /// The content of the environment file: secrets.
    pub environment: Secret,
    /// How it is asked of systemd, where that is used.
    pub unit: UnitOrder,
}

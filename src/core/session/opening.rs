//! How a conversation is opened, and why it is not.

use std::fmt;

use super::DeliveryOutcome;

/// What kind of cause a failed start has: it decides what the next one is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFault {
    /// It may pass by itself: a busy machine, the network.
    Passing,
    /// The provider does not take the conversation that was asked for.
    Conversation,
    /// No sockets can be made in the folder that was chosen for them.
    SocketFolder {
        /// There is no other one.
        is_last: bool,
    },
    /// The provider is a server that does not know the way of listening that it was told.
    Listening,
    /// A person has to change something first.
    Person,
}

/// How a conversation was opened.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// Session id to resume later.
    pub session: String,
    /// Whether it is new, resumed or lost.
    pub how: OpenMode,
    /// Name and version of the provider program, for people.
    pub agent: String,
    pub model: Option<String>,
    /// Whether the record can prove a delivery after a crash; without it deliveries are at least
    /// once.
    pub has_evidence: bool,
}

/// New, resumed or lost.
#[derive(Debug, Clone, PartialEq)]
pub enum OpenMode {
    /// A fresh conversation; nothing was to be resumed.
    New,
    /// The old one goes on; what its record says of each message asked for, in order.
    Loaded(Vec<DeliveryOutcome>),
    /// The old one goes on, without a look at the record.
    Resumed,
    /// The old one is gone: a fresh one was started.
    Lost(String),
}

impl fmt::Display for OpenMode {
    /// For the log, without what the record says.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            OpenMode::New => f.write_str("New"),
            OpenMode::Loaded(outcomes) => write!(f, "Loaded({})", outcomes.len()),
            OpenMode::Resumed => f.write_str("Resumed"),
            OpenMode::Lost(why) => write!(f, "Lost({why})"),
        }
    }
}

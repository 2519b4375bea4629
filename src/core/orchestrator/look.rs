//! What a machine wants to have looked at or touched, and what comes of it. One order gives one
//! answer; orders about one session are carried out one after the other.

use super::diagnosis::Facts;
use super::guests::AttachSpec;
use super::host::HostReport;
use super::input::Token;
use super::log_text::LogOptions;
use super::picture::Picture;
use super::record::Record;

/// One order.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Look {
    /// Read the end of a log.
    Log {
        session: String,
        path: String,
        options: LogOptions,
    },
    Capture(Terminal),
    Type {
        terminal: Terminal,
        tokens: Vec<Token>,
    },
    Resize {
        terminal: Terminal,
        columns: u16,
        rows: u16,
    },
    /// Open a terminal of this name for a guest of a session.
    OpenGuest {
        record: Box<Record>,
        name: String,
    },
    EndGuest {
        name: String,
    },
    /// Find out why a session is as it is.
    Diagnose {
        record: Box<Record>,
        ends: Vec<String>,
    },
    /// Look at the host itself. How many sessions there are, the machine knows.
    Host,
}

/// Whose terminal.
#[derive(Debug, Clone, PartialEq)]
pub enum Terminal {
    /// A session's: its runner tells where it is.
    Session(Box<Record>),
    /// A guest's, by its name and the socket of its server.
    Guest(String, String),
}

impl Look {
    /// What orders are kept in their order by; none: it belongs to no session.
    pub fn session(&self) -> Option<&str> {
        match self {
            Look::Log { session, .. } => Some(session),
            Look::Capture(terminal)
            | Look::Type { terminal, .. }
            | Look::Resize { terminal, .. } => match terminal {
                Terminal::Session(record) => Some(&record.name),
                Terminal::Guest(name, _) => Some(name),
            },
            Look::Diagnose { record, .. } => Some(&record.name),
            Look::OpenGuest { .. } | Look::EndGuest { .. } | Look::Host => None,
        }
    }
}

/// What came of an order.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Looked {
    /// Its last lines, and its size in bytes.
    Log(Result<(Vec<String>, u64), String>),
    /// None: there is no such terminal.
    Captured(Result<Option<Picture>, String>),
    /// How much has arrived. None: there is no such terminal.
    Typed(Result<Option<usize>, String>),
    /// False: there is no such terminal.
    Resized(Result<bool, String>),
    GuestOpened {
        /// With the socket of its server.
        result: Result<(AttachSpec, String), String>,
        /// Terminals of guests that have ended by themselves.
        over: Vec<String>,
    },
    /// Whether it was open.
    GuestEnded(bool),
    Diagnosed(Box<Facts>),
    Host(Box<HostReport>),
}

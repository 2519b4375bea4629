//! What goes into a session machine and what comes out of it.

use super::{SessionEvent, Verb};
use crate::core::ids::VerbNumber;
use crate::core::time::{Now, Tick};

/// What goes into a session machine.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Bytes from the provider.
    Bytes(Vec<u8>),
    /// The end of what it wrote to its standard error, told once, right before [`Input::Closed`].
    LastWords(String),
    /// Bytes from its standard error, told as they come until there is a connection, where it is a
    /// server that says there at which port it listens.
    Errors(Vec<u8>),
    /// The provider closed its output or died.
    Closed,
    /// A verb with its number.
    Verb(VerbNumber, Verb),
    /// A deadline has passed.
    Wake,
    /// Who the provider is, told before anything else where a terminal hosts it.
    ProcessStarted { pid: u32 },
    /// The followed file has grown.
    FileAppended(Vec<u8>),
    /// All that the followed file held when it was looked at has been given.
    CaughtUp,
    /// The followed file was replaced or cut: what comes now is its beginning.
    FileReset,
    /// A watched file has changed; `None`: it is gone.
    FileChanged {
        path: String,
        /// Its content, at most [`WATCHED_BYTES_MAX`].
        text: Option<String>,
    },
    /// The terminal has drawn something since the last look.
    ScreenChanged,
    /// Answer to [`Output::CaptureScreen`].
    ScreenCaptured(Screen),
    /// The terminal cannot do what was asked.
    TerminalFailed(String),
    /// DeliveryOutcome of a line for a socket.
    SocketWritten {
        /// Number from the order.
        number: u64,
        /// Why it could not be written.
        result: Result<(), String>,
    },
    /// A line that came to our own socket.
    SocketLine(String),
    /// The session is connected to the socket that it asked for.
    Connected,
    /// It is not, or not any more; with the reason, for people.
    Disconnected(String),
    /// A whole text from that connection.
    Text(String),
    /// The program that was started beside the session has ended, with its exit code.
    ForegroundEnded(i32),
}

/// Bytes of a watched file.
pub const WATCHED_BYTES_MAX: usize = 64 << 10;

/// What a terminal shows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Screen {
    /// Lines as drawn, with their colours (SGR sequences).
    pub text: String,
    /// Title that the program has set.
    pub title: String,
    /// A person looks at it.
    pub attended: bool,
    /// The program has ended.
    pub dead: bool,
}

/// What is seen of a provider's process from outside: counters, of which only changes say
/// something. All that it has started counts with it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Signs {
    /// Bytes, or pictures of its terminal, that it has written.
    pub output: u64,
    /// Bytes by which its record and its other files have grown.
    pub record: u64,
    /// Time that its processes have computed, ms.
    pub computed_ms: u64,
    /// Bytes that they have read and written.
    pub moved: u64,
    /// Bytes that came and went over its network connections.
    pub network: u64,
    /// Its processes by id, with their names.
    pub processes: Vec<(u32, String)>,
}

/// What comes out of a session machine.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Bytes for the provider.
    Write(Vec<u8>),
    /// No more input for the provider.
    CloseInput,
    /// For the agent.
    Event(SessionEvent),
    /// Show what the terminal shows; answered by [`Input::ScreenCaptured`].
    CaptureScreen,
    /// Put text into the terminal as a paste; it is not submitted by that.
    Paste(String),
    /// Press a key, in the terminal's spelling.
    Press(&'static str),
    /// Follow this file from now on, instead of another.
    Follow {
        /// Which one; it may not be there yet.
        path: String,
        /// From its beginning, else from its present end.
        whole: bool,
    },
    /// Follow nothing any more.
    Unfollow,
    /// Tell the small file that the provider's process keeps of itself now and at every change. The
    /// process may be another one than was started: a script in between is its parent then.
    WatchProcess {
        /// Where the file is; it may not be there yet.
        folder: String,
        /// What its name has behind the pid.
        suffix: &'static str,
    },
    /// Write a line to a socket; answered by [`Input::SocketWritten`].
    WriteSocket {
        number: u64,
        path: String,
        /// The line, with its line break.
        line: String,
    },
    /// Connect to a WebSocket of the provider, once, instead of an earlier connection; answered by
    /// [`Input::Connected`] or [`Input::Disconnected`].
    Connect {
        /// Where it listens.
        to: ServerAddress,
    },
    /// A text for that connection.
    SendText(String),
    /// Start a program in the terminal that we were started in, instead of an earlier one; its end
    /// is told by [`Input::ForegroundEnded`].
    StartForeground {
        /// Its arguments; it is the provider's own program.
        arguments: Vec<String>,
    },
    /// The provider is of no use any more: end it at once.
    Kill {
        /// For people.
        reason: String,
    },
}

/// Where a server of a provider listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddress {
    /// A unix socket, by its path.
    Socket(String),
    /// A port of 127.0.0.1. It wants the token that its start has made.
    Port(u16),
}

/// A provider session as a pure machine.
pub trait Session: Send {
    /// Reacts to one input. Total: hostile bytes are an ordinary branch.
    fn handle(&mut self, now: Now, input: Input) -> Vec<Output>;
    /// When to give it [`Input::Wake`]; `None`: never.
    fn next_deadline(&self) -> Option<Tick>;
}

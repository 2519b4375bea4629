//! What each vendor writes and expects. Pure: no I/O in this room.
//!
//! - [`registry`]: the table that names all providers; nobody else knows a vendor's name.
//! - [`claude`], [`codex`], [`acp`]: one folder for each, with its row of the table, its launch
//!   plan and its session machine.
//! - [`capabilities`], [`launch`], [`settings`], [`hooks`]: the words that a provider and its
//!   callers share.
//! - [`reader`]: reads whatever JSON a provider writes, damaged or not.
//! - [`jsonrpc`], [`lines`], [`redact`], [`text`]: help that several of them need.

pub mod capabilities;
pub mod hooks;
pub mod jsonrpc;
pub mod launch;
pub mod lines;
pub mod own_command;
pub mod reader;
pub mod redact;
pub mod settings;
pub mod text;

pub mod acp;
pub mod claude;
pub mod codex;

pub mod registry;

pub use self::launch::Start;
pub use self::settings::{ApprovalMode, SessionSettings};

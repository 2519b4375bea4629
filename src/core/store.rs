//! What can go wrong with a store, as the machines branch on it.

use std::time::Duration;

use super::Cause;
use super::limits::{STORE_RETRY, STORE_RETRY_SLOW};

/// The kinds of trouble that a store can have. Each has one behaviour and one cure, for the hub and
/// for a runner:
///
/// | kind | at a start | while it runs |
/// | --- | --- | --- |
/// | `Full` | opened to be read if that is possible, else exit 71 | nothing new is accepted (503), tried again every 0.5 s, heals by itself |
/// | `Busy` | waited for, then exit 71 | the same |
/// | `Denied` | exit 71 | nothing new is accepted, tried again every 5 s |
/// | `Failed` | exit 71 | nothing new is accepted, tried again every 5 s |
/// | `Corrupt` | hub: what is readable is saved, exit 1; runner: set aside, saved, goes on | orderly stop, exit 1; the next start does the rest |
/// | `Gone` | begins anew, and says so if there was something | what is still open is saved; orderly stop, exit 1 |
/// | `TooNew` | refused untouched, exit 2 | cannot be |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// No room: the disk, a quota or a limit of file sizes.
    Full,
    /// Another process holds it.
    Busy,
    /// The file is damaged, or not ours.
    Corrupt,
    /// The open file was deleted, or another one stands in its place.
    Gone,
    /// The operating system does not let us.
    Denied,
    /// Written by a newer version.
    TooNew,
    /// Anything else.
    Failed,
}

impl StoreKind {
    /// What a person can do about it.
    pub fn cure(self) -> &'static str {
        match self {
            StoreKind::Full => {
                "free space on its disk, or raise the quota or the limit of file sizes"
            }
            StoreKind::Busy => {
                "another process holds it: end that one, for example a sqlite shell in a transaction"
            }
            StoreKind::Corrupt | StoreKind::Gone => "`agent-relay doctor` tells what was saved",
            StoreKind::Denied => {
                "make the file and its folder writable for this user, and the file system too"
            }
            StoreKind::TooNew => "update agent-relay",
            StoreKind::Failed => "look at the disk and at the system's log",
        }
    }

    /// When a commit is tried again; `None`: never.
    pub fn retry(self) -> Option<Duration> {
        match self {
            StoreKind::Full | StoreKind::Busy => Some(STORE_RETRY),
            StoreKind::Denied | StoreKind::Failed => Some(STORE_RETRY_SLOW),
            StoreKind::Corrupt | StoreKind::Gone | StoreKind::TooNew => None,
        }
    }
}

/// Trouble with a store: its kind, and one sentence that names the cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError {
    /// What the machines branch on.
    pub kind: StoreKind,
    /// What was found, without a cure.
    pub said: String,
    /// For people.
    pub text: String,
}

impl StoreError {
    /// The usual sentence: what was wanted, what was said, and the cure of that kind.
    pub fn new(
        kind: StoreKind,
        what: impl std::fmt::Display,
        said: impl std::fmt::Display,
    ) -> StoreError {
        StoreError {
            kind,
            said: said.to_string(),
            text: format!("{what}: {said}; {}", kind.cure()),
        }
    }

    /// A sentence of its own.
    pub fn whole(kind: StoreKind, text: impl Into<String>) -> StoreError {
        let text = text.into();
        StoreError { kind, said: text.clone(), text }
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<StoreError> for Cause {
    fn from(error: StoreError) -> Cause {
        Cause::Store(error)
    }
}

impl Cause {
    /// When a commit that failed so is tried again; `None`: never.
    pub fn store_retry(&self) -> Option<Duration> {
        match self {
            Cause::Store(error) => error.kind.retry(),
            _ => Some(STORE_RETRY),
        }
    }
}

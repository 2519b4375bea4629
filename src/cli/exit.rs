//! Exit codes, and failures as people read them.
//!
//! A text alone is no failure: the code that meets an error names its kind, since a supervisor
//! starts again after some kinds and never after others.

use crate::config;
use crate::core::store::{StoreError, StoreKind};
use crate::hub::Trouble;

/// Done.
pub const OK: u8 = 0;
/// The answer is no, or the provider failed for good.
pub const NO: u8 = 1;
/// Wrong use or configuration.
pub const USAGE: u8 = 2;
/// The other side cannot be reached.
pub const UNREACHABLE: u8 = 3;
/// A bug.
pub const BUG: u8 = 70;
/// The operating system refused something at the start: disk, descriptors, memory, permissions.
/// Trying again may help.
pub const SYSTEM: u8 = 71;

/// Of which kind a failure is; each kind has an exit code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The answer is no, or the provider failed for good: 1.
    No,
    /// Wrong use or configuration; trying again without a change is in vain: 2.
    Usage,
    /// The other side cannot be reached: 3.
    Unreachable,
    /// A bug: 70.
    Bug,
    /// The operating system refused something; trying again may help: 71.
    System,
}

impl Kind {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Kind::No => NO,
            Kind::Usage => USAGE,
            Kind::Unreachable => UNREACHABLE,
            Kind::Bug => BUG,
            Kind::System => SYSTEM,
        }
    }

    /// The kind of a program of ours that ended with that code; a code that is none of ours (a
    /// kill) counts as `No`.
    pub fn of(code: u8) -> Kind {
        match code {
            USAGE => Kind::Usage,
            UNREACHABLE => Kind::Unreachable,
            BUG => Kind::Bug,
            SYSTEM => Kind::System,
            _ => Kind::No,
        }
    }
}

/// Why a command ends early: a kind and one sentence.
#[derive(Debug)]
pub struct Failure {
    /// Kind, and with it the exit code.
    pub kind: Kind,
    /// One sentence that names the cure.
    pub text: String,
}

impl Failure {
    /// A failure of that kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into() }
    }

    /// Wrong use or configuration.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, text)
    }

    /// The answer is no.
    pub fn no(text: impl Into<String>) -> Failure {
        Failure::new(Kind::No, text)
    }

    /// The other side cannot be reached.
    pub fn unreachable(text: impl Into<String>) -> Failure {
        Failure::new(Kind::Unreachable, text)
    }

    /// The operating system refused something.
    pub fn system(text: impl Into<String>) -> Failure {
        Failure::new(Kind::System, text)
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.kind.code()
    }
}

/// A path that was given and cannot be used: one that does not exist is a mistake of whoever gave
/// it, everything else may pass.
pub fn path_failure(error: &std::io::Error, text: impl Into<String>) -> Failure {
    use std::io::ErrorKind::{InvalidInput, NotADirectory, NotFound};
    match error.kind() {
        NotFound | NotADirectory | InvalidInput => Failure::usage(text),
        _ => Failure::system(text),
    }
}

impl From<config::Trouble> for Failure {
    fn from(trouble: config::Trouble) -> Failure {
        match trouble {
            config::Trouble::Broken(text) => Failure::usage(text),
            config::Trouble::System(text) => Failure::system(text),
        }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Use(text) => Failure::usage(text),
            Trouble::System(text) => Failure::system(text),
            Trouble::Store(error) => error.into(),
            Trouble::Settings(trouble) => trouble.into(),
        }
    }
}

/// A store that cannot be used ends a command: a damaged one for good, a newer one as a usage
/// error, and what the operating system refuses with a code that says: trying again may help.
impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let kind = match error.kind {
            StoreKind::TooNew => Kind::Usage,
            StoreKind::Corrupt | StoreKind::Gone => Kind::No,
            StoreKind::Full | StoreKind::Busy | StoreKind::Denied | StoreKind::Failed => {
                Kind::System
            }
        };
        Failure::new(kind, error.text)
    }
}

/// What a command gives.
pub type Outcome = Result<u8, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_code_and_back() {
        for (kind, code) in [
            (Kind::No, 1),
            (Kind::Usage, 2),
            (Kind::Unreachable, 3),
            (Kind::Bug, 70),
            (Kind::System, 71),
        ] {
            assert_eq!((kind.code(), Kind::of(code)), (code, kind));
        }
        assert_eq!((Kind::of(137), Kind::of(101)), (Kind::No, Kind::No));
    }

    #[test]
    fn a_path_that_is_missing_is_a_mistake_and_one_that_is_refused_may_pass() {
        use std::io::{Error, ErrorKind};
        for (kind, want) in [
            (ErrorKind::NotFound, Kind::Usage),
            (ErrorKind::PermissionDenied, Kind::System),
            (ErrorKind::StorageFull, Kind::System),
            (ErrorKind::Other, Kind::System),
        ] {
            assert_eq!(path_failure(&Error::from(kind), "x").kind, want, "{kind:?}");
        }
    }
}

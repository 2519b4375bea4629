//! Exit codes (D-26) and failures as people read them.

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

/// Why a command ends early: exit code and one sentence.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// One sentence that names the cure.
    pub text: String,
}

impl Failure {
    /// Wrong use or configuration.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure { code: USAGE, text: text.into() }
    }

    /// The answer is no.
    pub fn no(text: impl Into<String>) -> Failure {
        Failure { code: NO, text: text.into() }
    }

    /// The other side cannot be reached.
    pub fn unreachable(text: impl Into<String>) -> Failure {
        Failure { code: UNREACHABLE, text: text.into() }
    }
}

impl From<String> for Failure {
    /// Texts of configuration and checks.
    fn from(text: String) -> Failure {
        Failure::usage(text)
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Use(text) => Failure::usage(text),
            Trouble::Store(error) => store_failure(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        store_failure(error)
    }
}

/// A store that cannot be used ends a command: a damaged one for good, a newer one as wrong use, and what the operating
/// system refuses with a code that says: trying again may help.
pub fn store_failure(error: StoreError) -> Failure {
    let code = match error.kind {
        StoreKind::TooNew => USAGE,
        StoreKind::Corrupt | StoreKind::Gone => NO,
        StoreKind::Full | StoreKind::Busy | StoreKind::Denied | StoreKind::Failed => 71,
    };
    Failure { code, text: error.text }
}

/// What a command gives.
pub type Outcome = Result<u8, Failure>;

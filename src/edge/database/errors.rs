//! Codes of SQLite and of the operating system, as the kinds of error that machines branch on.

use std::io;

use rusqlite::{ErrorCode, ffi};
use rustix::io::Errno;

use crate::core::store::{StoreError, StoreKind};

/// An operating error as the machines branch on it. The only place where codes of SQLite are read;
/// called right where it came up, since the kernel's last error tells a full quota from a broken
/// disk.
pub fn error_of(what: impl std::fmt::Display, error: &rusqlite::Error) -> StoreError {
    StoreError::new(kind_of(error, errno_of(&io::Error::last_os_error())), what, error)
}

/// The same for a call of the operating system.
pub fn io_error_of(what: impl std::fmt::Display, error: &io::Error) -> StoreError {
    StoreError::new(
        errno_of(error).and_then(kind_of_errno).unwrap_or(StoreKind::Failed),
        what,
        error,
    )
}

/// None where nothing has failed yet.
fn errno_of(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().filter(|number| *number > 0).map(Errno::from_raw_os_error)
}

fn kind_of_errno(errno: Errno) -> Option<StoreKind> {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Some(StoreKind::Full),
        Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::ISDIR | Errno::NOTDIR | Errno::LOOP => {
            Some(StoreKind::Denied)
        }
        _ => None,
    }
}

pub(super) fn kind_of(error: &rusqlite::Error, last: Option<Errno>) -> StoreKind {
    let Some(failure) = error.sqlite_error() else { return StoreKind::Failed };
    match (failure.code, failure.extended_code) {
        (ErrorCode::DiskFull, _) => StoreKind::Full,
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => StoreKind::Busy,
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => StoreKind::Corrupt,
        (_, ffi::SQLITE_IOERR_CORRUPTFS | ffi::SQLITE_IOERR_DATA) => StoreKind::Corrupt,
        (
            ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::AuthorizationForStatementDenied,
            _,
        ) => StoreKind::Denied,
        (ErrorCode::CannotOpen, _) => last.and_then(kind_of_errno).unwrap_or(StoreKind::Denied),
        // SQLite itself knows a disk without room; what else keeps a page from being written is a
        // quota or a limit of file sizes, unless the kernel says that the disk is broken.
        (
            _,
            ffi::SQLITE_IOERR_WRITE
            | ffi::SQLITE_IOERR_SHMSIZE
            | ffi::SQLITE_IOERR_TRUNCATE
            | ffi::SQLITE_IOERR_FSYNC,
        ) => match last {
            Some(Errno::IO) => StoreKind::Failed,
            Some(errno) => kind_of_errno(errno).unwrap_or(match failure.extended_code {
                ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE => StoreKind::Full,
                _ => StoreKind::Failed,
            }),
            None => StoreKind::Failed,
        },
        (ErrorCode::SystemIoFailure, _) => last
            .and_then(kind_of_errno)
            .filter(|kind| *kind == StoreKind::Full)
            .unwrap_or(StoreKind::Failed),
        _ => StoreKind::Failed,
    }
}

//! SQLite files: opening, checking and errors, in one place for every store.

mod check;
mod errors;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, ToSql};

pub use self::check::{Check, quick_check, quick_check_at_start};
pub use self::errors::{error_of, io_error_of};
use crate::core::ids::{MessageId, TaskId};
use crate::core::store::{StoreError, StoreKind};
use crate::os;

/// A statement waits this long for another process.
const BUSY_TIME: Duration = Duration::from_secs(2);
/// A start waits this long for another process.
const BUSY_TIME_AT_START: Duration = Duration::from_secs(10);
/// A schema version that is newer by more than this is damage, not a newer program.
const VERSIONS_MAX: i64 = 10_000;
/// Bytes of a write-ahead log that are read at a time.
const LOG_CHUNK: usize = 64 << 10;
/// Bytes of a write-ahead log that are looked through before a newer file is opened.
const LOG_BYTES_MAX: u64 = 256 << 20;

/// Ids are SQLite's integers.
macro_rules! integers {
    ($($name:ident)*) => {$(
        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok((self.0 as i64).into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<$name> {
                i64::column_result(value).map(|id| $name(id as u64))
            }
        }
    )*};
}

integers!(MessageId TaskId);

/// An open file.
pub struct Opened {
    /// The writer's connection.
    pub db: Connection,
    /// There was no room for the index that connections share: as long as this one is open, no
    /// other can be.
    pub alone: bool,
}

/// Opens a SQLite file for one writer: private, WAL, FULL, incremental vacuum. `schemas` are the
/// steps from nothing to the newest version; `user_version` counts those that are done. A file of a
/// newer version is not touched at all; one of an older version is copied before it is changed. On
/// a full disk a file is opened all the same, so that it can be read.
pub fn open_database(path: &Path, schemas: &[&str]) -> Result<Opened, StoreError> {
    let what = format!("cannot open the store {}", path.display());
    let version = schemas.len() as i64;
    if let Some(parent) = path.parent() {
        os::make_private_dir(parent).map_err(|error| io_error_of(&what, &error))?;
    }
    // Created by us first, so that it never has wider rights; SQLite gives -wal and -shm the same
    // mode.
    let file = os::open_private(path, OpenOptions::new().create(true).append(true))
        .map_err(|error| io_error_of(&what, &error))?;
    drop(file);
    let newer = |found: i64| {
        let said = format!(
            "it was written by a newer agent-relay (schema {found}, this one knows {version})"
        );
        StoreError::new(StoreKind::TooNew, &what, said)
    };
    let found = version_before_opening(path).unwrap_or(0);
    if found > version && found < VERSIONS_MAX {
        return Err(newer(found));
    }
    let open = || Connection::open(path).map_err(|error| error_of(&what, &error));
    let db = open()?;
    match prepare(&db, &what, schemas, path, false) {
        Ok(()) => Ok(Opened { db, alone: false }),
        Err(error) if error.kind == StoreKind::Full => {
            drop(db);
            let db = open()?;
            prepare(&db, &what, schemas, path, true)?;
            log::warn!(target: "store", "{error}; it is open to be read, and by this process alone until it is started anew");
            Ok(Opened { db, alone: true })
        }
        Err(error) => Err(error),
    }
}

fn prepare(
    db: &Connection,
    what: &str,
    schemas: &[&str],
    path: &Path,
    alone: bool,
) -> Result<(), StoreError> {
    let version = schemas.len() as i64;
    let step = || -> Result<Option<String>, Prepared> {
        db.busy_timeout(BUSY_TIME_AT_START)?;
        if alone {
            // The index of the log stands in memory then, which needs no room on the disk.
            db.execute_batch("PRAGMA locking_mode = EXCLUSIVE;")?;
        }
        let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let tables: i64 =
            db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if found < 0 || found > version || (found == 0) != (tables == 0) {
            return Ok(Some(format!(
                "it is damaged (schema {found}, {tables} tables and indexes)"
            )));
        }
        if found == 0 {
            db.execute_batch("PRAGMA auto_vacuum = INCREMENTAL;")?;
        }
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             PRAGMA journal_size_limit = 4194304; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -1024;",
        )?;
        let missing = schemas.get(found as usize..).unwrap_or_default();
        if !missing.is_empty() {
            if found > 0 {
                keep_copy(db, path, version)?;
            }
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE; {} PRAGMA user_version = {version}; COMMIT;",
                missing.concat()
            ))?;
        }
        db.busy_timeout(BUSY_TIME)?;
        Ok(None)
    };
    match step() {
        Ok(None) => Ok(()),
        Ok(Some(said)) => Err(StoreError::new(StoreKind::Corrupt, what, said)),
        Err(Prepared::Sqlite(error)) => Err(error_of(what, &error)),
        Err(Prepared::Store(error)) => Err(error),
    }
}

enum Prepared {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Prepared {
    fn from(error: rusqlite::Error) -> Prepared {
        Prepared::Sqlite(error)
    }
}

/// Path of the copy that was made before a file was migrated to this version.
fn copy_before(path: &Path, version: i64) -> PathBuf {
    beside(path, &format!(".before-{version}"))
}

/// Keeps a copy of the older file until the first orderly end, so that a migration can be undone.
fn keep_copy(db: &Connection, path: &Path, version: i64) -> Result<(), Prepared> {
    let copy = copy_before(path, version);
    if copy.exists() {
        return Ok(()); // left by a start that did not finish
    }
    let rows: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    let what = format!("cannot keep a copy of {} before it is brought up to date", path.display());
    if rows > 1 {
        let bytes = copy_checked(db, &copy, &what).map_err(Prepared::Store)?;
        log::info!(target: "store", "{} ({bytes} bytes) is the store as it was before this version", copy.display());
    }
    Ok(())
}

/// At an orderly end the copy of the older file is removed: this version has worked with the new
/// one.
pub fn drop_copies(path: &Path, version: usize) {
    (1..=version as i64).for_each(|version| drop(std::fs::remove_file(copy_before(path, version))));
}

/// The schema version as the bytes of the file and of its write-ahead log tell it: SQLite would
/// change a file by opening it.
fn version_before_opening(path: &Path) -> Option<i64> {
    let number = |bytes: &[u8]| bytes.first_chunk::<4>().map(|four| u32::from_be_bytes(*four));
    let mut head = [0u8; 64];
    let mut version = None;
    if File::open(path).ok()?.read_exact(&mut head).is_ok()
        && head.starts_with(b"SQLite format 3\0")
    {
        version = number(&head[60..]);
    }
    // The newest first page may still stand in the log only.
    if let Ok(log) = File::open(beside(path, "-wal")) {
        let mut log = BufReader::with_capacity(LOG_CHUNK, log);
        let mut head = [0u8; 32];
        if log.read_exact(&mut head).is_ok() {
            let page = u64::from(number(&head[8..])?);
            let salts = head[16..24].to_vec();
            let mut at = 32;
            while at < LOG_BYTES_MAX {
                let mut frame = [0u8; 24 + 64];
                if log.read_exact(&mut frame).is_err() || frame[8..16] != salts[..] {
                    break;
                }
                if number(&frame) == Some(1) {
                    version = number(&frame[24 + 60..]);
                }
                at += 24 + page;
                if log.seek_relative(page as i64 - 64).is_err() {
                    break;
                }
            }
        }
    }
    version.map(i64::from)
}

/// A file that belongs to another one: `-wal`, `-shm`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

/// Opens a file for reading only; its writer has made it.
pub fn open_for_reading(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        Connection::open_with_flags(path, flags)
            .and_then(|db| db.busy_timeout(BUSY_TIME).map(|_| db))
    };
    open().map_err(|error| error_of(format!("cannot open {} for reading", path.display()), &error))
}

/// Which file this is, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

/// None where no file is.
pub fn identity(path: &Path) -> Option<FileIdentity> {
    let meta = std::fs::metadata(path).ok()?;
    Some(FileIdentity { device: meta.dev(), inode: meta.ino() })
}

/// Watches that an open file keeps its name: what is written into a deleted or replaced file is
/// lost.
#[derive(Debug, Default)]
pub struct NamedFile {
    path: PathBuf,
    file: Option<FileIdentity>,
    log: Option<FileIdentity>,
}

/// What became of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileLoss {
    /// Nothing has its name.
    Deleted,
    /// Another file has its name.
    Replaced,
    /// Its write-ahead log was deleted or replaced.
    LogGone,
}

impl FileLoss {
    /// What goes on with the name of the file, as a clause.
    pub fn describe(self) -> &'static str {
        match self {
            FileLoss::Deleted => "was deleted",
            FileLoss::Replaced => "was replaced by another file",
            FileLoss::LogGone => "lost its write-ahead log (a file that ends in -wal)",
        }
    }
}

impl NamedFile {
    /// Of a file that was just opened; an empty path: of none.
    pub fn of(path: &Path) -> NamedFile {
        NamedFile { path: path.into(), file: identity(path), log: identity(&beside(path, "-wal")) }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at the folder only, without reading the file. `None`: nothing has changed.
    pub fn look(&mut self) -> Option<FileLoss> {
        self.file?;
        let (file, log) = (identity(&self.path), identity(&beside(&self.path, "-wal")));
        // The log is made by the first change.
        self.log = self.log.or(log);
        if file.is_none() {
            Some(FileLoss::Deleted)
        } else if file != self.file {
            Some(FileLoss::Replaced)
        } else if log != self.log {
            Some(FileLoss::LogGone)
        } else {
            None
        }
    }
}

/// Copies an open database into a new file that only its owner may read: consistent, also while
/// others write or when the file has no name any more; checked and durable before it gets its name.
/// Gives its bytes.
pub fn copy_checked(db: &Connection, to: &Path, what: &str) -> Result<u64, StoreError> {
    let failed = |error: rusqlite::Error| error_of(what, &error);
    let io_failed = |error: io::Error| io_error_of(what, &error);
    let temporary = beside(to, &format!(".{}.tmp", std::process::id()));
    let copy = || -> Result<u64, StoreError> {
        let file = os::open_private(&temporary, OpenOptions::new().write(true).create_new(true))
            .map_err(io_failed)?;
        let Some(target) = temporary.to_str() else {
            return Err(StoreError::new(StoreKind::Failed, what, "the file name must be UTF-8"));
        };
        db.execute("VACUUM INTO ?1", [target]).map_err(failed)?;
        let copied = open_for_reading(&temporary)?;
        if let Check::Damaged(said) =
            quick_check(&copied, Duration::MAX, &crossbeam_channel::never())?
        {
            return Err(StoreError::new(
                StoreKind::Corrupt,
                what,
                format!("the copy is damaged ({said})"),
            ));
        }
        drop(copied);
        file.sync_all().map_err(io_failed)?;
        std::fs::rename(&temporary, to).map_err(io_failed)?;
        sync_folder(to);
        Ok(file.metadata().map_or(0, |metadata| metadata.len()))
    };
    copy().inspect_err(|_| {
        ["", "-journal", "-wal", "-shm"]
            .iter()
            .for_each(|end| drop(std::fs::remove_file(beside(&temporary, end))))
    })
}

/// Makes a new name survive a power cut, as far as the file system can.
pub fn sync_folder(path: &Path) {
    let folder =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

/// Gives at most this many free pages back to the disk. The statement yields once for each page, so
/// it is run to its end.
pub fn give_back(db: &Connection, pages: u32) -> rusqlite::Result<()> {
    let mut statement = db.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// Every row of every table as text, ordered.
pub fn rows_of(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut tables = db.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")?;
    let names: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut all = Vec::new();
    for name in names {
        let mut statement = db.prepare(&format!("SELECT * FROM {name}"))?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let cells: Vec<String> = (0..columns)
                .map(|at| row.get_ref(at).map(|cell| format!("{cell:?}")))
                .collect::<Result<_, _>>()?;
            found.push(format!("{name}: {}", cells.join(", ")));
        }
        found.sort();
        all.extend(found);
    }
    Ok(all)
}

/// Bytes of the file and of its free pages.
pub fn sizes(db: &Connection) -> rusqlite::Result<(u64, u64)> {
    let pragma =
        |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let page = pragma("page_size")?;
    Ok(((pragma("page_count")? * page) as u64, (pragma("freelist_count")? * page) as u64))
}

use rusqlite::ffi;
use rustix::io::Errno;

use super::errors::kind_of;
use super::*;
use crate::core::store::StoreKind;

fn failure(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
}

#[test]
fn every_code_has_its_kind() {
    for (code, errno, kind) in [
        (ffi::SQLITE_FULL, None, StoreKind::Full),
        (ffi::SQLITE_IOERR_WRITE, Some(Errno::DQUOT), StoreKind::Full),
        (ffi::SQLITE_IOERR_WRITE, Some(Errno::FBIG), StoreKind::Full),
        (ffi::SQLITE_IOERR_WRITE, Some(Errno::IO), StoreKind::Failed),
        (ffi::SQLITE_IOERR_WRITE, Some(Errno::ROFS), StoreKind::Denied),
        (ffi::SQLITE_IOERR_SHMSIZE, Some(Errno::NOSPC), StoreKind::Full),
        (ffi::SQLITE_IOERR_FSYNC, Some(Errno::DQUOT), StoreKind::Full),
        (ffi::SQLITE_IOERR_FSYNC, Some(Errno::IO), StoreKind::Failed),
        (ffi::SQLITE_IOERR_READ, Some(Errno::IO), StoreKind::Failed),
        (ffi::SQLITE_CANTOPEN, Some(Errno::NOSPC), StoreKind::Full),
        (ffi::SQLITE_CANTOPEN, Some(Errno::ACCESS), StoreKind::Denied),
        (ffi::SQLITE_BUSY, None, StoreKind::Busy),
        (ffi::SQLITE_BUSY_RECOVERY, None, StoreKind::Busy),
        (ffi::SQLITE_LOCKED, None, StoreKind::Busy),
        (ffi::SQLITE_CORRUPT, None, StoreKind::Corrupt),
        (ffi::SQLITE_CORRUPT_INDEX, None, StoreKind::Corrupt),
        (ffi::SQLITE_NOTADB, None, StoreKind::Corrupt),
        (ffi::SQLITE_IOERR_CORRUPTFS, None, StoreKind::Corrupt),
        (ffi::SQLITE_READONLY, None, StoreKind::Denied),
        (ffi::SQLITE_READONLY_DIRECTORY, None, StoreKind::Denied),
        (ffi::SQLITE_ERROR, None, StoreKind::Failed),
    ] {
        assert_eq!(kind_of(&failure(code), errno), kind, "{code} {errno:?}");
    }
    assert_eq!(kind_of(&rusqlite::Error::QueryReturnedNoRows, None), StoreKind::Failed);
    for (errno, kind) in [
        (Errno::NOSPC, StoreKind::Full),
        (Errno::ROFS, StoreKind::Denied),
        (Errno::MFILE, StoreKind::Failed),
    ] {
        assert_eq!(
            io_error_of("x", &io::Error::from_raw_os_error(errno.raw_os_error())).kind,
            kind
        );
    }
}

#[test]
fn a_look_at_pages_is_bounded() {
    let mut db = Connection::open_in_memory().expect("memory");
    let transaction = db.transaction().expect("begins");
    transaction
        .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT);")
        .expect("makes");
    transaction
        .execute_batch(
            "INSERT INTO t SELECT value, hex(randomblob(40)) FROM
               (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 200000) SELECT value FROM n);",
        )
        .expect("fills");
    transaction.commit().expect("commits");
    let never = crossbeam_channel::never();
    assert_eq!(quick_check(&db, Duration::MAX, &never).expect("looks"), Check::Fine);
    // On a busy machine a look may be over before its limit is noticed; not again and again.
    let is_cut = |budget: Duration, ended: &crossbeam_channel::Receiver<()>| {
        (0..1000).any(|_| quick_check(&db, budget, ended).expect("looks") == Check::Unfinished)
    };
    assert!(is_cut(Duration::ZERO, &never));
    let (end, ended) = crossbeam_channel::bounded(0);
    drop(end);
    assert!(is_cut(Duration::MAX, &ended));
}

#[test]
fn an_older_file_stays_as_a_copy_until_an_orderly_end() {
    let dir = std::env::temp_dir().join(format!("agent-relay-copies-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let path = dir.join("x.sqlite");
    let schemas = ["CREATE TABLE a (x);", "DELETE FROM a;", "CREATE TABLE b (x);"];
    {
        let old = open_database(&path, &schemas[..1]).expect("opens").db;
        old.execute_batch("INSERT INTO a VALUES (7)").expect("writes");
    }
    let rows = |path: &Path| rows_of(&open_for_reading(path).expect("opens")).expect("reads");
    let before = rows(&path);
    drop(open_database(&path, &schemas).expect("is brought up to date"));
    let copy = dir.join("x.sqlite.before-3");
    assert_eq!((rows(&copy), rows(&path).len()), (before.clone(), 0));
    // A start that did not come to its end leaves it; so does the next one.
    drop(open_database(&path, &schemas).expect("opens"));
    assert_eq!(rows(&copy), before);
    drop_copies(&path, schemas.len());
    assert!(!copy.exists() && path.exists());
    // A new file has nothing to keep.
    drop(open_database(&dir.join("new.sqlite"), &schemas).expect("makes"));
    assert!(!dir.join("new.sqlite.before-3").exists());
    std::fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn a_newer_file_is_not_touched() {
    let dir = std::env::temp_dir().join(format!("agent-relay-newer-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let path = dir.join("x.sqlite");
    let schemas = ["CREATE TABLE a (x);", "CREATE TABLE b (x);"];
    let listing = || -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(&dir).expect("reads").flatten();
        let mut all: Vec<_> = entries
            .map(|e| {
                (
                    e.file_name().to_string_lossy().into_owned(),
                    std::fs::read(e.path()).expect("reads"),
                )
            })
            .collect();
        all.sort();
        all
    };
    drop(open_database(&path, &schemas).expect("opens"));
    let before = listing();
    let refused = open_database(&path, &schemas[..1]).err().expect("too new");
    assert_eq!(
        (refused.kind, refused.text.contains("update agent-relay")),
        (StoreKind::TooNew, true),
        "{refused}"
    );
    assert_eq!(listing(), before);
    // The newer version stands in the log only: its writer was killed.
    let other = dir.join("y.sqlite");
    drop(open_database(&other, &schemas[..1]).expect("opens"));
    let writer = open_database(&other, &schemas).expect("opens");
    std::fs::copy(&other, dir.join("z.sqlite")).expect("copies");
    std::fs::copy(beside(&other, "-wal"), dir.join("z.sqlite-wal")).expect("copies");
    drop(writer);
    let before = listing();
    assert_eq!(
        open_database(&dir.join("z.sqlite"), &schemas[..1]).err().expect("too new").kind,
        StoreKind::TooNew
    );
    assert_eq!(listing(), before);
    std::fs::remove_dir_all(&dir).expect("clean up");
}

//! Looks at the pages of a file for damage, for a limited time.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use rusqlite::Connection;

use super::error_of;
use crate::core::store::{StoreError, StoreKind};

/// A check that is out of time is interrupted this often until it ends.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(5);
/// Files up to this many pages are checked without a time limit.
const PAGES_FEW: i64 = 256;

/// What a check of the pages of a file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Nothing is wrong.
    Fine,
    /// Damage, in SQLite's words.
    Damaged(String),
    /// Time ran out before the end; no damage so far.
    Unfinished,
}

/// The check of a store before it is used, on its own connection.
pub fn quick_check_at_start(db: &Connection, budget: Duration) -> Result<Check, StoreError> {
    let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap_or(i64::MAX);
    if pages > PAGES_FEW {
        return quick_check(db, budget, &crossbeam_channel::never());
    }
    outcome(check_tables(db), Err)
}

/// Checks every page of a file for at most `budget`, table by table so that no long read keeps the
/// log from shrinking. `ended`: a channel whose end ends the check.
pub fn quick_check(
    db: &Connection,
    budget: Duration,
    ended: &Receiver<()>,
) -> Result<Check, StoreError> {
    let interrupt = db.get_interrupt_handle();
    let (done, watched) = bounded::<()>(0);
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let late = crossbeam_channel::after(budget);
            let over = crossbeam_channel::select! {
                recv(watched) -> _ => false,
                recv(late) -> _ => true,
                recv(ended) -> _ => true,
            };
            // One that falls between two statements is lost.
            while over && watched.recv_timeout(INTERRUPT_AGAIN) == Err(RecvTimeoutError::Timeout) {
                interrupt.interrupt();
            }
            over
        });
        let found = check_tables(db);
        drop(done);
        outcome(found, |error| {
            if watch.join().is_ok_and(|over| over) { Ok(Check::Unfinished) } else { Err(error) }
        })
    })
}

/// What was found; `otherwise` is for errors that are no damage.
fn outcome(
    found: rusqlite::Result<Option<String>>,
    otherwise: impl FnOnce(StoreError) -> Result<Check, StoreError>,
) -> Result<Check, StoreError> {
    match found {
        Ok(None) => Ok(Check::Fine),
        Ok(Some(said)) => Ok(Check::Damaged(said)),
        Err(error) => match error_of("cannot check the store", &error) {
            StoreError { kind: StoreKind::Corrupt, .. } => Ok(Check::Damaged(error.to_string())),
            other => otherwise(other),
        },
    }
}

fn check_tables(db: &Connection) -> rusqlite::Result<Option<String>> {
    let mut tables = db.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
    )?;
    let names: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for name in names {
        let said: String = db.query_row(
            &format!("PRAGMA quick_check(\"{}\")", name.replace('"', "\"\"")),
            [],
            |row| row.get(0),
        )?;
        if said != "ok" {
            return Ok(Some(format!("table {name}: {}", said.lines().last().unwrap_or_default())));
        }
    }
    Ok(None)
}

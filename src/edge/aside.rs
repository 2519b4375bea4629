//! A runner's store when it is damaged or gone: an agent must stay alive, so the file is set aside,
//! what is readable goes into a new one, and what the relay still knows comes again from there.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::database::{Check, FileLoss, beside, copy_checked, error_of, io_error_of, sync_folder};
use super::salvage::{Plan, dated, salvage};
use super::store::inbox::count_senders;
use super::store::{SCHEMAS, Store};
use crate::core::store::{StoreError, StoreKind};
use crate::os;

/// After an unclean end the pages of a store are checked for at most this long before the runner
/// starts.
const CHECK_TIME: std::time::Duration = std::time::Duration::from_millis(500);

/// How a runner's store is saved. The counters are counted anew from what is there.
const PLAN: Plan = Plan {
    schemas: SCHEMAS,
    hints: "SELECT '' WHERE 0",
    tidy: concat!(
        "DELETE FROM inbox WHERE state <> 3 AND (doc IS NULL OR NOT json_valid(doc));
           DELETE FROM senders;",
        count_senders!(),
        "DELETE FROM outbox WHERE NOT json_valid(payload);
           DELETE FROM commands WHERE NOT json_valid(doc);
           INSERT OR REPLACE INTO counters (name, value) VALUES
             ('rows', (SELECT count(*) FROM outbox WHERE poisoned IS NULL)),
             ('poisoned', (SELECT count(*) FROM outbox WHERE poisoned IS NOT NULL)),
             ('bytes', (SELECT coalesce(sum(length(CAST(payload AS BLOB))), 0) FROM outbox)),
             ('settled', (SELECT coalesce(max(settled), 0) FROM inbox));"
    ),
};

/// Opens a runner's store; a damaged one is set aside first, with what came of it as one sentence.
pub fn open_or_set_aside(
    path: &Path,
    outbox_bytes_max: u64,
) -> Result<(Store, Option<String>), StoreError> {
    let unclean = std::fs::metadata(beside(path, "-wal")).is_ok_and(|meta| meta.len() > 0);
    let opened = Store::open(path, outbox_bytes_max).and_then(|store| {
        if unclean || damage_file(path).exists() {
            sound(&store, path)?;
        }
        store.snapshot().map_err(|error| {
            error_of(format!("cannot read the store {}", path.display()), &error)
        })?;
        Ok(store)
    });
    match opened {
        Ok(store) => {
            let _ = std::fs::remove_file(damage_file(path));
            Ok((store, None))
        }
        Err(error) if error.kind == StoreKind::Corrupt => {
            let said = set_aside(path, &error)?;
            let _ = std::fs::remove_file(damage_file(path));
            Ok((Store::open(path, outbox_bytes_max)?, Some(said)))
        }
        Err(error) => Err(error),
    }
}

/// A runner that met damage leaves this file, so that the next start checks the store.
fn damage_file(path: &Path) -> PathBuf {
    beside(path, ".suspect")
}

/// Notes for the next start that the file is damaged.
pub fn suspect(path: &Path) {
    let _ = os::replace_private_file(&damage_file(path), "", false);
}

fn sound(store: &Store, path: &Path) -> Result<(), StoreError> {
    let budget = if damage_file(path).exists() { CHECK_TIME * 20 } else { CHECK_TIME };
    match store.check(budget) {
        Ok(Check::Damaged(said)) => {
            Err(StoreError::new(StoreKind::Corrupt, format!("the store {}", path.display()), said))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind == StoreKind::Corrupt => Err(error),
        Err(_) => Ok(()), // it cannot be checked now, for example on a full disk
    }
}

/// The damaged file moves away with its log; what is readable takes its place.
fn set_aside(path: &Path, error: &StoreError) -> Result<String, StoreError> {
    let folder = path.parent().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = dated(folder, &format!("{name}.damaged"), "");
    let fresh = beside(path, ".salvaged");
    let _ = std::fs::remove_file(&fresh);
    let saved = salvage(path, &fresh, PLAN);
    let what = format!("cannot set the damaged store {} aside", path.display());
    let moved = |from: PathBuf, to: PathBuf| match std::fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error_of(&what, &error))
        }
        _ => Ok(()),
    };
    // The log first: a new file must never find the log of the old one.
    for end in ["-wal", "-shm", ""] {
        moved(beside(path, end), beside(&aside, end))?;
    }
    let came = match saved {
        Ok(saved) => {
            moved(fresh, path.into())?;
            format!("what was readable was restored ({})", saved.describe())
        }
        Err(failed) => format!("nothing of it could be restored ({})", failed.said),
    };
    sync_folder(path);
    Ok(format!(
        "the store {} was damaged ({}) and lies now in {}; {came}; what the relay still has unread comes again",
        path.display(),
        error.said,
        aside.display()
    ))
}

/// The open file has no name any more: it gets one again, its own if that is free.
pub(super) fn put_back(db: &Connection, path: &Path, moved: FileLoss) -> StoreError {
    let found =
        format!("the runner's store {} {} while the runner ran", path.display(), moved.describe());
    let folder = path.parent().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let text = match rescue(db, path, moved, &dated(folder, &format!("{name}.saved"), "")) {
        Ok(None) => format!(
            "{found}; all that it held was put back, and the runner stops so that its next start uses that"
        ),
        Ok(Some(place)) => format!(
            "{found}; all that it held was saved in {}, and the runner stops",
            place.display()
        ),
        Err(failed) => {
            format!("{found}; what it held could not be saved: {failed}; the runner stops")
        }
    };
    StoreError::whole(StoreKind::Gone, text)
}

/// Saves an open file that was deleted or replaced. `None`: all that it held stands in its own
/// place again; else where it was saved, in `spare`.
pub fn rescue(
    db: &Connection,
    path: &Path,
    moved: FileLoss,
    spare: &Path,
) -> Result<Option<PathBuf>, StoreError> {
    let what = "it cannot be saved";
    if moved == FileLoss::LogGone && emptied_log(db) {
        return Ok(None);
    }
    crate::os::make_private_dir(path.parent().unwrap_or(path))
        .map_err(|error| io_error_of(what, &error))?;
    copy_checked(db, spare, what)?;
    if moved == FileLoss::Replaced {
        return Ok(Some(spare.into()));
    }
    // A log that was left behind belongs to the file that is gone, and would be played into the new
    // one.
    ["-wal", "-shm"].iter().for_each(|end| drop(std::fs::remove_file(beside(path, end))));
    match std::fs::rename(spare, path) {
        Ok(()) => {
            sync_folder(path);
            Ok(None)
        }
        Err(_) => Ok(Some(spare.into())),
    }
}

/// Brings all of the log into the file.
fn emptied_log(db: &Connection) -> bool {
    let done = db.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    });
    done.is_ok_and(|(busy, pages, moved)| busy == 0 && pages == moved)
}

/// The same as a sentence.
pub fn note(folder: &Path) -> Option<String> {
    let found = lying_there(folder);
    let names: Vec<String> = found.iter().map(|path| path.display().to_string()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "of earlier damage lies here: {}; remove it when you do not need it any more",
            names.join(", ")
        )
    })
}

/// Files of earlier damage that lie beside a runner's store.
pub fn lying_there(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (name.contains(".sqlite.damaged-") || name.contains(".sqlite.saved-"))
            && !name.ends_with("-wal")
            && !name.ends_with("-shm")
    };
    let mut found: Vec<PathBuf> = entries.filter(ours).collect();
    found.sort();
    found
}

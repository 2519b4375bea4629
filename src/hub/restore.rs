//! A copy in the place of the hub's store: what belongs to another file is set aside, and a backup is put back.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::store::data_state;
use crate::core::hub::generations::{DataState, Mark};
use crate::edge::database::beside;
use crate::os;

/// Sets a write-ahead log aside that belongs to another file: somebody has put a copy in the place of a store whose hub was
/// killed. SQLite would play the log into the copy without a word and damage it.
pub fn leave_foreign_log(file: &Path, mark: Option<&Mark>) -> std::io::Result<()> {
    let (log, index) = (beside(file, "-wal"), beside(file, "-shm"));
    if std::fs::metadata(&log).map_or(0, |meta| meta.len()) == 0 {
        return Ok(());
    }
    // The file alone, without its log: each start writes itself down there before anything else happens.
    let alone = || -> rusqlite::Result<DataState> {
        let name = crate::wire::api::encode(&file.to_string_lossy()).replace("%2F", "/");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        data_state(&Connection::open_with_flags(format!("file:{name}?immutable=1"), flags)?)
    };
    let starts_here = mark.map_or(0, |mark| mark.starts);
    let foreign = match alone() {
        Ok(data) => data.copied || data.starts < starts_here,
        // A store from before such facts, or an empty or damaged file: only where a newer hub ran here is the log another's.
        Err(_) => starts_here > 0,
    };
    if !foreign {
        return Ok(());
    }
    let aside = log.with_file_name(format!("aside-{}", crate::log::file_stamp()));
    os::make_private_dir(&aside)?;
    for path in [&log, &index] {
        if path.exists() {
            std::fs::rename(path, aside.join(path.file_name().unwrap_or_default()))?;
        }
    }
    log::warn!(target: "hub", "{} belongs to another file than {}; it was moved to {}", log.display(), file.display(), aside.display());
    Ok(())
}

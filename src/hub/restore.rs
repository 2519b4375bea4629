//! Restores: a foreign write-ahead log beside the hub's store is set aside, and a backup is put in
//! its place.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::Trouble;
use super::mark::MarkFile;
use super::place::{directory, live_pid};
use super::store::{HubStore, data_state};
use crate::core::hub::generations::{DataState, Mark};
use crate::core::ids::{MessageId, TaskId};
use crate::core::store::{StoreError, StoreKind};
use crate::edge::database::{
    beside, copy_checked, drop_copies, error_of, identity, io_error_of, open_for_reading,
    sync_folder,
};
use crate::os;
use crate::wire::api::TokenRecord;

/// Sets a write-ahead log aside that belongs to another file: somebody has put a copy in the place
/// of a store whose hub was killed. SQLite would play the log into the copy without a word and
/// damage it.
pub fn leave_foreign_log(file: &Path, mark: Option<&Mark>) -> std::io::Result<()> {
    let (log, index) = (beside(file, "-wal"), beside(file, "-shm"));
    if std::fs::metadata(&log).map_or(0, |meta| meta.len()) == 0 {
        return Ok(());
    }
    // The file alone, without its log: each start writes itself down there before anything else
    // happens.
    let alone = || -> rusqlite::Result<DataState> {
        let name = crate::wire::api::encode(&file.to_string_lossy()).replace("%2F", "/");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        data_state(&Connection::open_with_flags(format!("file:{name}?immutable=1"), flags)?)
    };
    let starts_here = mark.map_or(0, |mark| mark.starts);
    let foreign = match alone() {
        Ok(data) => data.copied || data.starts < starts_here,
        // A damaged file needs its log: what is readable of both is saved.
        Err(error)
            if matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
            ) =>
        {
            false
        }
        // An older or an empty store: the log is foreign only where a newer hub ran here.
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

/// What a restore has changed.
#[derive(Debug, Default, PartialEq)]
pub struct Restored {
    /// Where the former files are now, if there were any.
    pub aside: Option<PathBuf>,
    /// When the newest message of the backup was accepted, ms since 1970; 0: it has none.
    pub newest_at: i64,
    /// Highest ids of messages and tasks in the backup.
    pub last: (MessageId, TaskId),
    /// First and last message that was accepted after the backup was made; see `exact`.
    pub missing_messages: Option<(u64, u64)>,
    /// The same for tasks.
    pub missing_tasks: Option<(u64, u64)>,
    /// The former store was readable, so the ends above are exact; else they are the ends of
    /// reserved blocks.
    pub exact: bool,
    /// Agents whose tokens do not work any more.
    pub agents_without_token: Vec<String>,
}

/// Puts a backup in the place of the hub's store. The former files are kept. No hub may run on this
/// home; the next one gives the data a new generation and goes on above all ids that were ever
/// given here.
pub fn restore(home: &Path, from: &Path) -> Result<Restored, Trouble> {
    let dir = directory(home);
    let sentence = |what: &str| format!("cannot {what} {}", dir.display());
    os::make_private_dir(&dir).map_err(|error| io_error_of(sentence("make"), &error))?;
    let lock =
        os::lock(&dir.join("lock")).map_err(|error| io_error_of(sentence("lock"), &error))?;
    let Some(_lock) = lock else {
        let who = live_pid(home).map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        return Err(Trouble::Use(format!(
            "a hub{who} runs on {}; stop it first, then restore",
            home.display()
        )));
    };
    if !from.is_file() {
        return Err(Trouble::Use(format!(
            "there is no file {}; `agent-relay hub backup FILE` makes one",
            from.display()
        )));
    }
    let (file, fresh) = (dir.join("hub.sqlite"), dir.join("hub.sqlite.restoring"));
    if identity(from).is_some() && identity(from) == identity(&file) {
        return Err(Trouble::Use(format!(
            "{} is the hub's own store; name a backup",
            from.display()
        )));
    }
    for end in ["", "-wal", "-shm", "-journal"] {
        let _ = std::fs::remove_file(beside(&fresh, end)); // of a restore that was killed
    }
    let mark = MarkFile::open(home)
        .map_err(|error| {
            io_error_of(format!("cannot read {}", MarkFile::path(home).display()), &error)
        })?
        .found();
    let copy = copy_of(from, &fresh)?;
    let former = former_of(&file);
    let mut restored = Restored {
        newest_at: copy.newest_at,
        last: copy.last,
        exact: former.is_some(),
        ..Default::default()
    };
    let reserved = mark.as_ref().map(|mark| match mark.orderly_end {
        Some(end) => (end.last_message_id, end.last_task_id),
        None => (mark.message_block_end, mark.task_block_end),
    });
    // The former file may be a copy itself, put there before.
    let ended = mark
        .as_ref()
        .and_then(|mark| mark.orderly_end)
        .map(|end| (end.last_message_id, end.last_task_id))
        .unwrap_or_default();
    let last = |former: &Seen| (former.last.0.max(ended.0), former.last.1.max(ended.1));
    if let Some(top) = former.as_ref().map(last).or(reserved) {
        let missing = |last: u64, top: u64| (top > last).then_some((last + 1, top));
        restored.missing_messages = missing(copy.last.0.0, top.0.0);
        restored.missing_tasks = missing(copy.last.1.0, top.1.0);
    }
    restored.agents_without_token = lost_tokens(&copy, former.as_ref(), mark.as_ref());
    restored.aside = exchange(&dir, &file, &fresh)
        .map_err(|error| io_error_of(format!("cannot put {} in place", file.display()), &error))?;
    super::salvage::forget_damage(&dir);
    Ok(restored)
}

/// What has to be known of a store.
struct Seen {
    last: (MessageId, TaskId),
    newest_at: i64,
    tokens: Vec<TokenRecord>,
}

fn seen(store: &HubStore) -> rusqlite::Result<Seen> {
    let tokens = store.snapshot()?.tokens.into_iter().map(|(_, record)| record).collect();
    Ok(Seen { last: store.highest_ids()?, newest_at: store.newest_at()?, tokens })
}

/// A checked, durable copy of this version, marked so that no hub takes it for the data that ran
/// here last.
fn copy_of(from: &Path, to: &Path) -> Result<Seen, Trouble> {
    let what = format!("cannot restore {}", from.display());
    let source = open_for_reading(from)?;
    let tables =
        "SELECT count(*) FROM sqlite_schema WHERE name IN ('messages', 'recipients', 'tokens')";
    let is_ours =
        source.query_row(tables, [], |row| row.get::<_, i64>(0)).is_ok_and(|count| count == 3);
    if !is_ours {
        return Err(Trouble::Use(format!(
            "{what}: it is not a backup of a hub; `agent-relay hub backup FILE` makes one"
        )));
    }
    copy_checked(&source, to, &what)?;
    drop(source);
    let prepare = || -> Result<Seen, StoreError> {
        let mut store = HubStore::open(to)?;
        store.set_copied().map_err(|error| error_of(&what, &error))?;
        let seen = seen(&store).map_err(|error| error_of(&what, &error))?;
        if store.checkpoint() {
            Ok(seen)
        } else {
            Err(StoreError::new(StoreKind::Failed, &what, "the copy cannot be written"))
        }
    };
    let seen = prepare();
    drop_copies(to, super::store::schema::SCHEMAS.len());
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(to, end));
    }
    Ok(seen.inspect_err(|_| drop(std::fs::remove_file(to)))?)
}

/// The store that is to be replaced, as far as it can be read; it is not changed.
fn former_of(file: &Path) -> Option<Seen> {
    let db = open_for_reading(file).ok()?;
    let last = super::store::highest_ids(&db).ok()?;
    let mut records = db.prepare("SELECT record FROM tokens").ok()?;
    let records = records.query_map([], |row| row.get::<_, String>(0)).ok()?;
    let tokens = records.filter_map(|record| serde_json::from_str(&record.ok()?).ok()).collect();
    Some(Seen { last, newest_at: 0, tokens })
}

/// Agents that have no token any more: what was made after the backup is not in it, and without a
/// mark nobody knows what was revoked.
fn lost_tokens(copy: &Seen, former: Option<&Seen>, mark: Option<&Mark>) -> Vec<String> {
    let kept = |record: &TokenRecord| {
        mark.is_some() && copy.tokens.iter().any(|there| there.jti == record.jti)
    };
    let all = former.map_or(&copy.tokens, |former| &former.tokens);
    let mut agents: Vec<String> = all
        .iter()
        .filter(|record| !kept(record))
        .filter_map(|record| record.agent_id.clone())
        .collect();
    agents.sort();
    agents.dedup();
    agents
}

/// Puts `fresh` in the place of `file`, and gives the path where the former one is kept. At every
/// moment one of both stands there: the former file gets a second name, then the new one takes its
/// place in one step. If the process is killed right after that, the next start finds a log that
/// belongs to the former file and sets it aside.
fn exchange(dir: &Path, file: &Path, fresh: &Path) -> std::io::Result<Option<PathBuf>> {
    let aside = dir.join(format!("aside-{}", crate::log::file_stamp()));
    let there = file.exists();
    if there {
        os::make_private_dir(&aside)?;
        std::fs::hard_link(file, aside.join("hub.sqlite"))
            .or_else(|_| std::fs::copy(file, aside.join("hub.sqlite")).map(|_| ()))?;
    }
    std::fs::rename(fresh, file)?;
    sync_folder(file);
    for end in ["-wal", "-shm"] {
        let old = beside(file, end);
        if there && old.exists() {
            std::fs::rename(&old, aside.join(format!("hub.sqlite{end}")))?;
        }
    }
    sync_folder(file);
    Ok(there.then_some(aside))
}

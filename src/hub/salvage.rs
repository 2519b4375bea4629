//! The hub's store when it is damaged, empty or gone: what can be saved is saved once, and named
//! with the way back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::store::schema::SCHEMAS;
use crate::core::store::{StoreError, StoreKind};
use crate::edge::aside::rescue;
use crate::edge::database::{FileLoss, beside};
use crate::edge::salvage::{Plan, dated, salvage};
use crate::os;

/// The check of all pages after an unclean end takes at most this long.
pub const CHECK_TIME: Duration = Duration::from_secs(600);

/// How a hub's store is saved. A message whose recipients were lost goes to whom it was sent by
/// name: better twice in a runner that knows it already than never.
pub const PLAN: Plan = Plan {
    schemas: SCHEMAS,
    hints: "SELECT DISTINCT target FROM messages UNION SELECT DISTINCT sender FROM messages UNION SELECT id FROM agents
            UNION SELECT 'user'",
    tidy: "DELETE FROM messages WHERE NOT json_valid(doc);
           DELETE FROM tasks WHERE NOT json_valid(doc);
           DELETE FROM task_history WHERE NOT json_valid(entry) OR task NOT IN (SELECT id FROM tasks);
           DELETE FROM commands WHERE NOT json_valid(doc);
           DELETE FROM agents WHERE NOT json_valid(registration);
           DELETE FROM tokens WHERE NOT json_valid(record);
           DELETE FROM recipients WHERE message NOT IN (SELECT id FROM messages);
           DELETE FROM obligations WHERE message NOT IN (SELECT id FROM messages);
           DELETE FROM reactions WHERE message NOT IN (SELECT id FROM messages);
           INSERT OR IGNORE INTO recipients (recipient, message, session, mirror)
             SELECT target, id, target = 'user' OR kind = 'session', kind = 'session' FROM messages m
             WHERE (target = 'user' OR target IN (SELECT id FROM agents))
               AND NOT EXISTS (SELECT 1 FROM recipients r WHERE r.message = m.id);",
};

fn record_file(dir: &Path) -> PathBuf {
    dir.join("salvaged.json")
}

/// The damaged file as it was when it was saved.
fn mark_of(path: &Path) -> Option<Value> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some(
        json!({"inode": meta.ino(), "bytes": meta.len(), "changed": [meta.mtime(), meta.mtime_nsec()]}),
    )
}

/// What was found belongs to a file that is replaced.
pub fn forget_damage(dir: &Path) {
    for file in [record_file(dir), emptied_file(dir)] {
        let _ = std::fs::remove_file(file);
    }
}

/// The sentence about this file, if it was found damaged before.
pub fn known_damage(dir: &Path) -> Option<StoreError> {
    let record: Value =
        serde_json::from_str(&std::fs::read_to_string(record_file(dir)).ok()?).ok()?;
    let mark = mark_of(&dir.join("hub.sqlite"))?;
    (record["of"] == mark).then(|| {
        StoreError::whole(StoreKind::Corrupt, record["sentence"].as_str().unwrap_or_default())
    })
}

/// Saves what is readable of a damaged store, once, and says where it is and how to go on. The hub
/// must not have it open.
pub fn save_damaged(dir: &Path, error: &StoreError) -> StoreError {
    if let Some(known) = known_damage(dir) {
        return known;
    }
    let path = dir.join("hub.sqlite");
    let file = dated(dir, "salvaged", ".sqlite");
    let found = format!("the hub's store {} is damaged ({})", path.display(), error.said);
    let (shown, way) =
        (file.display(), "a backup comes back with `agent-relay hub restore BACKUP`");
    let sentence = match salvage(&path, &file, PLAN) {
        Ok(saved) => format!(
            "{found}; what is readable was saved in {shown} ({}); continue with it by `agent-relay hub restore {shown}`, or {way}",
            saved.describe()
        ),
        Err(failed) if failed.kind == StoreKind::Corrupt => {
            format!("{found}; nothing in it can be read; {way}")
        }
        // Not for good: the next start tries again.
        Err(failed) => {
            return StoreError::whole(
                StoreKind::Corrupt,
                format!("{found}; {}; {way}", failed.text),
            );
        }
    };
    let record = json!({"of": mark_of(&path), "file": file, "sentence": sentence});
    if let Err(failed) = os::write_private_file(&record_file(dir), &record.to_string()) {
        log::warn!(target: "hub", "cannot write {}: {failed}", record_file(dir).display());
    }
    StoreError::whole(StoreKind::Corrupt, sentence)
}

/// Saves the content of an open file that was deleted: it exists as long as it is open.
pub fn save_open(db: &Connection, path: &Path, moved: FileLoss) -> StoreError {
    let found =
        format!("the hub's store {} {} while the hub ran", path.display(), moved.describe());
    let spare = dated(path.parent().unwrap_or(path), "salvaged", ".sqlite");
    let text = match rescue(db, path, moved, &spare) {
        Ok(None) => {
            format!("{found}; all that it held was put back; start the hub again to use it")
        }
        Ok(Some(place)) => {
            let shown = place.display();
            format!(
                "{found}; all that it held was saved in {shown}; continue with it by `agent-relay hub restore {shown}`"
            )
        }
        Err(failed) => {
            format!(
                "{found}; what it held could not be saved: {failed}; a backup comes back with `agent-relay hub restore BACKUP`"
            )
        }
    };
    StoreError::whole(StoreKind::Gone, text)
}

/// Files of earlier damage that lie in a hub's folder.
pub fn lying_there(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("salvaged-") && name.ends_with(".sqlite")
        })
        .collect();
    found.sort();
    found
}

/// Where it is noted that a store was found empty although a hub had kept its data there.
pub fn emptied_file(dir: &Path) -> PathBuf {
    dir.join("found-empty.json")
}

/// Looks, before the store is opened, whether it is empty or missing although files beside it show
/// that a hub has kept its data there. Gives a sentence about that and keeps it in a file.
pub fn found_empty(home: &Path, dir: &Path) -> Option<String> {
    let path = dir.join("hub.sqlite");
    let bytes = std::fs::metadata(&path).map_or(0, |meta| meta.len());
    let log = std::fs::metadata(beside(&path, "-wal")).map_or(0, |meta| meta.len());
    // A hub's first start leaves its root token; later ones their mark.
    let was_there =
        [home.join("hub-mark.json"), dir.join("root-token")].iter().any(|file| file.is_file());
    if bytes > 0 || log > 0 || !was_there {
        return None;
    }
    let sentence = format!(
        "the hub's store {} {} although a hub has kept its data there: messages, tasks and tokens are gone, and it begins anew; \
         a backup comes back with `agent-relay hub restore BACKUP` while no hub runs",
        path.display(),
        if path.is_file() { "is empty" } else { "does not exist" }
    );
    let note = json!({"at": crate::log::timestamp(), "sentence": sentence});
    if let Err(error) = os::write_private_file(&emptied_file(dir), &note.to_string()) {
        log::warn!(target: "hub", "cannot write {}: {error}", emptied_file(dir).display());
    }
    Some(sentence)
}

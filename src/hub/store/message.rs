//! Messages as they are written.

use rusqlite::{OptionalExtension, Transaction, params};
use serde_json::Value;

use super::Committed;
use crate::core::hub::written::WrittenMessage;
use crate::core::ids::MessageId;
use crate::wire::api::{Message, USER};

/// Messages that one message can answer.
const ANSWERS_MAX: usize = 4096;

/// A message, if it was sent by or to somebody, or by whom all is seen.
pub(super) const SEEN: &str = "FROM messages m WHERE m.id = ?1 AND (?3 OR m.sender = ?2
  OR EXISTS (SELECT 1 FROM recipients r WHERE r.recipient = ?2 AND r.message = ?1))";

/// Column `session` marks rows that nobody has to acknowledge: the mirror, and whatever people get.
pub(super) fn add_recipient(
    db: &Transaction<'_>,
    message: MessageId,
    recipient: &str,
    mirror: bool,
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT OR IGNORE INTO recipients (recipient, message, session, mirror) VALUES (?1, ?2, ?3, ?4)",
    )?
        .execute(params![recipient, message, mirror || recipient == USER, mirror])
        .map(|_| ())
}

/// A message with what is not in it.
pub(super) struct Posted<'a> {
    pub(super) message: &'a WrittenMessage,
    pub(super) recipients: &'a [String],
    /// Idempotency key of the sender.
    pub(super) key: Option<&'a str>,
    /// Its sender may see every message.
    pub(super) sees_all: bool,
}

pub(super) fn put_message(
    db: &Transaction<'_>,
    posted: &Posted<'_>,
    committed: &mut Committed,
) -> rusqlite::Result<()> {
    let (alone, thread) = attach(db, posted)?;
    let alone = alone.map(|alone| {
        // It is kept, but it hangs on nothing.
        committed.unattached.push(alone.clone());
        WrittenMessage::from(alone)
    });
    let message = alone.as_ref().unwrap_or(posted.message);
    let thread = thread.unwrap_or(message.id);
    if !insert_message(db, message, posted.key, thread)? {
        if let Some(first) = message_of_key(db, &message.from, posted.key)? {
            committed.existing.push((message.id, first));
        }
        return Ok(());
    }
    for recipient in posted.recipients {
        add_recipient(db, message.id, recipient, message.is_session_mirror())?;
    }
    settle_obligations(db, message, thread)
}

/// The message without what its sender cannot see, where that is less, and the thread that it
/// joins: whoever cannot see a message neither answers it nor joins its thread.
fn attach(
    db: &Transaction<'_>,
    posted: &Posted<'_>,
) -> rusqlite::Result<(Option<Message>, Option<MessageId>)> {
    let Posted { message, sees_all, .. } = *posted;
    let answers = message.payload.get("answers").and_then(Value::as_array);
    if message.reply_to.is_none() && answers.is_none() {
        return Ok((None, None));
    }
    let mut visible = db.prepare_cached(&format!("SELECT thread {SEEN}"))?;
    let mut thread_of = |id: MessageId| -> rusqlite::Result<Option<MessageId>> {
        visible.query_row(params![id, message.from, sees_all], |row| row.get(0)).optional()
    };
    let mut thread = None;
    let mut stored: Option<Message> = None;
    let whole: &Message = message;
    if let Some(id) = message.reply_to {
        thread = thread_of(id)?;
        if thread.is_none() {
            stored.get_or_insert_with(|| whole.clone()).reply_to = None;
        }
    }
    if let Some(answers) = answers {
        let mut seen = Vec::with_capacity(answers.len());
        for id in answers.iter().take(ANSWERS_MAX) {
            let known = match id.as_u64() {
                Some(id) => thread_of(MessageId(id))?.is_some(),
                None => false,
            };
            seen.extend(known.then(|| id.clone()));
        }
        if seen.len() < answers.len() {
            let stored = stored.get_or_insert_with(|| whole.clone());
            stored.payload.insert("answers".into(), Value::Array(seen));
        }
    }
    Ok((stored, thread))
}

/// False: a message of this sender has the key already.
fn insert_message(
    db: &Transaction<'_>,
    message: &WrittenMessage,
    key: Option<&str>,
    thread: MessageId,
) -> rusqlite::Result<bool> {
    let inserted = db
        .prepare_cached(
            "INSERT OR IGNORE INTO messages (id, doc, sender, kind, target, key, reply_to, thread, wants_reply, claimable, task, offered, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?10, ?12)",
        )?
        .execute(params![
            message.id,
            message.text(),
            message.from,
            message.kind.as_str(),
            message.to,
            key,
            message.reply_to,
            thread,
            message.expects_reply(),
            message.claimable,
            message.task_id(),
            message.created_at,
        ])?;
    Ok(inserted > 0)
}

fn message_of_key(
    db: &Transaction<'_>,
    sender: &str,
    key: Option<&str>,
) -> rusqlite::Result<Option<Message>> {
    let mut statement =
        db.prepare_cached("SELECT doc FROM messages WHERE sender = ?1 AND key = ?2")?;
    let doc: Option<String> =
        statement.query_row(params![sender, key], |row| row.get(0)).optional()?;
    Ok(doc.and_then(|doc| serde_json::from_str(&doc).ok()))
}

/// A reply settles what its sender owes: that message, what else it names, and the thread's other
/// questions.
fn settle_obligations(
    db: &Transaction<'_>,
    message: &Message,
    thread: MessageId,
) -> rusqlite::Result<()> {
    let Some(reply_to) = message.reply_to else { return Ok(()) };
    db.prepare_cached(
        "DELETE FROM obligations WHERE agent = ?1 AND (message = ?2 OR (sender = ?3 AND thread = ?4))",
    )?
    .execute(params![message.from, reply_to, message.to, thread])?;
    let answers = message.payload.get("answers").and_then(Value::as_array);
    for id in answers.into_iter().flatten().filter_map(Value::as_i64) {
        db.prepare_cached("DELETE FROM obligations WHERE agent = ?1 AND message = ?2")?
            .execute(params![message.from, id])?;
    }
    Ok(())
}

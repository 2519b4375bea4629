//! Old messages go, a few at a time.

use rusqlite::{Transaction, params};

use crate::core::hub::event::Retired;
use crate::core::ids::MessageId;
use crate::wire::api::CommandStatus;

/// Deletes old messages with their claims, marks and reactions. The newest message and task stay,
/// since further ids continue from theirs. What is offered stays until it is settled.
pub(super) fn retain(
    db: &Transaction<'_>,
    session_before: i64,
    before: i64,
    limit: u64,
    retired: &mut Retired,
) -> rusqlite::Result<()> {
    let newest: MessageId =
        db.query_row("SELECT coalesce(max(id), 0) FROM messages", [], |row| row.get(0))?;
    let oldest = |class: &str, before: i64| -> rusqlite::Result<Vec<MessageId>> {
        let below = if crate::planted::is("reused-id") { "<=" } else { "<" };
        let sql = format!(
            "SELECT id, created_at FROM messages WHERE {class} AND id {below} ?1 ORDER BY id LIMIT ?2"
        );
        let mut statement = db.prepare_cached(&sql)?;
        let rows: Vec<(MessageId, i64)> = statement
            .query_map(params![newest, limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(rows
            .into_iter()
            .take_while(|(_, created)| *created < before)
            .map(|(id, _)| id)
            .collect())
    };
    let session = oldest("kind = 'session' AND offered = 0", session_before)?;
    let other = oldest("kind <> 'session' AND offered = 0", before)?;
    // Offers that nobody has claimed in all that time go too; blocked tasks wait for a person.
    let blocked =
        "EXISTS (SELECT 1 FROM tasks t WHERE t.message = messages.id AND t.status = 'blocked')";
    let offers = oldest(&format!("offered = 1 AND claimed_by IS NULL AND NOT {blocked}"), before)?;
    retired.more |= [&session, &other, &offers].iter().any(|ids| ids.len() as u64 == limit);
    retired.offers.extend(offers.iter().copied());
    for id in session.iter().chain(&other).chain(&offers) {
        let mut waiting = db.prepare_cached(
            "SELECT recipient FROM recipients WHERE message = ?1 AND acked = 0 AND session = 0",
        )?;
        let waiting: Vec<String> =
            waiting.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        retired.unacknowledged.extend(waiting.into_iter().map(|recipient| (recipient, *id)));
        for sql in [
            "DELETE FROM recipients WHERE message = ?1",
            "DELETE FROM reactions WHERE message = ?1",
            "DELETE FROM obligations WHERE message = ?1",
            "DELETE FROM task_history WHERE task IN
               (SELECT id FROM tasks WHERE message = ?1 AND id < (SELECT max(id) FROM tasks))",
            "DELETE FROM tasks WHERE message = ?1 AND id < (SELECT max(id) FROM tasks)",
            "DELETE FROM messages WHERE id = ?1",
        ] {
            db.prepare_cached(sql)?.execute([id])?;
        }
        retired.count += 1;
    }
    let mut commands = db.prepare_cached(
        "SELECT seq, status, json_extract(doc, '$.createdAt') FROM commands ORDER BY seq LIMIT ?1",
    )?;
    let old: Vec<(i64, String, Option<i64>)> = commands
        .query_map([limit as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let all_old = old.len() as u64 == limit
        && old.iter().all(|(_, status, created)| {
            created.unwrap_or(0) < before && CommandStatus::from(status.as_str()).is_final()
        });
    retired.more |= all_old;
    for (seq, status, created) in old {
        if created.unwrap_or(0) < before && CommandStatus::from(status).is_final() {
            db.prepare_cached("DELETE FROM commands WHERE seq = ?1")?.execute([seq])?;
        }
    }
    Ok(())
}

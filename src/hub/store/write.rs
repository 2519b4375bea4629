//! Operations of the hub's machine as statements.

use rusqlite::{ToSql, Transaction, params};

use super::message::{Posted, SEEN, add_recipient, put_message};
use super::tasks::{block_open, mark_task, put_task};
use super::{Committed, put_facts};
use crate::core::hub::event::{HubOp, StoredAgent};
use crate::core::hub::generations::StoredGeneration;
use crate::core::ids::MessageId;
use crate::wire::api::{Command, CommandStatus, TokenRecord, USER};

/// Nobody will acknowledge what waits for this recipient.
const DROP_QUEUE: &str =
    "UPDATE recipients SET acked = 1, reason = 'agent deleted' WHERE recipient = ?1 AND acked = 0";

/// Carries out one operation.
pub(super) fn apply(
    db: &Transaction<'_>,
    op: &HubOp,
    committed: &mut Committed,
) -> rusqlite::Result<()> {
    match op {
        HubOp::MessagePut { message, recipients, key, sees_all } => {
            let (key, sees_all) = (key.as_deref(), *sees_all);
            put_message(db, &Posted { message, recipients, key, sees_all }, committed)
        }
        HubOp::RecipientAdd { message, recipient } => add_recipient(db, *message, recipient, false),
        HubOp::Acked { message, recipient } => {
            let sql = "UPDATE recipients SET acked = 1 WHERE recipient = ?1 AND message = ?2";
            run(db, sql, params![recipient, message])
        }
        HubOp::Read { message, recipient, at, reason } => {
            mark_read(db, *message, recipient, *at, reason.as_deref())
        }
        HubOp::Reacted { message, agent, emoji, at, sees_all } => {
            let seen = put_reaction(db, *message, agent, emoji, *at, *sees_all)?;
            committed.unseen.extend((!seen).then(|| (*message, agent.clone())));
            Ok(())
        }
        HubOp::ClaimPut { message, agent, expires_at } => {
            let sql = "UPDATE messages SET claimed_by = ?2, claim_expires_at = ?3 WHERE id = ?1";
            run(db, sql, params![message, agent, expires_at])
        }
        HubOp::ClaimEnd { message, reoffer: true, .. } => offer_again(db, *message),
        HubOp::ClaimEnd { message, reoffer: false, at } => {
            run(db, "UPDATE messages SET offered = 0 WHERE id = ?1", params![message])?;
            read_by_all(db, *message, *at, "settled")
        }
        HubOp::OfferHeld { message, at } => {
            end_claim(db, *message)?;
            run(db, "DELETE FROM obligations WHERE message = ?1", params![message])?;
            read_by_all(db, *message, *at, "blocked")
        }
        HubOp::Unresolved { message, until } => {
            let sql = "UPDATE messages SET unresolved_until = ?2 WHERE id = ?1";
            run(db, sql, params![message, until])
        }
        HubOp::TaskPut(task) => put_task(db, task),
        HubOp::TaskMark { id, status, agent, entry, at } => {
            mark_task(db, *id, status, agent.as_deref(), entry, *at)
        }
        HubOp::CommandPut(command) => put_command(db, command),
        HubOp::AgentPut(agent) => put_agent(db, agent),
        HubOp::AgentDelete { id } => run(db, "DELETE FROM agents WHERE id = ?1", params![id]),
        HubOp::QueueDrop { recipient } => run(db, DROP_QUEUE, params![recipient]),
        HubOp::TokenPut { hash, record } => put_token(db, hash, record),
        HubOp::TokenDelete { hash } | HubOp::TokenRevoke { hash, .. } => {
            run(db, "DELETE FROM tokens WHERE hash = ?1", params![hash])
        }
        HubOp::Adopt { generation, messages_end, tasks_end, starts, copy, at } => {
            if let Some(generation) = generation {
                put_generation(db, generation, *at)?;
            }
            put_facts(db, &[("messages_end", messages_end.0), ("tasks_end", tasks_end.0)])?;
            put_facts(db, &[("starts", *starts), ("copied", 0)])?;
            if *copy { end_what_was_under_way(db, *at) } else { Ok(()) }
        }
        HubOp::Reserve { messages_end, tasks_end } => {
            put_facts(db, &[("messages_end", messages_end.0), ("tasks_end", tasks_end.0)])
        }
        HubOp::Retain { .. } => Ok(()), // by the caller, who tells what went
    }
}

/// False: whoever reacts cannot see the message.
fn put_reaction(
    db: &Transaction<'_>,
    message: MessageId,
    agent: &str,
    emoji: &str,
    at: i64,
    sees_all: bool,
) -> rusqlite::Result<bool> {
    let sees = db
        .prepare_cached(&format!("SELECT 1 {SEEN}"))?
        .exists(params![message, agent, sees_all])?;
    if sees {
        let sql =
            "INSERT OR IGNORE INTO reactions (message, agent, emoji, at) VALUES (?1, ?2, ?3, ?4)";
        run(db, sql, params![message, agent, emoji, at])?;
        let sql = "DELETE FROM obligations WHERE agent = ?1 AND message = ?2";
        run(db, sql, params![agent, message])?;
    }
    Ok(sees)
}

/// The claim ends, and whoever can take the message gets it again.
fn offer_again(db: &Transaction<'_>, message: MessageId) -> rusqlite::Result<()> {
    end_claim(db, message)?;
    let sql = "UPDATE recipients SET acked = 0, read_at = NULL, reason = NULL WHERE message = ?1";
    run(db, sql, params![message])
}

fn put_token(db: &Transaction<'_>, hash: &str, record: &TokenRecord) -> rusqlite::Result<()> {
    let record = serde_json::to_string(record).expect("plain data");
    let sql = "INSERT OR REPLACE INTO tokens (hash, record) VALUES (?1, ?2)";
    run(db, sql, params![hash, record])
}

fn run(db: &Transaction<'_>, sql: &str, values: &[&dyn ToSql]) -> rusqlite::Result<()> {
    db.prepare_cached(sql)?.execute(values).map(|_| ())
}

/// Whoever reads a question owes an answer, unless it is there already. A reason says that it was
/// not read by an agent.
fn mark_read(
    db: &Transaction<'_>,
    message: MessageId,
    recipient: &str,
    at: i64,
    reason: Option<&str>,
) -> rusqlite::Result<()> {
    run(
        db,
        "UPDATE recipients SET read_at = coalesce(read_at, ?3), acked = 1, reason = coalesce(?4, reason)
         WHERE recipient = ?1 AND message = ?2",
        params![recipient, message, at, reason],
    )?;
    if reason.is_some() || recipient == USER {
        return Ok(());
    }
    run(
        db,
        "INSERT OR IGNORE INTO obligations (agent, message, sender, subject, thread, created_at)
         SELECT ?1, m.id, m.sender, json_extract(m.doc, '$.subject'), m.thread, m.created_at FROM messages m
         WHERE m.id = ?2 AND m.wants_reply = 1 AND m.sender <> ?1
           AND EXISTS (SELECT 1 FROM recipients r WHERE r.recipient = ?1 AND r.message = ?2)
           AND NOT EXISTS (SELECT 1 FROM messages a WHERE a.reply_to = ?2 AND a.sender = ?1)
           AND NOT EXISTS (SELECT 1 FROM reactions x WHERE x.message = ?2 AND x.agent = ?1)",
        params![recipient, message],
    )
}

fn end_claim(db: &Transaction<'_>, message: MessageId) -> rusqlite::Result<()> {
    run(
        db,
        "UPDATE messages SET claimed_by = NULL, claim_expires_at = NULL WHERE id = ?1",
        params![message],
    )
}

fn read_by_all(
    db: &Transaction<'_>,
    message: MessageId,
    at: i64,
    reason: &str,
) -> rusqlite::Result<()> {
    let sql = "UPDATE recipients SET acked = 1, read_at = ?2, reason = ?3 WHERE message = ?1 AND read_at IS NULL";
    run(db, sql, params![message, at, reason])
}

fn put_command(db: &Transaction<'_>, command: &Command) -> rusqlite::Result<()> {
    let doc = serde_json::to_string(command).expect("plain data");
    let sql = "INSERT INTO commands (id, doc, target, status) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (id) DO UPDATE SET doc = ?2, status = ?4";
    run(db, sql, params![command.id, doc, command.target, command.status.as_str()])
}

fn put_agent(db: &Transaction<'_>, agent: &StoredAgent) -> rusqlite::Result<()> {
    let registration = serde_json::to_string(&agent.registration).expect("plain data");
    let components = serde_json::to_string(&agent.components).expect("plain data");
    let ended = agent.ended.as_ref().map(|it| serde_json::to_string(it).expect("plain data"));
    run(
        db,
        "INSERT OR REPLACE INTO agents (id, registration, epoch, label, last_seen, policy, spawned_by, components, ended)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![agent.id, registration, agent.epoch as i64, agent.label, agent.last_seen, agent.policy, agent.spawned_by, components, ended],
    )
}

fn put_generation(
    db: &Transaction<'_>,
    generation: &StoredGeneration,
    at: i64,
) -> rusqlite::Result<()> {
    run(
        db,
        "INSERT INTO generations (name, first_message, first_task, follows_message, follows_task, at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![generation.name, generation.first_message, generation.first_task, generation.follows_message, generation.follows_task, at,],
    )
}

/// The data are a copy: tasks wait for a person, claims end, commands expire.
fn end_what_was_under_way(db: &Transaction<'_>, at: i64) -> rusqlite::Result<()> {
    block_open(db, at)?;
    db.execute(
        "UPDATE messages SET claimed_by = NULL, claim_expires_at = NULL WHERE offered = 1",
        [],
    )?;
    let mut pending = db.prepare(
        "SELECT seq, doc FROM commands WHERE status IN ('pending', 'accepted', 'running')",
    )?;
    let pending: Vec<(i64, String)> =
        pending.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    for (seq, doc) in pending {
        let Ok(mut command) = serde_json::from_str::<Command>(&doc) else { continue };
        (command.status, command.error, command.updated_at) =
            (CommandStatus::Expired, Some("the hub's data were put back".into()), at);
        let doc = serde_json::to_string(&command).expect("plain data");
        db.prepare_cached("UPDATE commands SET doc = ?2, status = 'expired' WHERE seq = ?1")?
            .execute(params![seq, doc])?;
    }
    Ok(())
}

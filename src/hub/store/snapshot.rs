//! What a hub starts from.

use rusqlite::Connection;

use super::{HubStore, data_state};
use crate::core::hub::event::{
    HubSnapshot, StoredAgent, StoredClaim, StoredOffer, StoredTask, StoredUnresolved,
};
use crate::core::ids::MessageId;
use crate::wire::api::{Command, TokenRecord};

impl HubStore {
    /// All that a hub starts from: live indexes only; bodies stay in the file.
    pub fn snapshot(&self) -> rusqlite::Result<HubSnapshot> {
        let db = &self.db;
        let (last_message, last_task) = self.highest_ids()?;
        let open = "SELECT doc FROM commands WHERE status IN ('pending', 'accepted', 'running') ORDER BY seq";
        Ok(HubSnapshot {
            data: data_state(db)?,
            mark: None,
            last_message,
            last_task,
            unacknowledged: unacknowledged(db)?,
            agents: agents(db)?,
            senders: senders(db)?,
            offers: offers(db)?,
            tasks: tasks(db)?,
            unresolved: unresolved(db)?,
            commands: docs::<Command>(db, open)?,
            tokens: tokens(db)?,
        })
    }
}

/// Ids by recipient, ascending.
fn unacknowledged(db: &Connection) -> rusqlite::Result<Vec<(String, Vec<MessageId>)>> {
    let mut all: Vec<(String, Vec<MessageId>)> = Vec::new();
    let mut statement = db.prepare(
        "SELECT recipient, message FROM recipients
         WHERE acked = 0 AND session = 0 AND recipient <> 'user' ORDER BY recipient, message",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (recipient, id): (String, MessageId) = (row.get(0)?, row.get(1)?);
        match all.last_mut() {
            Some((last, ids)) if *last == recipient => ids.push(id),
            _ => all.push((recipient, vec![id])),
        }
    }
    Ok(all)
}

fn agents(db: &Connection) -> rusqlite::Result<Vec<StoredAgent>> {
    let mut statement =
        db.prepare("SELECT id, registration, epoch, label, last_seen, policy, spawned_by, components, ended FROM agents ORDER BY id")?;
    let agents = statement.query_map([], |row| {
        let (registration, components): (String, String) = (row.get(1)?, row.get(7)?);
        Ok(StoredAgent {
            id: row.get(0)?,
            registration: serde_json::from_str(&registration).unwrap_or_default(),
            epoch: row.get::<_, i64>(2)? as u64,
            label: row.get(3)?,
            last_seen: row.get(4)?,
            policy: row.get(5)?,
            spawned_by: row.get(6)?,
            components: serde_json::from_str(&components).unwrap_or_default(),
            ended: row
                .get::<_, Option<String>>(8)?
                .and_then(|text| serde_json::from_str(&text).ok()),
        })
    })?;
    agents.collect()
}

/// Who has sent what waits for an agent.
fn senders(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare(
        "SELECT DISTINCT m.sender FROM recipients r JOIN messages m ON m.id = r.message
         WHERE r.acked = 0 AND r.session = 0 AND r.recipient <> 'user' AND m.sender <> 'user'",
    )?;
    let senders = statement.query_map([], |row| row.get(0))?;
    senders.collect()
}

fn offers(db: &Connection) -> rusqlite::Result<Vec<StoredOffer>> {
    let mut statement = db.prepare(
        "SELECT id, task, claimed_by, claim_expires_at FROM messages WHERE offered = 1 ORDER BY id",
    )?;
    let offers = statement.query_map([], |row| {
        let claimed_by: Option<String> = row.get(2)?;
        Ok(StoredOffer {
            message: row.get(0)?,
            task: row.get(1)?,
            recipients: Vec::new(),
            claim: claimed_by.map(|agent| StoredClaim {
                agent,
                expires_at: row.get(3).unwrap_or(0),
                is_read: false,
            }),
        })
    })?;
    let mut offers: Vec<StoredOffer> = offers.collect::<Result<_, _>>()?;
    for offer in &mut offers {
        let mut statement =
            db.prepare_cached("SELECT recipient, read_at IS NOT NULL FROM recipients WHERE message = ?1 ORDER BY recipient")?;
        let recipients =
            statement.query_map([offer.message], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let recipients: Vec<(String, bool)> = recipients.collect::<Result<_, _>>()?;
        if let Some(claim) = &mut offer.claim {
            claim.is_read =
                recipients.iter().any(|(recipient, read)| *recipient == claim.agent && *read);
        }
        offer.recipients = recipients.into_iter().map(|(recipient, _)| recipient).collect();
    }
    Ok(offers)
}

fn tasks(db: &Connection) -> rusqlite::Result<Vec<StoredTask>> {
    let mut statement = db.prepare(
        "SELECT t.id, t.message, t.status, t.restored, coalesce(m.sender, '')
         FROM tasks t LEFT JOIN messages m ON m.id = t.message
         WHERE t.status NOT IN ('done', 'failed', 'cancelled') ORDER BY t.id",
    )?;
    let tasks = statement.query_map([], |row| {
        Ok(StoredTask {
            id: row.get(0)?,
            message: row.get(1)?,
            status: row.get::<_, String>(2)?.into(),
            restored: row.get(3)?,
            sender: row.get(4)?,
        })
    })?;
    tasks.collect()
}

/// Messages whose target nobody fits yet.
fn unresolved(db: &Connection) -> rusqlite::Result<Vec<StoredUnresolved>> {
    let mut statement = db.prepare(
        "SELECT id, target, claimable, sender, unresolved_until FROM messages
         WHERE unresolved_until IS NOT NULL ORDER BY id",
    )?;
    let unresolved = statement.query_map([], |row| {
        Ok(StoredUnresolved {
            id: row.get(0)?,
            target: row.get(1)?,
            claimable: row.get(2)?,
            sender: row.get(3)?,
            until: row.get(4)?,
        })
    })?;
    unresolved.collect()
}

/// Records by the hash of their token; one that cannot be read is none.
fn tokens(db: &Connection) -> rusqlite::Result<Vec<(String, TokenRecord)>> {
    let mut statement = db.prepare("SELECT hash, record FROM tokens ORDER BY hash")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let record =
        |(hash, record): (String, String)| Some((hash, serde_json::from_str(&record).ok()?));
    Ok(rows.filter_map(|row| row.ok()).filter_map(record).collect())
}

fn docs<T: serde::de::DeserializeOwned>(db: &Connection, sql: &str) -> rusqlite::Result<Vec<T>> {
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.filter_map(|row| row.ok()).filter_map(|doc| serde_json::from_str(&doc).ok()).collect())
}

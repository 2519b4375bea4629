//! Tasks as they are written: what changes stands in columns, and each change is one row more of
//! the history, whatever came before it.

use rusqlite::{Transaction, params};
use serde_json::{Value, json};

use crate::core::hub::generations::RESTORED;
use crate::core::ids::TaskId;
use crate::wire::api::{Task, TaskStatus};

/// Entries of one history; what comes after them is not kept.
const HISTORY_MAX: i64 = 1000;

const OPEN: &str = "status NOT IN ('done', 'failed', 'cancelled')";

pub(super) fn put_task(db: &Transaction<'_>, task: &Task) -> rusqlite::Result<()> {
    let doc = Task { history: Vec::new(), ..task.clone() };
    let doc = serde_json::to_string(&doc).expect("plain data");
    let inserted = db
        .prepare_cached(
            "INSERT OR IGNORE INTO tasks (id, doc, status, message, agent, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            task.id,
            doc,
            task.status.as_str(),
            task.message_id,
            task.agent_id,
            task.updated_at
        ])?;
    let known = inserted == 0;
    task.history.iter().filter(|_| !known).try_for_each(|entry| append(db, task.id, entry))
}

fn append(db: &Transaction<'_>, id: TaskId, entry: &Value) -> rusqlite::Result<()> {
    let most = if crate::planted::is("endless-history") { i64::MAX } else { HISTORY_MAX };
    db.prepare_cached(
        "INSERT INTO task_history (task, number, entry)
         SELECT t.id, h.newest + 1, ?2 FROM tasks t,
           (SELECT coalesce(max(number), 0) AS newest FROM task_history WHERE task = ?1) h
         WHERE t.id = ?1 AND h.newest < ?3",
    )?
    .execute(params![id, entry.to_string(), most])
    .map(|_| ())
}

pub(super) fn mark_task(
    db: &Transaction<'_>,
    id: TaskId,
    status: &TaskStatus,
    agent: Option<&str>,
    entry: &Value,
    at: i64,
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "UPDATE tasks SET status = ?2, agent = ?3, updated_at = ?4, restored = 0 WHERE id = ?1",
    )?
    .execute(params![id, status.as_str(), agent, at])?;
    append(db, id, entry)?;
    if status.is_final() {
        // Who finished a task owes no answer for it.
        db.prepare_cached(
            "DELETE FROM obligations WHERE agent = ?1 AND message = (SELECT message FROM tasks WHERE id = ?2)",
        )?
        .execute(params![agent, id])?;
    }
    Ok(())
}

/// The data are a copy: unfinished tasks wait for a person.
pub(super) fn block_open(db: &Transaction<'_>, at: i64) -> rusqlite::Result<()> {
    let mut open = db.prepare(&format!("SELECT id FROM tasks WHERE {OPEN}"))?;
    let open: Vec<TaskId> = open.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let entry = json!({"status": TaskStatus::Blocked, "at": at, "by": null, "body": RESTORED});
    open.into_iter().try_for_each(|id| append(db, id, &entry))?;
    let sql =
        format!("UPDATE tasks SET status = 'blocked', updated_at = ?1, restored = 1 WHERE {OPEN}");
    db.execute(&sql, [at]).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::super::schema::SCHEMAS;
    use super::*;
    use crate::core::hub::event::{HubOp, Query, ReadAnswer};
    use crate::edge::database::open_database;
    use crate::hub::store::HubStore;

    fn task(store: &HubStore, id: u64) -> Value {
        match store.answer(&Query::Task { id: TaskId(id), viewer: None }) {
            ReadAnswer::Json(task) => task,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_change_of_a_task_is_one_row_more_and_its_history_ends_somewhere() {
        let mut store = HubStore::in_memory().expect("memory");
        let put = Task {
            id: TaskId(1),
            title: "t".into(),
            status: TaskStatus::Open,
            history: vec![json!({"status": "open", "at": 1})],
            ..Default::default()
        };
        store.commit_ops(&[HubOp::TaskPut(put)]).expect("commits");
        let doc = |store: &HubStore| -> String {
            store.db.query_row("SELECT doc FROM tasks", [], |row| row.get(0)).expect("one")
        };
        let before = doc(&store);
        let note = |at: i64, body: &str, status: &str| HubOp::TaskMark {
            id: TaskId(1),
            status: status.into(),
            agent: Some("a".into()),
            entry: json!({"status": status, "at": at, "body": body}),
            at,
        };
        for at in 2..=1200 {
            store.commit_ops(&[note(at, "x", "in_progress")]).expect("commits");
        }
        assert_eq!(doc(&store), before, "what is there already is not written again");
        let shown = task(&store, 1);
        let history = shown["history"].as_array().expect("a list");
        assert_eq!(history.len() as i64, HISTORY_MAX);
        assert_eq!((&history[0]["at"], &history[999]["at"]), (&json!(1), &json!(1000)));
        assert_eq!(
            (&shown["status"], &shown["agentId"], &shown["updatedAt"]),
            (&json!("in_progress"), &json!("a"), &json!(1200))
        );
    }

    #[test]
    fn an_answer_holds_the_newest_of_a_long_history() {
        let mut store = HubStore::in_memory().expect("memory");
        for id in 1..=3 {
            let put = Task { id: TaskId(id), status: TaskStatus::Open, ..Default::default() };
            store.commit_ops(&[HubOp::TaskPut(put)]).expect("commits");
            for at in 1..=20 {
                let entry = json!({"status": "in_progress", "at": at, "body": "x".repeat(1 << 19)});
                let (id, status) = (TaskId(id), TaskStatus::InProgress);
                let mark = HubOp::TaskMark { id, status, agent: None, entry, at };
                store.commit_ops(&[mark]).expect("commits");
            }
        }
        let ReadAnswer::Json(all) = store.answer(&Query::Tasks { status: None, viewer: None })
        else {
            panic!("a list")
        };
        let tasks = all["tasks"].as_array().expect("a list");
        assert_eq!(tasks.len(), 3, "each is told");
        assert!(tasks.iter().all(|task| task["history"].as_array().is_some_and(|history| {
            history.last().is_some_and(|newest| newest["at"] == json!(20))
        })));
        let bytes = all.to_string().len();
        assert!(bytes < 7 << 20, "{bytes} bytes of thirty million");
    }

    #[test]
    fn tasks_of_an_older_file_keep_their_history() {
        let dir = std::env::temp_dir().join(format!("agent-relay-tasks-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temp dir");
        let path = dir.join("hub.sqlite");
        let old = json!({
            "id": 4, "title": "t", "body": "b", "status": "blocked", "messageId": 9, "agentId": "a",
            "createdAt": 1, "updatedAt": 3, "generation": "g",
            "history": [{"status": "open", "at": 1, "by": "user"}, {"status": "blocked", "at": 3, "body": "a \"quoted\" why"}],
        });
        {
            let db = open_database(&path, &SCHEMAS[..6]).expect("opens").db;
            let sql = "INSERT INTO tasks (id, doc, status, message) VALUES (?1, ?2, 'blocked', 9)";
            db.execute(sql, params![4, old.to_string()]).expect("fills");
            db.execute(sql, params![5, "damaged"]).expect("fills");
        }
        let store = HubStore::open(&path).expect("opens");
        assert_eq!(task(&store, 4), old);
        assert!(dir.join("hub.sqlite.before-7").exists(), "the older file is kept");
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}

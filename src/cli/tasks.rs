//! `tasks`: list them, show one, move one on.

use serde_json::{Value, json};

use super::args::Tasks;
use super::client::Client;
use super::exit::{Failure, OK, Outcome};
use super::messages::BODY;
use super::print;
use crate::config::Global;
use crate::core::ids::TaskId;
use crate::wire::api::{TaskStatus, encode, path};

/// Words of the command line for the statuses of a task.
const MOVES: [(&str, TaskStatus); 6] = [
    ("start", TaskStatus::InProgress),
    ("block", TaskStatus::Blocked),
    ("done", TaskStatus::Done),
    ("fail", TaskStatus::Failed),
    ("cancel", TaskStatus::Cancelled),
    ("reopen", TaskStatus::Open),
];

fn id(word: Option<&&str>) -> Result<TaskId, Failure> {
    let word =
        word.ok_or_else(|| Failure::usage("say which task: `agent-relay tasks` lists them"))?;
    word.parse().map_err(|_| Failure::usage(format!("{word:?} is not a task id")))
}

/// `tasks`
pub fn tasks(tasks: &Tasks) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    let words: Vec<&str> = tasks.action.iter().map(String::as_str).collect();
    match words.first().copied() {
        None => list(&client, tasks),
        Some("show") => show(&client, id(words.get(1))?, tasks.json),
        Some("reopen") if tasks.all => reopen_all(&client, &words[1..].join(" ")),
        Some(word) => move_on(&client, word, &words[1..]),
    }
}

fn list(client: &Client, tasks: &Tasks) -> Outcome {
    let known: Vec<&str> = TaskStatus::KNOWN.iter().map(TaskStatus::as_str).collect();
    if let Some(status) = tasks.status.as_ref().filter(|status| !known.contains(&status.as_str())) {
        return Err(Failure::usage(format!(
            "--status must be one of {}, not {status:?}",
            known.join(", ")
        )));
    }
    let query = tasks
        .status
        .as_ref()
        .map(|status| format!("?status={}", encode(status)))
        .unwrap_or_default();
    let answer = client.call("GET", &format!("{}{query}", path::TASKS), None)?;
    list_tasks(answer["tasks"].as_array().map(Vec::as_slice).unwrap_or_default(), tasks.json)
}

fn show(client: &Client, id: TaskId, as_json: bool) -> Outcome {
    let task = client.call("GET", &path::task(id), None)?;
    if as_json {
        print::json(&task);
        return Ok(OK);
    }
    list_tasks(std::slice::from_ref(&task), false)?;
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or("-").to_string();
    print::block(BODY, BODY, &text(&task, "body"));
    for entry in task["history"].as_array().into_iter().flatten() {
        let age = print::format_duration(print::now_ms() - entry["at"].as_i64().unwrap_or(0));
        let said = entry["body"].as_str().map(|body| format!(": {body}")).unwrap_or_default();
        print::line(&format!(
            "  {age} ago {} by {}{said}",
            text(entry, "status"),
            text(entry, "by")
        ));
    }
    Ok(OK)
}

/// Moves a task to another status; what follows its id is the note.
fn move_on(client: &Client, word: &str, rest: &[&str]) -> Outcome {
    let Some((_, status)) = MOVES.iter().find(|(known, _)| *known == word) else {
        let known: Vec<&str> =
            ["show"].into_iter().chain(MOVES.iter().map(|(word, _)| *word)).collect();
        return Err(Failure::usage(format!(
            "there is no task action {word:?}; use one of {}",
            known.join(", ")
        )));
    };
    let id = id(rest.first())?;
    let note = rest.get(1..).unwrap_or_default().join(" ");
    let mut change = json!({"status": status, "agentId": client.speaker()?});
    if !note.is_empty() {
        change["body"] = json!(note);
    }
    client.call("PATCH", &path::task(id), Some(&change))?;
    print::line(&format!("task {id} is {status}"));
    Ok(OK)
}

fn list_tasks(tasks: &[Value], as_json: bool) -> Outcome {
    if as_json {
        tasks.iter().for_each(print::json);
        return Ok(OK);
    }
    if tasks.is_empty() {
        print::line("no tasks; make one with `agent-relay send TARGET --task TEXT`");
        return Ok(OK);
    }
    let mut rows =
        vec![["TASK", "STATUS", "SINCE", "AGENT", "MESSAGE", "TITLE"].map(String::from).to_vec()];
    for task in tasks {
        let text = |field: &str| task[field].as_str().unwrap_or("-").to_string();
        let since =
            print::format_duration(print::now_ms() - task["updatedAt"].as_i64().unwrap_or(0));
        rows.push(vec![
            task["id"].to_string(),
            text("status"),
            since,
            text("agentId"),
            format!("#{}", task["messageId"]),
            text("title"),
        ]);
    }
    print::table(&rows);
    // What waits for a person says why, and what the person can do.
    for task in tasks.iter().filter(|task| task["status"] == TaskStatus::Blocked.as_str()) {
        let last = task["history"]
            .as_array()
            .into_iter()
            .flatten()
            .rfind(|entry| entry["status"] == TaskStatus::Blocked.as_str());
        let why = last
            .and_then(|entry| entry["body"].as_str())
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        let why = why.lines().next().unwrap_or_default();
        let id = &task["id"];
        print::line(&format!(
            "task {id} is blocked{why}; `agent-relay tasks reopen {id}` offers it again"
        ));
    }
    Ok(OK)
}

/// `tasks reopen --all`
fn reopen_all(client: &Client, note: &str) -> Outcome {
    let mut opened = 0;
    let own = client.speaker()?;
    loop {
        let answer = client.call("GET", &format!("{}?status=blocked", path::TASKS), None)?;
        let listed = answer["tasks"].as_array().into_iter().flatten();
        let ids: Vec<TaskId> = listed.filter_map(|task| task["id"].as_u64()).map(TaskId).collect();
        if ids.is_empty() {
            print::line(if opened == 0 {
                "no task is blocked"
            } else {
                "no further task is blocked"
            });
            return Ok(OK);
        }
        for id in ids {
            let mut change = json!({"status": TaskStatus::Open, "agentId": own});
            if !note.is_empty() {
                change["body"] = json!(note);
            }
            client.call("PATCH", &path::task(id), Some(&change))?;
            print::line(&format!("task {id} is open"));
            opened += 1;
        }
    }
}

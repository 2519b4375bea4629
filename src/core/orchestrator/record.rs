//! What is remembered of each session, and the text of the file that holds it. A record is let go
//! of only when its session is proven to be over.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::options::{RestartRule, SpawnOptions};
use super::systemd::Ceilings;
use crate::core::ids::ProcessRef;

/// Who keeps the processes of a session together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Supervisor {
    /// `systemd` or `process`; what is none of both counts as `process`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its unit, without `.service`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The script that it was started by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch_script: Option<String>,
}

/// The word of [`Supervisor::kind`] for a unit.
pub const SYSTEMD: &str = "systemd";
/// The word of [`Supervisor::kind`] for a process group.
pub const PROCESS: &str = "process";

impl Supervisor {
    /// The unit, if systemd has it.
    pub fn unit(&self) -> Option<&str> {
        self.unit.as_deref().filter(|_| self.kind == SYSTEMD)
    }

    /// The word for it.
    pub fn name(&self) -> &'static str {
        if self.unit().is_some() { SYSTEMD } else { PROCESS }
    }
}

/// One session.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    pub name: String,
    /// 0: not known yet.
    pub pid: u32,
    /// Start time of that process, in clock ticks since the boot.
    pub start_time: u64,
    /// The boot of the machine that pid and start time belong to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    pub supervisor: Supervisor,
    pub provider: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effort: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    pub workspace_mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<Map<String, Value>>,
    pub label: String,
    pub cwd: String,
    pub log_file: String,
    pub runner_info_file: String,
    pub agent_id: String,
    pub approval_mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_name: Option<String>,
    pub spawn_request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub automation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub automation_run_id: Option<String>,
    /// ms since 1970.
    pub started_at: i64,
    /// Random text of its last start; its processes carry it in their environment.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub launch_id: String,
    /// One of [`RestartRule`]; empty: `on-failure`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub restart: String,
    #[serde(skip_serializing_if = "Ceilings::is_none")]
    pub ceilings: Ceilings,
    /// Why it is not started any more without being asked for; none while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parked: Option<String>,
    /// Somebody wants it to end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopping: bool,
    /// What other versions have written.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Record {
    /// The record of a session that is about to start for the first time.
    pub fn new(name: String, options: &SpawnOptions, ceilings: Ceilings) -> Record {
        Record {
            name,
            provider: options.provider.clone(),
            model: options.model.clone(),
            effort: options.effort.clone(),
            profile: options.profile.clone(),
            workspace_mode: options.workspace_mode().into(),
            workspace: options.workspace.clone(),
            approval_mode: options.approval_mode.clone(),
            policy_name: options.policy_name.clone(),
            automation_id: options.automation_id.clone(),
            automation_run_id: options.automation_run_id.clone(),
            restart: options.restart_rule().as_str().into(),
            ceilings,
            ..Record::default()
        }
    }

    /// Its main process, as it was known last.
    pub fn process(&self) -> ProcessRef {
        ProcessRef { pid: self.pid, start: self.start_time }
    }

    /// When it is started again.
    pub fn restart_rule(&self) -> RestartRule {
        RestartRule::parse(&self.restart).unwrap_or(RestartRule::OnFailure)
    }

    /// The workspace as it is reported: at least its mode.
    pub fn workspace(&self) -> Option<Value> {
        match (&self.workspace, self.workspace_mode.as_str()) {
            (Some(workspace), _) => Some(Value::Object(workspace.clone())),
            (None, "") => None,
            (None, mode) => Some(serde_json::json!({"mode": "shared", "requestedMode": mode})),
        }
    }
}

/// By what a session is named; the first key that is given decides.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Keys {
    pub session: Option<String>,
    pub spawn_request_id: Option<String>,
    pub agent_id: Option<String>,
    pub policy_name: Option<String>,
}

impl Keys {
    /// From parameters. A session has two names there, which mean the same.
    pub fn read(params: &Map<String, Value>) -> Keys {
        let text = |name: &str| {
            let told = params.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
            told.map(str::to_string)
        };
        Keys {
            session: text("tmuxSession")
                .or_else(|| text("sessionName"))
                .or_else(|| text("session")),
            spawn_request_id: text("spawnRequestId"),
            agent_id: text("agentId"),
            policy_name: text("policyName"),
        }
    }

    /// The record that is meant.
    pub fn select<'a>(&self, records: impl IntoIterator<Item = &'a Record>) -> Option<&'a Record> {
        let mut records = records.into_iter();
        let has_policy =
            |record: &Record| self.policy_name.is_none() || record.policy_name == self.policy_name;
        if let Some(name) = &self.session {
            return records.find(|record| record.name == *name);
        }
        if let Some(id) = &self.spawn_request_id {
            return records.find(|record| record.spawn_request_id == *id && has_policy(record));
        }
        if let Some(id) = &self.agent_id {
            return records.find(|record| record.agent_id == *id && has_policy(record));
        }
        self.policy_name.as_ref()?;
        // The first of those that were started last.
        records.filter(|record| has_policy(record)).fold(None, |best, record| match best {
            Some(best) if best.started_at >= record.started_at => Some(best),
            _ => Some(record),
        })
    }

    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        *self == Keys::default()
    }
}

/// A change of the file.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordOp {
    /// This is what is known of a session now.
    Put(Box<Record>),
    /// The session is proven to be over.
    Remove(String),
}

/// The entries of the file's text; an error is why it cannot be read.
pub fn entries(text: &str) -> Result<Vec<Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Array(all)) => Ok(all),
        Ok(_) => Err("it is no list".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn name_of(entry: &Value) -> &str {
    entry.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The records among the entries that are ours. What is not, or cannot be read, stays in the file
/// as it is.
pub fn records(entries: &[Value], is_ours: impl Fn(&str) -> bool) -> Vec<Record> {
    let ours = entries.iter().filter(|entry| is_ours(name_of(entry)));
    ours.filter_map(|entry| serde_json::from_value(entry.clone()).ok()).collect()
}

/// The entries after these changes: a record that is put goes to the end, everything that is not
/// named keeps its place.
pub fn changed(mut entries: Vec<Value>, ops: &[RecordOp]) -> Vec<Value> {
    for op in ops {
        let (name, put) = match op {
            RecordOp::Put(record) => (&record.name, Some(record)),
            RecordOp::Remove(name) => (name, None),
        };
        entries.retain(|entry| name_of(entry) != name);
        entries.extend(put.map(|record| serde_json::to_value(record).unwrap_or_default()));
    }
    entries
}

/// The text of the file.
pub fn text(entries: &[Value]) -> String {
    serde_json::to_string_pretty(entries).unwrap_or_else(|_| "[]".into()) + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(name: &str, request: &str, agent: &str, policy: &str, at: i64) -> Record {
        Record {
            name: name.into(),
            spawn_request_id: request.into(),
            agent_id: agent.into(),
            policy_name: Some(policy.to_string()).filter(|policy| !policy.is_empty()),
            started_at: at,
            ..Record::default()
        }
    }

    #[test]
    fn the_first_key_that_is_given_decides() {
        let all = [
            record("s1", "r1", "a1", "p", 10),
            record("s2", "r2", "a2", "p", 30),
            record("s3", "r3", "a1", "q", 30),
            record("s4", "r4", "a4", "p", 30),
        ];
        for (keys, want) in [
            (json!({"tmuxSession": "s2"}), Some("s2")),
            (json!({"sessionName": "s2", "agentId": "a1"}), Some("s2")),
            (json!({"sessionName": "s9", "agentId": "a1"}), None),
            (json!({"spawnRequestId": "r3"}), Some("s3")),
            (json!({"spawnRequestId": "r3", "policyName": "p"}), None),
            (json!({"agentId": "a1"}), Some("s1")),
            (json!({"agentId": "a1", "policyName": "q"}), Some("s3")),
            (json!({"policyName": "p"}), Some("s2")),
            (json!({"policyName": "x"}), None),
            (json!({"tmuxSession": ""}), None),
            (json!({}), None),
        ] {
            let keys = Keys::read(keys.as_object().expect("a record"));
            assert_eq!(keys.select(&all).map(|record| record.name.as_str()), want, "{keys:?}");
        }
    }

    #[test]
    fn what_is_not_ours_is_never_touched() {
        let theirs = json!({"name": "other-1", "anything": [1]});
        let odd = json!({"name": "ar-odd", "pid": "many"});
        let newer = json!({"name": "ar-1", "pid": 7, "later": {"a": 1}});
        let before = vec![theirs.clone(), odd.clone(), newer, json!(5)];
        let ours = records(&before, |name| name.starts_with("ar-"));
        assert_eq!(ours.len(), 1, "one of them cannot be read");
        assert_eq!((ours[0].name.as_str(), ours[0].pid), ("ar-1", 7));
        assert_eq!(ours[0].rest["later"], json!({"a": 1}), "what other versions write is kept");
        let put = Record { pid: 8, ..ours[0].clone() };
        let after = changed(before, &[RecordOp::Put(Box::new(put))]);
        assert_eq!(after[..3], [theirs.clone(), odd.clone(), json!(5)]);
        assert_eq!((&after[3]["pid"], &after[3]["later"]), (&json!(8), &json!({"a": 1})));
        let after = changed(after, &[RecordOp::Remove("ar-1".into())]);
        assert_eq!(after, [theirs, odd, json!(5)]);
    }

    #[test]
    fn the_file_is_a_list_or_nothing() {
        assert_eq!(entries("[]\n"), Ok(vec![]));
        for bad in ["", "{", "{}", "null", "7"] {
            assert!(entries(bad).is_err(), "{bad:?}");
        }
        let all = [json!({"name": "a"})];
        assert_eq!(text(&all), "[\n  {\n    \"name\": \"a\"\n  }\n]\n");
        assert_eq!(entries(&text(&all)).expect("reads"), all);
    }

    #[test]
    fn a_record_survives_the_file() {
        let options: SpawnOptions =
            serde_json::from_value(json!({"provider": "p", "restart": "always"})).expect("options");
        let ceilings = Ceilings { memory_max: Some(5), ..Ceilings::default() };
        let mut full = Record::new("ar-1".into(), &options, ceilings);
        (full.pid, full.start_time, full.boot_id) = (7, 99, "b".into());
        full.supervisor =
            Supervisor { kind: SYSTEMD.into(), unit: Some("u".into()), launch_script: None };
        full.parked = Some("too many ends".into());
        let value = serde_json::to_value(&full).expect("plain data");
        assert_eq!(serde_json::from_value::<Record>(value.clone()).expect("reads"), full);
        assert_eq!(value["supervisor"], json!({"type": "systemd", "unit": "u"}));
        assert!(value.get("prompt").is_none() && value.get("env").is_none());
        // One of an older version is a process.
        let old: Record = serde_json::from_value(json!({"name": "x", "pid": 3})).expect("reads");
        assert_eq!((old.supervisor.name(), old.supervisor.unit()), ("process", None));
    }
}

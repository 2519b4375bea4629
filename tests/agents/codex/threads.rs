//! Threads and their turns, in memory and on disk.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::text;

/// All threads; one turn runs at a time.
pub struct Threads {
    folder: PathBuf,
    all: BTreeMap<String, Vec<Value>>,
    /// Threads that stand on disk.
    kept: Vec<String>,
    /// The running turn.
    pub running: Option<String>,
    /// It has not begun to work yet.
    is_fresh: bool,
    interrupted: bool,
    steers: VecDeque<Value>,
    /// The thread that asks.
    pub asking: String,
    number: u64,
}

impl Threads {
    /// What stands on disk; turns that ran when it was written were cut off.
    pub fn load(folder: PathBuf) -> Threads {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_suffix(".thread") else { continue };
            let read = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let mut turns: Vec<Value> = serde_json::from_str(&read).unwrap_or_default();
            for turn in turns.iter_mut().filter(|turn| turn["status"] == "inProgress") {
                turn["status"] = json!("interrupted");
                // What was half said is gone.
                if let Some(items) = turn["items"].as_array_mut() {
                    items.retain(|item| item["type"] == "userMessage");
                }
            }
            all.insert(id.to_string(), turns);
        }
        let kept = all.keys().cloned().collect();
        Threads {
            folder,
            all,
            kept,
            running: None,
            is_fresh: false,
            interrupted: false,
            steers: VecDeque::new(),
            asking: String::new(),
            number: 0,
        }
    }

    fn new_id(&mut self, kind: &str) -> String {
        self.number += 1;
        format!("{kind}-{}-{}", std::process::id(), self.number)
    }

    pub fn begin(&mut self) -> String {
        let id = self.new_id("thread");
        self.all.insert(id.clone(), Vec::new());
        id
    }

    pub fn keep(&mut self, thread: &str) {
        if !self.kept.iter().any(|kept| kept == thread) {
            self.kept.push(thread.to_string());
        }
        self.save(thread);
    }

    /// True once for each name, whatever ends meanwhile.
    pub fn is_first_time(&self, name: &str) -> bool {
        std::fs::File::create_new(self.folder.join(name)).is_ok()
    }

    /// No thread stands on disk any more.
    pub fn forget_all(&self) {
        for id in self.all.keys() {
            let _ = std::fs::remove_file(self.folder.join(format!("{id}.thread")));
        }
    }

    fn save(&self, thread: &str) {
        if !self.kept.iter().any(|kept| kept == thread) {
            return;
        }
        let beside = self.folder.join(format!("{thread}.new"));
        std::fs::write(&beside, json!(self.all.get(thread)).to_string()).expect("it is written");
        let _ = std::fs::rename(&beside, self.folder.join(format!("{thread}.thread")));
    }

    pub fn resume(&self, thread: &str) -> Result<(), String> {
        let there = self.all.contains_key(thread);
        there.then_some(()).ok_or_else(|| format!("no rollout found for thread id {thread}"))
    }

    pub fn list(&self, thread: &str, limit: u64) -> Result<Value, String> {
        let turns = self.all.get(thread).ok_or("thread not found")?;
        let newest: Vec<&Value> = turns.iter().rev().take(limit as usize).collect();
        let more = turns.len() as u64 > limit;
        Ok(json!({"data": newest, "nextCursor": Value::Null, "more": more}))
    }

    /// Begins a turn; while one runs, the text joins it.
    pub fn start(&mut self, thread: &str, params: &Value) -> Result<Value, String> {
        let turns = self.all.get(thread).ok_or("thread not found")?;
        if let Some(running) = self.running.clone() {
            if turns.iter().any(|turn| turn["id"] == running && turn["kind"] == "compact") {
                return Err("failed to submit turn input: ActiveTurnNotSteerable".into());
            }
            self.steers.push_back(params.clone());
            return Ok(json!({"turn": {"id": running}}));
        }
        let id = self.new_id("turn");
        let turn = json!({"id": id, "status": "inProgress", "items": []});
        self.all.entry(thread.to_string()).or_default().push(turn.clone());
        (self.running, self.is_fresh, self.interrupted) = (Some(id), true, false);
        self.save(thread);
        Ok(json!({"turn": turn}))
    }

    /// The turn was begun by whom is asked about, who now carries it out.
    pub fn is_first(&mut self, turn: &str) -> bool {
        self.running.as_deref() == Some(turn) && std::mem::take(&mut self.is_fresh)
    }

    pub fn compact(&mut self, thread: &str) -> Option<String> {
        let id = self.new_id("turn");
        let turn = json!({"id": id, "status": "inProgress", "items": [], "kind": "compact"});
        self.all.get_mut(thread)?.push(turn);
        self.running = Some(id.clone());
        self.save(thread);
        Some(id)
    }

    pub fn steer(&mut self, thread: &str, params: &Value) -> Result<Value, String> {
        self.all.get(thread).ok_or("thread not found")?;
        match &self.running {
            Some(running) if *running == text(params, "/expectedTurnId") => {
                self.steers.push_back(params.clone());
                Ok(json!({"turnId": running}))
            }
            Some(_) => Err("expected another active turn".into()),
            None => Err("no active turn to steer".into()),
        }
    }

    pub fn next_steer(&mut self, turn: &str) -> Option<Value> {
        self.running.as_ref().filter(|running| *running == turn)?;
        self.steers.pop_front()
    }

    pub fn interrupt(&mut self, _: &str) -> Result<Value, String> {
        if self.running.is_none() {
            return Err("no active turn to interrupt".into());
        }
        self.interrupted = true;
        Ok(json!({}))
    }

    pub fn is_interrupted(&self, turn: &str) -> bool {
        self.interrupted && self.running.as_deref() == Some(turn)
    }

    /// Puts an item into a turn; what a user says goes to the model, once the record has it.
    pub fn note(&mut self, thread: &str, turn: &str, item: &Value, said: bool) {
        let turns = self.all.get_mut(thread).into_iter().flatten();
        for turn in turns.filter(|record| record["id"] == turn) {
            turn["items"].as_array_mut().expect("a list").push(item.clone());
        }
        self.save(thread);
        if said {
            let mut file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(self.folder.join("said.jsonl"))
                .expect("a log");
            // In one piece: a kill between two would tear the line, and the next one with it.
            let _ = file.write_all(format!("{item}\n").as_bytes());
        }
    }

    pub fn end(&mut self, thread: &str, turn: &str, status: &str, error: Option<&Value>) {
        let turns = self.all.get_mut(thread).into_iter().flatten();
        for record in turns.filter(|record| record["id"] == turn) {
            record["status"] = json!(status);
            record["error"] = json!(error);
        }
        if self.running.as_deref() == Some(turn) {
            self.running = None;
        }
        self.interrupted = false;
        self.steers.clear(); // what it did not take is lost, as in the real one
        self.save(thread);
    }
}

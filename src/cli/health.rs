//! How the files of stores on this machine are, whether or not anybody has them open: for `doctor`
//! and `hub status`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::core::store::StoreKind;
use crate::edge::aside;
use crate::edge::database::{Check, beside, identity, open_for_reading, quick_check};
use crate::hub::{place, salvage};
use crate::os;

/// All looks at pages together take at most so long.
pub const BUDGET: Duration = Duration::from_secs(3);
/// Runners' stores that are looked at.
const AGENTS_MAX: usize = 1000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// All is well.
    Fine,
    /// It works; somebody should look.
    Weak,
    /// Something is lost, or soon will be.
    Broken,
}

/// One finding with its cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How bad it is.
    pub grade: Grade,
    /// What was found.
    pub found: String,
    /// What helps; empty where all is well.
    pub cure: String,
}

impl Seen {
    fn new(grade: Grade, found: impl Into<String>, cure: impl Into<String>) -> Seen {
        Seen { grade, found: found.into(), cure: cure.into() }
    }
}

/// What the hub's folder of this home tells; nothing where no hub has ever been.
pub fn hub(home: &Path, until: Instant) -> Vec<Seen> {
    let dir = place::directory(home);
    let file = dir.join("hub.sqlite");
    let mut seen = Vec::new();
    let bytes = std::fs::metadata(&file).map(|meta| meta.len()).ok();
    let live = place::live_pid(home);
    if bytes.is_none() && !dir.join("root-token").is_file() {
        return seen;
    }
    let again = "restore a backup with `agent-relay hub restore BACKUP` while no hub runs";
    if live.is_some_and(|pid| has_open(pid, &file) == Some(false)) {
        let found = format!(
            "the running hub (pid {}) no longer has {} open: the file was deleted or replaced",
            live.unwrap_or(0),
            file.display()
        );
        seen.push(Seen::new(
            Grade::Broken,
            found,
            "leave it alone for half a minute: the hub saves what it holds, stops, and says where",
        ));
    } else if bytes.unwrap_or(0) == 0 && log_bytes(&file) == 0 {
        let found = format!(
            "{} {}",
            file.display(),
            if bytes.is_some() { "is empty" } else { "does not exist, though a hub has been here" }
        );
        seen.push(Seen::new(Grade::Broken, found, again));
    } else if let Some(known) = salvage::known_damage(&dir) {
        seen.push(Seen::new(Grade::Broken, known.text, again));
    } else {
        seen.push(pages(
            &file,
            until,
            "stop the hub and start it again: it saves what is readable and says how to go on",
        ));
    }
    if let Some(note) = std::fs::read_to_string(salvage::emptied_file(&dir))
        .ok()
        .and_then(|text| serde_json::from_str::<Value>(&text).ok())
    {
        let found = format!(
            "at {}: {}",
            note["at"].as_str().unwrap_or("?"),
            note["sentence"].as_str().unwrap_or_default()
        );
        let cure = format!(
            "restore a backup, or remove {} if that was wanted",
            salvage::emptied_file(&dir).display()
        );
        seen.push(Seen::new(Grade::Weak, found, cure));
    }
    for path in salvage::lying_there(&dir) {
        let cure = format!(
            "`agent-relay hub restore {}` continues with it; remove it when you do not need it any more",
            path.display()
        );
        seen.push(Seen::new(
            Grade::Weak,
            format!("saved from earlier damage: {}", path.display()),
            cure,
        ));
    }
    seen
}

/// What the runners' stores of this home tell, worst first; one line for all that are well.
pub fn agents(home: &Path, until: Instant) -> Vec<Seen> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(home.join("agents"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .take(AGENTS_MAX)
        .collect();
    folders.sort();
    let (mut seen, mut well) = (Vec::new(), 0);
    for folder in folders {
        let file = folder.join("store.sqlite");
        let Ok(meta) = std::fs::metadata(&file) else { continue };
        let pid = std::fs::read_to_string(folder.join("lock"))
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok());
        // Whoever has the lock open is the runner; taking it to find out could keep one from
        // starting.
        let live = pid.filter(|pid| has_open(*pid, &folder.join("lock")) == Some(true));
        let cure = "start its runner again: it sets the file aside and takes over what is readable";
        let state = match live.map(|pid| (pid, has_open(pid, &file))) {
            Some((pid, Some(false))) => {
                let found = format!(
                    "the runner (pid {pid}) no longer has {} open: the file was deleted or replaced",
                    file.display()
                );
                Seen::new(
                    Grade::Broken,
                    found,
                    "send it a message or stop it: it saves what it holds and says where",
                )
            }
            _ if meta.len() == 0 && log_bytes(&file) == 0 => Seen::new(
                Grade::Weak,
                format!("{} is empty", file.display()),
                "start its runner: unread messages come again from the relay",
            ),
            _ => pages(&file, until, cure),
        };
        match state.grade {
            Grade::Fine => well += 1,
            _ => seen.push(state),
        }
        if let Some(note) = aside::note(&folder) {
            seen.push(Seen::new(
                Grade::Weak,
                note,
                "look into it with a sqlite shell if something is missing, then remove it",
            ));
        }
    }
    seen.sort_by_key(|seen| std::cmp::Reverse(seen.grade));
    if well > 0 {
        seen.push(Seen::new(Grade::Fine, format!("{well} runners' stores are sound"), ""));
    }
    seen
}

fn log_bytes(file: &Path) -> u64 {
    std::fs::metadata(beside(file, "-wal")).map_or(0, |meta| meta.len())
}

/// Whether a process has that very file open; `None` where that cannot be seen.
fn has_open(pid: u32, file: &Path) -> Option<bool> {
    let wanted = identity(file);
    let mut descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    Some(wanted.is_some() && descriptors.any(|descriptor| identity(&descriptor.path()) == wanted))
}

fn pages(file: &Path, until: Instant, cure: &str) -> Seen {
    let bytes = std::fs::metadata(file).map_or(0, |meta| meta.len()) + log_bytes(file);
    let sized = format!("{} ({:.1} MB)", file.display(), bytes as f64 / 1e6);
    let budget = until.saturating_duration_since(Instant::now());
    let found =
        open_for_reading(file).and_then(|db| quick_check(&db, budget, &crossbeam_channel::never()));
    match found {
        Ok(Check::Fine) => Seen::new(Grade::Fine, format!("{sized} is sound"), ""),
        Ok(Check::Unfinished) => Seen::new(
            Grade::Fine,
            format!("{sized}: nothing wrong in what could be looked at in that time"),
            "",
        ),
        Ok(Check::Damaged(said)) => {
            Seen::new(Grade::Broken, format!("{sized} is damaged ({said})"), cure)
        }
        Err(error) if error.kind == StoreKind::Corrupt => {
            Seen::new(Grade::Broken, format!("{sized} is damaged ({})", error.said), cure)
        }
        Err(error) => Seen::new(
            Grade::Weak,
            format!("{sized} cannot be looked at: {}", error.said),
            error.kind.cure(),
        ),
    }
}

/// The hub's files for scripts.
pub fn hub_json(home: &Path, seen: &[Seen]) -> Value {
    let dir = place::directory(home);
    let file = dir.join("hub.sqlite");
    let worst = seen.iter().map(|seen| seen.grade).max().unwrap_or(Grade::Fine);
    json!({
        "path": file, "bytes": std::fs::metadata(&file).map(|meta| meta.len()).ok(), "logBytes": log_bytes(&file),
        "diskFreeBytes": os::free_bytes(&dir), "grade": grade_word(worst), "salvaged": salvage::lying_there(&dir),
        "found": seen.iter().map(|seen| json!({"grade": grade_word(seen.grade), "found": seen.found, "cure": seen.cure})).collect::<Vec<_>>(),
    })
}

fn grade_word(grade: Grade) -> &'static str {
    match grade {
        Grade::Fine => "ok",
        Grade::Weak => "warn",
        Grade::Broken => "fail",
    }
}

//! Thread `records`: the file that holds what is known of each session. It is read anew before each
//! change, replaced as a whole, and what stands there of others stays as it is.

use std::io;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, Sender};
use serde_json::Value;

use crate::core::Cause;
use crate::core::commit::Commit;
use crate::core::orchestrator::config::SessionFiles;
use crate::core::orchestrator::effect::RecordsCommand;
use crate::core::orchestrator::event::{Event, RecordsEvent};
use crate::core::orchestrator::names;
use crate::core::orchestrator::record::{self, RecordOp};
use crate::os;

/// Changes that are written together at most.
const CHANGES_AT_ONCE: usize = 64;

/// The file of records.
pub struct RecordsFile {
    /// Where it lies.
    pub path: PathBuf,
    /// What the names of our sessions begin with.
    pub prefix: String,
}

impl RecordsFile {
    fn read(&self) -> io::Result<Result<Vec<Value>, String>> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => Ok(record::entries(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ok(Vec::new())),
            Err(error) => Err(error),
        }
    }

    /// The entries, and what became of a file that is none; an error is a refusal of the system.
    pub fn open(&self) -> io::Result<(Vec<Value>, Option<String>)> {
        let why = match self.read()? {
            Ok(entries) => return Ok((entries, None)),
            Err(why) => why,
        };
        let mut aside = self.path.clone().into_os_string();
        aside.push(format!(".damaged-{}", std::process::id()));
        std::fs::rename(&self.path, &aside)?;
        let text = format!(
            "{} could not be read ({why}); it was set aside as {} and begun anew",
            self.path.display(),
            PathBuf::from(&aside).display()
        );
        Ok((Vec::new(), Some(text)))
    }

    fn write(&self, commits: &[Commit<RecordOp>]) -> io::Result<()> {
        let entries = self.read()?.unwrap_or_default();
        let ops: Vec<RecordOp> = commits.iter().flat_map(|commit| commit.ops.clone()).collect();
        let text = record::text(&record::changed(entries, &ops));
        os::write_private_file(&self.path, &text)
    }
}

/// Removes files of sessions that are not in the records: their orchestrator ended between the two.
/// Stores of agents stay.
pub fn sweep(home: &Path, entries: &[Value]) {
    let home = home.to_string_lossy();
    let names = entries.iter().filter_map(|entry| entry.get("name")?.as_str());
    let known: Vec<String> =
        names.flat_map(|name| SessionFiles::of(&home, name).passing()).collect();
    for folder in ["sessions", "runners"] {
        let found = std::fs::read_dir(Path::new(&*home).join(folder)).into_iter().flatten();
        for path in found.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            if !known.iter().any(|file| Path::new(file) == path) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Body of the thread. `opened`: what [`RecordsFile::open`] gave.
pub fn run(
    file: RecordsFile,
    opened: (Vec<Value>, Option<String>),
    orders: Receiver<RecordsCommand>,
    lane: Sender<Event>,
) {
    let (entries, note) = opened;
    let records = record::records(&entries, |name| names::is_managed(&file.prefix, name));
    let mut waiting: Vec<Commit<RecordOp>> = Vec::new();
    if lane.send(Event::Records(RecordsEvent::Restored { records, note })).is_err() {
        return;
    }
    while let Ok(order) = orders.recv() {
        for order in [order].into_iter().chain(orders.try_iter().take(CHANGES_AT_ONCE)) {
            if let RecordsCommand::Commit(commit) = order {
                waiting.push(commit);
            }
        }
        let Some(upto) = waiting.last().map(|commit| commit.number) else { continue };
        let event = match file.write(&waiting) {
            Ok(()) => {
                waiting.clear();
                RecordsEvent::Written { upto }
            }
            Err(error) => {
                let text = format!("cannot write {}: {error}", file.path.display());
                RecordsEvent::Stalled(Cause::Failed(text))
            }
        };
        crate::os::crash_point("records");
        if lane.send(Event::Records(event)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::orchestrator::record::Record;

    #[test]
    fn files_of_no_session_go_at_a_start() {
        let name = format!("sweep-{:x}", u64::from_le_bytes(os::random_bytes()));
        let home = std::env::temp_dir().join(name);
        let files = |session: &str| SessionFiles::of(&home.to_string_lossy(), session).passing();
        for file in files("ar-known").iter().chain(&files("ar-lost")) {
            os::write_private_file(Path::new(file), "x").expect("writes");
        }
        os::make_private_dir(&home.join("runners/a.store")).expect("a store");
        sweep(&home, &[serde_json::json!({"name": "ar-known"})]);
        assert!(files("ar-known").iter().all(|file| Path::new(file).exists()));
        assert!(!files("ar-lost").iter().any(|file| Path::new(file).exists()));
        assert!(home.join("runners/a.store").is_dir());
        let _ = std::fs::remove_dir_all(home);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_nothing_of_others_is_lost() {
        let dir = std::env::temp_dir()
            .join(format!("records-{:x}", u64::from_le_bytes(os::random_bytes())));
        os::make_private_dir(&dir).expect("a folder");
        let file = RecordsFile { path: dir.join("sessions.json"), prefix: "ar".into() };
        assert_eq!(file.open().expect("opens"), (vec![], None));
        std::fs::write(&file.path, "[{\"name\": \"other-1\"}, {\"na").expect("writes");
        let (entries, note) = file.open().expect("opens");
        assert!(entries.is_empty() && note.is_some_and(|note| note.contains(".damaged-")));
        assert_eq!(std::fs::read_dir(&dir).expect("lists").count(), 1, "it is still there");
        // What somebody else writes meanwhile stays.
        std::fs::write(&file.path, "[{\"name\": \"other-1\"}]").expect("writes");
        let put = |name: &str| {
            RecordOp::Put(Box::new(Record { name: name.into(), pid: 7, ..Record::default() }))
        };
        file.write(&[Commit { number: 1, ops: vec![put("ar-1"), put("ar-2")] }]).expect("writes");
        std::fs::write(
            &file.path,
            std::fs::read_to_string(&file.path).expect("reads").replace("other-1", "other-2"),
        )
        .expect("writes");
        file.write(&[Commit { number: 2, ops: vec![RecordOp::Remove("ar-1".into())] }])
            .expect("writes");
        let (entries, _) = file.open().expect("opens");
        let names: Vec<&str> = entries.iter().filter_map(|entry| entry["name"].as_str()).collect();
        assert_eq!(names, ["other-2", "ar-2"]);
        let _ = std::fs::remove_dir_all(dir);
    }
}

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use super::super::database::{open_for_reading, rows_of};
use super::tables::steps;
use super::*;

const SCHEMAS: &[&str] = &["
    CREATE TABLE letters (id INTEGER PRIMARY KEY, doc TEXT NOT NULL);
    CREATE TABLE boxes (owner TEXT NOT NULL, letter INTEGER NOT NULL, state INTEGER NOT NULL, PRIMARY KEY (owner, letter)) WITHOUT ROWID;
    CREATE TABLE keys (hash TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX boxes_letter ON boxes(letter);"];
const PLAN: Plan =
    Plan { schemas: SCHEMAS, hints: "SELECT 'o0' UNION SELECT 'o1' UNION SELECT 'o2'", tidy: "" };
const ROWS: usize = 900;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn filled(name: &str) -> (Folder, PathBuf, BTreeSet<String>) {
    let dir =
        std::env::temp_dir().join(format!("agent-relay-salvage-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let path = dir.join("x.sqlite");
    let mut db = open_database(&path, SCHEMAS).expect("opens").db;
    let transaction = db.transaction().expect("begins");
    for n in 0..300i64 {
        // One in fifty is longer than a page.
        let doc = "d".repeat(if n % 50 == 49 { 9000 } else { 150 }) + &n.to_string();
        transaction
            .execute("INSERT INTO letters VALUES (?1, ?2)", (n * 3 + 1, doc))
            .expect("writes");
        transaction
            .execute("INSERT INTO boxes VALUES (?1, ?2, 1)", (format!("o{}", n % 3), n))
            .expect("writes");
        let hash = crate::os::sha256_hex(&n.to_string());
        transaction
            .execute(
                "INSERT INTO keys VALUES (?1, ?2)",
                (hash, format!("record {n} {}", "r".repeat(100))),
            )
            .expect("writes");
    }
    transaction.commit().expect("commits");
    drop(db);
    let rows =
        rows_of(&open_for_reading(&path).expect("opens")).expect("reads").into_iter().collect();
    (Folder(dir), path, rows)
}

fn saved(path: &Path, folder: &Path) -> (Salvaged, BTreeSet<String>) {
    let into = folder.join("saved.sqlite");
    let _ = std::fs::remove_file(&into);
    let told = salvage(path, &into, PLAN).expect("saves");
    let rows =
        rows_of(&open_for_reading(&into).expect("opens")).expect("reads").into_iter().collect();
    let left: Vec<_> = std::fs::read_dir(folder)
        .expect("reads")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(
        left.iter().all(|name| !name.to_string_lossy().contains(".sqlite.")),
        "nothing else is left: {left:?}"
    );
    (told, rows)
}

#[test]
fn whichever_page_is_lost_the_others_are_saved_and_nothing_is_made_up() {
    let (folder, path, rows) = filled("pages");
    assert_eq!(rows.len(), ROWS);
    let whole = std::fs::read(&path).expect("reads");
    let broken = folder.0.join("broken.sqlite");
    let mut worst = 0;
    for page in 0..whole.len() / PAGE {
        let mut bytes = whole.clone();
        bytes[page * PAGE..(page + 1) * PAGE].fill(0xa5);
        std::fs::write(&broken, &bytes).expect("writes");
        let (_, found) = saved(&broken, &folder.0);
        assert!(found.is_subset(&rows), "page {page}");
        let lost = ROWS - found.len();
        // A leaf holds fewer than 200 rows; a root costs its table.
        assert!(lost <= 300, "page {page}: {lost}");
        worst = worst.max(if lost < 300 { lost } else { 0 });
        if page == 0 {
            assert_eq!(lost, 0, "the first page holds no rows");
        }
    }
    assert!(worst > 0 && worst < 200, "{worst}");
}

#[test]
fn a_sound_file_a_cut_one_and_a_log() {
    let (folder, path, rows) = filled("whole");
    let (told, found) = saved(&path, &folder.0);
    assert_eq!((found, told.gaps.len(), told.total()), (rows.clone(), 0, ROWS as u64));
    // The second half is gone.
    let cut = folder.0.join("cut.sqlite");
    let whole = std::fs::read(&path).expect("reads");
    std::fs::write(&cut, &whole[..whole.len() / 2]).expect("writes");
    let (told, found) = saved(&cut, &folder.0);
    assert!(
        found.is_subset(&rows) && found.len() > 100 && !told.gaps.is_empty(),
        "{} {told:?}",
        found.len()
    );
    // The newest row stands in the log only, and the head of the file is lost.
    let writer = open_database(&path, SCHEMAS).expect("opens").db;
    writer.execute("INSERT INTO letters VALUES (5000, 'in the log')", []).expect("writes");
    let (copy, log) = (folder.0.join("copy.sqlite"), folder.0.join("copy.sqlite-wal"));
    std::fs::copy(&path, &copy).expect("copies");
    std::fs::copy(beside(&path, "-wal"), &log).expect("copies");
    drop(writer);
    OpenOptions::new()
        .write(true)
        .open(&copy)
        .and_then(|file| file.write_all_at(&[0; 100], 0))
        .expect("writes");
    let before = (std::fs::read(&copy).expect("reads"), std::fs::read(&log).expect("reads"));
    let into = folder.0.join("saved.sqlite");
    let _ = std::fs::remove_file(&into);
    salvage(&copy, &into, PLAN).expect("saves");
    let found = rows_of(&open_for_reading(&into).expect("opens")).expect("reads");
    assert_eq!(found.len(), ROWS + 1, "with the row of the log");
    assert_eq!(
        (std::fs::read(&copy).expect("reads"), std::fs::read(&log).expect("reads")),
        before,
        "only read"
    );
}

#[test]
fn steps_go_on_behind_a_text() {
    let all = steps("ab");
    assert_eq!((all[0].as_str(), all.last().map(String::as_str)), ("ac", Some("~~")));
    assert!(all.iter().all(|step| step.as_str() > "ab"));
    assert!(steps("").contains(&"a".to_string()));
}

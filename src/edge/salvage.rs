//! Saves what is readable of a damaged SQLite file, row by row, into a new one.
//!
//! The damaged file is only read: a copy of it is repaired as far as SQLite needs to open it (the
//! first hundred bytes, or the whole first page from a fresh file of the same schema), then every
//! table is read along its key. Where a page cannot be read, the read goes on at the next key that
//! can.

mod tables;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use self::tables::{drop_nonsense, tables};
use super::database::{beside, error_of, io_error_of, open_database, sync_folder};
use crate::core::store::StoreError;
use crate::os;

/// Largest page of a SQLite file.
const PAGE_MAX: usize = 65_536;
/// Page size of the files that we make.
const PAGE: usize = 4096;

/// What salvage must know of a store.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Steps from nothing to the newest version.
    pub schemas: &'static [&'static str],
    /// First parts of keys that may stand in unreadable pages: one column of texts.
    pub hints: &'static str,
    /// Makes what was saved consistent.
    pub tidy: &'static str,
}

/// What was saved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Salvaged {
    /// Rows by table, as saved.
    pub rows: Vec<(String, u64)>,
    /// Tables of which something could not be read.
    pub gaps: Vec<String>,
}

impl Salvaged {
    fn total(&self) -> u64 {
        self.rows.iter().map(|(_, rows)| rows).sum()
    }

    /// As a sentence.
    pub fn describe(&self) -> String {
        let rows: Vec<String> = self
            .rows
            .iter()
            .filter(|(_, rows)| *rows > 0)
            .map(|(table, rows)| format!("{rows} {table}"))
            .collect();
        let gaps = if self.gaps.is_empty() {
            String::new()
        } else {
            format!("; not all of {} could be read", self.gaps.join(", "))
        };
        format!("{}{gaps}", if rows.is_empty() { "nothing".into() } else { rows.join(", ") })
    }
}

/// Saves what is readable of `damaged` in the new file `into`, which is complete and durable when
/// it has its name.
pub fn salvage(damaged: &Path, into: &Path, plan: Plan) -> Result<Salvaged, StoreError> {
    let what =
        format!("cannot save what is readable of {} in {}", damaged.display(), into.display());
    let (work, best) = (beside(into, ".work"), beside(into, ".tmp"));
    let clean = || {
        [&work, &best, &beside(into, ".try"), &beside(into, ".fresh")]
            .iter()
            .for_each(|path| remove(path))
    };
    clean();
    let done = attempt(damaged, into, plan, &what, &work, &best);
    clean();
    done
}

fn attempt(
    damaged: &Path,
    into: &Path,
    plan: Plan,
    what: &str,
    work: &Path,
    best: &Path,
) -> Result<Salvaged, StoreError> {
    let io = |error: std::io::Error| io_error_of(what, &error);
    copy_private(damaged, work).map_err(io)?;
    if let Err(error) = copy_private(&beside(damaged, "-wal"), &beside(work, "-wal"))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(io(error));
    }
    mend_head(work).map_err(io)?;
    let saved = match version_of(work, plan) {
        Some(version) => {
            let target = best.to_path_buf();
            fill(work, &target, plan, version, what)?
        }
        None => from_template(into, plan, what, work, best)?,
    };
    File::open(best).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(best, into).map_err(io)?;
    sync_folder(into);
    Ok(saved)
}

/// The first page is lost with the places of all tables: they stand where a fresh file of the same
/// version has them.
fn from_template(
    into: &Path,
    plan: Plan,
    what: &str,
    work: &Path,
    best: &Path,
) -> Result<Salvaged, StoreError> {
    let io = |error: std::io::Error| io_error_of(what, &error);
    let _ =
        Connection::open(work).and_then(|db| db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);"));
    ["-wal", "-shm"].iter().for_each(|end| drop(std::fs::remove_file(beside(work, end))));
    let (fresh, target) = (beside(into, ".fresh"), beside(into, ".try"));
    let mut saved: Option<Salvaged> = None;
    for version in (1..=plan.schemas.len()).rev() {
        remove(&fresh);
        drop(open_database(&fresh, &plan.schemas[..version])?);
        empty_first_page(work, &fresh).map_err(io)?;
        let found = put_schema(work, &fresh).map_err(|error| error_of(what, &error));
        remove(&target);
        let Ok(found) = found.and_then(|()| fill(work, &target, plan, version, what)) else {
            continue;
        };
        if saved.as_ref().is_none_or(|saved| saved.total() < found.total()) {
            std::fs::rename(&target, best).map_err(io)?;
            saved = Some(found);
        }
    }
    match saved {
        Some(saved) => Ok(saved),
        None => Err(StoreError::new(
            crate::core::store::StoreKind::Corrupt,
            what,
            "nothing in it can be read",
        )),
    }
}

fn remove(path: &Path) {
    ["", "-wal", "-shm", "-journal"]
        .iter()
        .for_each(|end| drop(std::fs::remove_file(beside(path, end))));
}

fn copy_private(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = os::open_private(to, OpenOptions::new().write(true).create_new(true))?;
    std::io::copy(&mut source, &mut target).map(|_| ())
}

fn page_size(head: &[u8]) -> Option<usize> {
    let size = usize::from(u16::from_be_bytes([*head.get(16)?, *head.get(17)?]));
    let size = if size == 1 { PAGE_MAX } else { size };
    (size.is_power_of_two() && size >= 512).then_some(size)
}

/// Writes a sound head where the file's own cannot be one; the tables' pages are left as they are.
fn mend_head(path: &Path) -> std::io::Result<()> {
    let mut file = os::open_private(path, OpenOptions::new().read(true).write(true))?;
    let mut head = [0u8; 108];
    let mut got = 0;
    while got < head.len() {
        match file.read(&mut head[got..])? {
            0 => break,
            size => got += size,
        }
    }
    let sound = head.starts_with(b"SQLite format 3\0")
        && page_size(&head).is_some()
        && head[18..20].iter().all(|mode| matches!(mode, 1 | 2))
        && head[20..24] == [0, 64, 32, 32]
        && head[44..48] == 4u32.to_be_bytes()
        && head[56..60] == 1u32.to_be_bytes();
    if sound {
        return Ok(());
    }
    let pages = file.metadata()?.len().div_ceil(PAGE as u64) as u32;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&sound_head(pages))
}

fn sound_head(pages: u32) -> [u8; 100] {
    let mut head = [0u8; 100];
    head[..16].copy_from_slice(b"SQLite format 3\0");
    head[16..18].copy_from_slice(&(PAGE as u16).to_be_bytes());
    head[18..24].copy_from_slice(&[2, 2, 0, 64, 32, 32]);
    for (at, value) in [(24, 1), (28, pages), (40, 1), (44, 4), (56, 1), (92, 1), (96, 3_045_000)] {
        head[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
    }
    head
}

/// A first page without tables, so that those of a fresh file can be written into it.
fn empty_first_page(path: &Path, fresh: &Path) -> std::io::Result<()> {
    let size = {
        let mut head = [0u8; 100];
        File::open(fresh)?.read_exact(&mut head)?;
        page_size(&head).unwrap_or(PAGE)
    };
    let mut file = os::open_private(path, OpenOptions::new().write(true))?;
    let pages = file.metadata()?.len().div_ceil(size as u64) as u32;
    let mut page = vec![0u8; size];
    page[..100].copy_from_slice(&sound_head(pages.max(1)));
    page[100] = 13;
    page[105..107].copy_from_slice(&(size as u16).to_be_bytes());
    file.write_all(&page)?;
    file.set_len(u64::from(pages.max(1)) * size as u64)
}

fn put_schema(path: &Path, fresh: &Path) -> rusqlite::Result<()> {
    let source = Connection::open(fresh)?;
    let mut statement = source.prepare(
        "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema WHERE type = 'table'",
    )?;
    let rows: Vec<Vec<Value>> = statement
        .query_map([], |row| (0..5).map(|at| row.get(at)).collect())?
        .collect::<Result<_, _>>()?;
    let mut db = Connection::open(path)?;
    db.execute_batch("PRAGMA writable_schema = ON;")?;
    let transaction = db.transaction()?;
    for row in rows {
        transaction.execute(
            "INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES (?1, ?2, ?3, ?4, ?5)",
            params_from_iter(row),
        )?;
    }
    transaction.commit()
}

/// Opens a file whose tables and indexes may be damaged.
fn open_leniently(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.execute_batch(
        "PRAGMA writable_schema = ON; PRAGMA cache_size = -8192; PRAGMA temp_store = MEMORY;",
    )?;
    Ok(db)
}

/// The version whose tables the file has; `None`: its list of tables cannot be read.
fn version_of(path: &Path, plan: Plan) -> Option<usize> {
    let names = |db: &Connection| -> rusqlite::Result<Vec<String>> {
        let mut statement = db.prepare(
            "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name",
        )?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    let db = open_leniently(path).ok()?;
    let found = names(&db).ok().filter(|found| !found.is_empty())?;
    let told: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).ok()?;
    let fits = |version: usize| -> bool {
        let fresh = Connection::open_in_memory().and_then(|fresh| {
            plan.schemas[..version].iter().try_for_each(|schema| fresh.execute_batch(schema))?;
            names(&fresh)
        });
        fresh.is_ok_and(|fresh| fresh.iter().all(|name| found.contains(name)))
    };
    let told = usize::try_from(told).ok().filter(|told| (1..=plan.schemas.len()).contains(told));
    told.filter(|told| fits(*told))
        .or_else(|| (1..=plan.schemas.len()).rev().find(|version| fits(*version)))
}

/// Reads all tables of `work` into the new file `target`.
fn fill(
    work: &Path,
    target: &Path,
    plan: Plan,
    version: usize,
    what: &str,
) -> Result<Salvaged, StoreError> {
    let say = |error: rusqlite::Error| error_of(what, &error);
    let mut db = open_database(target, &plan.schemas[..version])?.db;
    let mut saved = Salvaged::default();
    {
        let source = open_leniently(work).map_err(say)?;
        let transaction = db.transaction().map_err(say)?;
        for table in tables(&transaction).map_err(say)? {
            let has_gap = table.copy(&source, &transaction, plan.hints).map_err(say)?;
            if has_gap {
                saved.gaps.push(table.name.clone());
            }
            drop_nonsense(&transaction, &table).map_err(say)?;
        }
        transaction.commit().map_err(say)?;
    }
    drop(db);
    let db = open_database(target, plan.schemas)?.db;
    db.execute_batch(plan.tidy).map_err(say)?;
    for table in tables(&db).map_err(say)? {
        let rows: i64 = db
            .query_row(&format!("SELECT count(*) FROM {}", table.name), [], |row| row.get(0))
            .map_err(say)?;
        saved.rows.push((table.name, rows as u64));
    }
    db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);").map_err(say)?;
    Ok(saved)
}

/// Where damaged files and what was saved of them are named: `<start>-<UTC time><end>`, never one
/// that exists.
pub fn dated(folder: &Path, start: &str, end: &str) -> PathBuf {
    let time: String =
        crate::log::timestamp().chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let name = |more: String| folder.join(format!("{start}-{time}{more}{end}"));
    (1..)
        .map(|n| name(if n == 1 { String::new() } else { format!("-{n}") }))
        .find(|path| !path.exists())
        .unwrap_or_else(|| name(String::new()))
}

#[cfg(test)]
mod tests;

//! Stores that are damaged, empty, deleted, replaced, locked, read-only or full: judged by what
//! people and scripts see, and by no loss.

mod disk;
mod hub;
mod runner;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{Machine, Running, skip, wait_for};

const PAGE: u64 = 4096;

fn hub_file(machine: &Machine) -> PathBuf {
    machine.home.join("hub/hub.sqlite")
}

fn runner_file(machine: &Machine, agent: &str) -> PathBuf {
    machine.home.join("agents").join(agent).join("store.sqlite")
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(end);
    name.into()
}

/// Files in a folder whose names begin so.
fn named(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start))
        })
        .collect();
    found.sort();
    found
}

/// Writes nonsense over pages, counted from 0.
fn damage(path: &Path, pages: std::ops::Range<u64>) {
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opens");
    for page in pages {
        file.write_all_at(&[0xa5; PAGE as usize], page * PAGE).expect("writes");
    }
}

/// The pages of the leaves of a table, from the first to the last.
fn leaves(path: &Path, table: &str) -> Vec<u64> {
    let root: u64 = {
        let db = Connection::open(path).expect("opens");
        db.query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [table], |row| {
            row.get::<_, i64>(0)
        })
        .expect("a table") as u64
    };
    let file = std::fs::File::open(path).expect("opens");
    let (mut open, mut found) = (vec![root], Vec::new());
    while let Some(number) = open.pop() {
        let mut page = [0u8; PAGE as usize];
        file.read_exact_at(&mut page, (number - 1) * PAGE).expect("reads");
        let at = if number == 1 { 100 } else { 0 };
        let cells = usize::from(u16::from_be_bytes([page[at + 3], page[at + 4]]));
        match page[at] {
            13 | 10 => found.push(number - 1),
            5 | 2 => {
                let last = u32::from_be_bytes(page[at + 8..at + 12].try_into().expect("four"));
                let mut children: Vec<u64> = (0..cells)
                    .map(|cell| {
                        let place = at + 12 + cell * 2;
                        let cell = usize::from(u16::from_be_bytes([page[place], page[place + 1]]));
                        u64::from(u32::from_be_bytes(
                            page[cell..cell + 4].try_into().expect("four"),
                        ))
                    })
                    .collect();
                children.push(last.into());
                open.extend(children.into_iter().rev());
            }
            other => panic!("page {number} of {table} has type {other}"),
        }
    }
    found
}

/// A hub with many messages to the user; it has ended in order.
fn filled(name: &str, messages: usize) -> (Machine, Vec<u64>) {
    let machine = Machine::new(name);
    let mut hub = machine.hub();
    let ids = (0..messages)
        .map(|n| machine.send("user", &format!("number {n} {}", "x".repeat(600))))
        .collect();
    hub.terminate();
    assert_eq!(hub.wait(60).0, 0);
    (machine, ids)
}

/// Starts a hub that refuses: exit code and its only sentence.
fn refused(machine: &Machine) -> (i32, String) {
    let mut hub = machine.start(&["hub", "--port", "0"]);
    let (code, text) = hub.wait(60);
    assert_eq!(text.lines().count(), 1, "one sentence: {text}");
    (code, text)
}

fn doctor(machine: &Machine, check: &str) -> Vec<Value> {
    let text = String::from_utf8_lossy(&machine.run(&["doctor", "--json"]).stdout).into_owned();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|finding| finding["check"] == check)
        .collect()
}

fn says(findings: &[Value], grade: &str, words: &str) -> bool {
    findings.iter().any(|finding| {
        finding["grade"] == grade
            && finding["found"].as_str().is_some_and(|found| found.contains(words))
    })
}

/// Puts a saved file in the place of the damaged one, as a restore does.
fn bring_back(machine: &Machine, from: &Path) {
    let file = hub_file(machine);
    ["", "-wal", "-shm"].iter().for_each(|end| drop(std::fs::remove_file(with_end(&file, end))));
    std::fs::copy(from, &file).expect("copies");
}

fn ids_in_inbox(machine: &Machine) -> Vec<u64> {
    let text = machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["id"].as_u64())
        .collect()
}

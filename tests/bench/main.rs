//! The figures of the README, measured side by side in one run: `make bench`. A benchmark, never a
//! timed test.
//!
//! `figures start idle` runs only the rows named. The release binary must be built before.
//! `RECORD=1` puts the table into `tests/FIGURES.md`; what stands around it there is written by
//! hand. `OLD_BIN` names an older release binary, which is measured right beside it, group by
//! group.

mod control;
mod delivery;
mod idle;
mod log;
mod processes;
mod start;
mod store;

mod claude;
mod codex;
mod fleet;
mod host;
#[path = "../common/http.rs"]
mod http;
#[path = "../interop/model.rs"]
#[allow(dead_code)]
mod model;
mod table;

use agent_relay::core::commit::Commit;
use delivery::setup;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use agent_relay::core::agent::effect::StoreCommand;
use agent_relay::core::agent::event::{Event, StoreEvent};
use agent_relay::core::agent::store::{InboxMessage, OutboxRow, StoreOp};
use agent_relay::core::ids::{MessageId, MessageRef};
use agent_relay::edge::http::{Base, Http};
use agent_relay::edge::store::{Store, run as run_store};
use agent_relay::secret::Secret;
use agent_relay::wire::api::{Message, path};
use agent_relay::wire::bus::{ClientFrame, Registered, Registration, RelayFrame};
use crossbeam_channel::bounded;
use serde_json::{Value, json};
use table::{BIN, OLD_BIN, bin, measure, row};
use tungstenite::Message as Frame;

/// What other work on the machine disturbs is measured so often, in turn with the older binary;
/// `ROUNDS` says otherwise.
const ROUNDS: usize = 3;

fn main() {
    if let Ok(path) = std::env::var("BENCH_PROVIDER") {
        return delivery::provider(Path::new(&path));
    }
    if let Ok(path) = std::env::var("BENCH_CODEX") {
        return codex::serve(Path::new(&path));
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let records = std::env::var("RECORD").is_ok_and(|word| word == "1");
    assert!(
        !records || (wanted.is_empty() && OLD_BIN.is_none()),
        "RECORD=1 writes the whole table of this version: without names of rows and OLD_BIN"
    );
    for path in [Some(&*BIN), OLD_BIN.as_ref()].into_iter().flatten() {
        assert!(
            Path::new(path).exists(),
            "{path} is not there; `make build` builds the release binary"
        );
    }
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    println!("{}", machine());
    let commit = commit_time();
    table::print_head();
    // What runs our own code in this process, or writes the store that the hub then opens, has no
    // older side.
    let groups: &[(&str, bool, usize, &dyn Fn())] = &[
        ("start", true, 1, &start::start),
        ("latency", true, 1, &|| delivery::latency(commit)),
        ("enqueue", false, 1, &|| store::enqueue(commit)),
        ("drain", false, 1, &store::drain),
        ("post", true, 1, &control::post),
        ("hook", true, 1, &processes::hook),
        ("claude", true, 1, &claude::prompt),
        ("follow", true, 1, &claude::follow),
        ("codex", false, 1, &codex::turns),
        ("idle", true, 1, &idle::idle),
        // An older version has none.
        ("host", false, 1, &host::host),
        ("fleet", true, 1, &fleet::fleet),
        ("knee", true, rounds, &fleet::knee::knee),
        // An older hub took fewer connections.
        ("crowd", false, 1, &fleet::crowd::crowd),
        ("history", false, 1, &fleet::history::history),
        ("log", false, 1, &log::log),
    ];
    for (name, has_older, rounds, run) in groups
        .iter()
        .filter(|(name, ..)| wanted.is_empty() || wanted.iter().any(|word| word == name))
    {
        measure(*has_older, *rounds, *run, name);
    }
    if records {
        table::record(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/FIGURES.md")));
    }
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name\t: "))
        .unwrap_or("unknown processor")
        .to_string();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let size = std::fs::metadata(&*BIN).map(|meta| meta.len()).unwrap_or(0) as f64 / 1e6;
    format!("Machine: {model}, {cores} cores, Linux {}. Binary {size:.2} MB.\n", kernel.trim())
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        // What an older binary finds must not be a newer one's.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir()
            .join(format!("agent-relay-bench-{}-{count}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temp dir");
        Folder(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = self.0.id();
        agent_relay::os::kill(agent_relay::os::process(pid), rustix::process::Signal::TERM);
        let until = Instant::now() + Duration::from_secs(15);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(home: &Path) -> Command {
    let mut command = Command::new(bin());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home)
        .env("AGENT_RELAY_HOME", home);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn percentile(times: &mut [Duration], part: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * part) as usize]
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

fn us(time: Duration) -> String {
    format!("{:.0} µs", time.as_secs_f64() * 1e6)
}

/// Monotonic nanoseconds that all processes share.
fn mono() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// One durable change in a file of ours, p50: what "a commit" costs here and now.
fn commit_time() -> Duration {
    let folder = Folder::new("commit");
    let mut store = Store::open(&folder.0.join("store.sqlite"), 1 << 30).expect("opens");
    let mut times: Vec<Duration> = (0..300)
        .map(|id| {
            let at = Instant::now();
            store.commit_ops(&[stored(message(id + 1))]).expect("commits");
            at.elapsed()
        })
        .collect();
    let mut file = std::fs::File::create(folder.0.join("raw")).expect("creates");
    let mut raw: Vec<Duration> = (0..300)
        .map(|_| {
            let at = Instant::now();
            file.write_all(&[7; 4096]).expect("writes");
            file.sync_data().expect("syncs");
            at.elapsed()
        })
        .collect();
    let (commit, sync) = (percentile(&mut times, 0.5), percentile(&mut raw, 0.5));
    println!(
        "In this run: one commit p50 {}, 4 KB append + fdatasync p50 {} (p99 {}).\n",
        us(commit),
        us(sync),
        us(percentile(&mut raw, 0.99))
    );
    commit
}

/// What a runner keeps of a message that came from its relay.
fn stored(message: Message) -> StoreOp {
    StoreOp::InboxPut(InboxMessage {
        at: MessageRef { family: 1, id: message.id, generation: 1 },
        message,
    })
}

fn message(id: u64) -> Message {
    Message {
        id: MessageId(id),
        from: "user".into(),
        to: "a".into(),
        kind: "chat".into(),
        body: "x".repeat(500),
        ..Default::default()
    }
}

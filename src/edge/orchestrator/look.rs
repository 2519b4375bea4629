//! Threads `look`: logs, terminals, diagnoses, the host. One order gives one answer, in a bounded
//! time. Orders about one session go to one thread, so that they keep their order; guests belong to
//! the first thread, which lives as long as the process.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender};

use super::host::HostLook;
use super::terminal::{self, Guest, GuestPlan, Place};
use super::{call, log_file, runner_port};
use crate::core::limits::{GUESTS_MAX, JOURNAL_BYTES_MAX, LOG_LINES_DIAGNOSED};
use crate::core::orchestrator::confine;
use crate::core::orchestrator::diagnosis::Facts;
use crate::core::orchestrator::guests::{AttachSpec, no_room};
use crate::core::orchestrator::log_text::LogOptions;
use crate::core::orchestrator::look::{Look, Looked, Terminal};
use crate::core::orchestrator::record::Record;
use crate::core::orchestrator::systemd::SHOWN;
use crate::edge::provider::try_socket_folder;
use crate::os;
use crate::provider::redact;

/// Threads that look: one for guests and the host, the others for sessions.
pub const THREADS: usize = 3;
/// The service manager and its log answer in that time.
const MANAGER_TIME: Duration = Duration::from_secs(5);
/// Columns and rows of a guest's terminal.
const GUEST_SIZE: (u16, u16) = (200, 50);
/// Longest path of a folder for the socket of a guest, bytes.
const GUEST_FOLDER_MAX: usize = 80;

/// What the threads know.
#[derive(Debug, Clone)]
pub struct Places {
    /// The root of everything.
    pub home: PathBuf,
    /// Sessions work in it or below it.
    pub base_dir: PathBuf,
}

/// Which thread carries out an order.
pub fn thread_of(look: &Look) -> usize {
    let Some(session) = look.session() else { return 0 };
    let mut hasher = DefaultHasher::new();
    session.hash(&mut hasher);
    1 + (hasher.finish() % (THREADS as u64 - 1)) as usize
}

/// Body of each thread; `report` makes an event of an answer.
pub fn run<E>(
    places: Places,
    orders: Receiver<(u64, Look)>,
    lane: Sender<E>,
    report: impl Fn(u64, Looked) -> E,
) {
    let mut looker = Looker { places, guests: BTreeMap::new(), host: HostLook::default() };
    for (number, look) in orders {
        let looked = looker.carry_out(look);
        if lane.send(report(number, looked)).is_err() {
            return;
        }
    }
}

/// One thread's own.
struct Looker {
    places: Places,
    guests: BTreeMap<String, Guest>,
    host: HostLook,
}

impl Looker {
    fn carry_out(&mut self, look: Look) -> Looked {
        match look {
            Look::Log { path, options, .. } => Looked::Log(read_log(&path, options)),
            Look::Capture(whose) => Looked::Captured(match place_of(&whose) {
                Some(place) => terminal::capture(&place),
                None => Ok(None),
            }),
            Look::Type { terminal: whose, tokens } => Looked::Typed(match place_of(&whose) {
                Some(place) => terminal::send(&place, &tokens),
                None => Ok(None),
            }),
            Look::Resize { terminal: whose, columns, rows } => {
                Looked::Resized(match place_of(&whose) {
                    Some(place) => terminal::resize(&place, columns, rows),
                    None => Ok(false),
                })
            }
            Look::OpenGuest { record, name } => {
                let over = self.sweep();
                Looked::GuestOpened { result: self.open_guest(&record, name), over }
            }
            Look::EndGuest { name } => Looked::GuestEnded(self.guests.remove(&name).is_some()),
            Look::Diagnose { record, ends } => Looked::Diagnosed(Box::new(facts(*record, ends))),
            Look::Host => Looked::Host(Box::new(self.host.look(&self.places.home))),
        }
    }

    /// Lets go of guests that have ended by themselves; their names.
    fn sweep(&mut self) -> Vec<String> {
        let mut over = Vec::new();
        for (name, guest) in &mut self.guests {
            if !guest.is_running() {
                over.push(name.clone());
            }
        }
        over.iter().for_each(|name| drop(self.guests.remove(name)));
        over
    }

    fn open_guest(
        &mut self,
        record: &Record,
        name: String,
    ) -> Result<(AttachSpec, String), String> {
        if self.guests.len() >= GUESTS_MAX {
            return Err(no_room());
        }
        if !os::is_alive(record.process()) {
            return Err("managed runner session not found".into());
        }
        let info = runner_port::find(record).ok_or(
            "runner control URL is unavailable; restart the agent to enable terminal attach",
        )?;
        let told = runner_port::attach_spec(record, &info)?;
        let spec = AttachSpec::parse(&told, |cwd| self.is_within(cwd))?;
        let env = terminal::variables(&spec)?;
        let dir = self.guest_folder()?;
        let plan = GuestPlan {
            dir: &dir,
            cwd: &spec.cwd,
            command: &spec.command,
            env: &env,
            size: GUEST_SIZE,
        };
        let guest = Guest::start(&plan)?;
        let socket = guest.place.socket.to_string_lossy().into_owned();
        self.guests.insert(name, guest);
        Ok((spec, socket))
    }

    /// Whether a folder is in the base, wherever links lead.
    fn is_within(&self, cwd: &str) -> bool {
        let real = |path: &Path| fs::canonicalize(path).ok()?.into_os_string().into_string().ok();
        real(&self.places.base_dir)
            .zip(real(Path::new(cwd)))
            .is_some_and(|(base, cwd)| confine::is_within(&base, &cwd))
    }

    /// A folder for one guest, where the path of a socket is short enough.
    fn guest_folder(&self) -> Result<PathBuf, String> {
        let random = data_encoding::HEXLOWER.encode(&os::random_bytes::<6>());
        let uid = rustix::process::getuid().as_raw();
        let near = self.places.home.join("guests");
        let far = std::env::temp_dir().join(format!("agent-relay-{uid}-guests"));
        let folders = [near, far].into_iter().map(|folder| folder.join(&random));
        let mut short = folders.filter(|folder| folder.as_os_str().len() <= GUEST_FOLDER_MAX);
        let found = short.find(|folder| {
            let takes = try_socket_folder(folder).is_ok();
            if !takes {
                let _ = fs::remove_dir(folder);
            }
            takes
        });
        found.ok_or(
            "no folder takes the socket of a guest's terminal; name one of this user by TMPDIR"
                .into(),
        )
    }
}

/// The end of a log: its lines and its size.
fn read_log(path: &str, options: LogOptions) -> Result<(Vec<String>, u64), String> {
    let end = log_file::read_end(Path::new(path), options).map_err(|error| error.to_string())?;
    Ok((end.lines, end.size))
}

fn place_of(whose: &Terminal) -> Option<Place> {
    match whose {
        Terminal::Session(record) => runner_port::terminal(record, &runner_port::find(record)?),
        Terminal::Guest(_, socket) => Place::new(socket, crate::core::session::TERMINAL_SESSION),
    }
}

/// All that can be seen of a session.
fn facts(record: Record, ends: Vec<String>) -> Facts {
    let options = LogOptions { lines: LOG_LINES_DIAGNOSED, raw: false };
    let log = read_log(&record.log_file, options);
    // Such pages are passed on.
    let covered = |lines: Vec<String>| lines.iter().map(|line| redact::covered(line)).collect();
    let log = log.map(|(lines, size)| (size, covered(lines)));
    let unit = record.supervisor.unit().map(str::to_string);
    let runner = runner_port::find(&record);
    let place = runner.as_ref().and_then(|info| runner_port::terminal(&record, info));
    let alive = os::is_alive(record.process());
    let manager = |mut command: Command, bytes_max: usize| {
        command.env("LC_ALL", "C.UTF-8");
        let name = command.get_program().to_string_lossy().into_owned();
        call::run(command, MANAGER_TIME, bytes_max)
            .and_then(|called| called.output_of(&name))
            .map(|output| String::from_utf8_lossy(&output).into_owned())
    };
    Facts {
        detected_at: now_ms(),
        alive,
        current_pid: if alive { record.pid } else { 0 },
        terminal: place.is_some_and(|place| terminal::is_there(&place)),
        log: Some(log),
        runner: runner.map(|info| info.runner_id),
        memory_events: memory_events(record.pid).filter(|_| alive),
        unit: unit.as_deref().map(|unit| manager(show(unit), JOURNAL_BYTES_MAX)),
        journal: unit.as_deref().and_then(|unit| manager(journal(unit), JOURNAL_BYTES_MAX).ok()),
        record,
        ends,
    }
}

fn show(unit: &str) -> Command {
    let mut command = Command::new("systemctl");
    command.args(["--user", "show", &format!("{unit}.service"), "-p", SHOWN]);
    command
}

/// What the manager itself has written: a session can write to the same log in its own name.
fn journal(unit: &str) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["--user", "--quiet", "--no-pager", "--output=cat", "--lines=40"]);
    command.args(["_COMM=systemd".to_string(), format!("USER_UNIT={unit}.service")]);
    command
}

/// The kernel's counts for the control group of a process.
fn memory_events(pid: u32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let is_plain = !group.split('/').any(|part| part == "..");
    let folder = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let mut files = folder.iter().map(|root| Path::new(root).join(group).join("memory.events"));
    files.find_map(|file| fs::read_to_string(file).ok()).filter(|_| is_plain)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

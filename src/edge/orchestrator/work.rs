//! Threads `work`: what is done for a session, one order at a time for each. Several threads take
//! from one queue, since systemd answers late.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::process::Signal;

use super::{log_file, units};
use crate::core::ids::ProcessRef;
use crate::core::orchestrator::effect::{StartOrder, Work};
use crate::core::orchestrator::event::{Done, Event, Inspected, Prepared, StartFailure, Started};
use crate::core::orchestrator::log_text::LogOptions;
use crate::core::orchestrator::record::{PROCESS, Record, SYSTEMD, Supervisor};
use crate::core::orchestrator::systemd::{Exit, UnitState};
use crate::os;
use crate::wire::control::ENV_SESSION_LAUNCH;

/// A unit that was started must show its main process in that time.
const MAIN_PROCESS_TIME: Duration = Duration::from_secs(2);
/// Between two looks at what tells no news by itself.
const LOOK: Duration = Duration::from_millis(50);
/// Between two looks whether a runner is ready.
const READY_LOOK: Duration = Duration::from_millis(5);
/// What was killed must be gone in that time.
const KILL_TIME: Duration = Duration::from_secs(2);
/// A unit whose main process is gone is over in that time: systemd kills what is left.
const UNIT_END_TIME: Duration = Duration::from_secs(30);
/// Lines of a log that tell why a start failed.
const LAST_LINES: usize = 3;

/// What is said of a session that has none of the ceilings that it was given.
const NO_CEILINGS: &str =
    "its ceilings do not hold: only systemd can set them, and this user has none that answers";

/// What the threads know.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Sessions are started as units.
    pub systemd: bool,
    /// Sessions work in it or below it.
    pub base_dir: String,
    /// Id of this boot.
    pub boot_id: String,
}

/// Body of each thread.
pub fn run(worker: Worker, orders: Receiver<(String, Work)>, lane: Sender<Event>) {
    for (session, work) in orders {
        let done = worker.carry_out(work);
        os::crash_point("worked");
        if lane.send(Event::Worked { session, done }).is_err() {
            return;
        }
    }
}

/// Waits without anything to wait for.
fn pause(time: Duration) {
    os::wait(&mut [], Some(time));
}

/// Something is tried again until then.
fn until<T>(limit: Duration, step: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        pause(step);
    }
}

/// Ends everything that carries a launch in its environment. The error names what is still there.
fn end_launch(launch: &str) -> Result<(), String> {
    if launch.is_empty() {
        return Ok(());
    }
    let mut left = Vec::new();
    for _ in 0..5 {
        left = os::processes_with_env(ENV_SESSION_LAUNCH, launch);
        if left.is_empty() {
            return Ok(());
        }
        left.iter().for_each(|process| os::kill(*process, Signal::KILL));
        for process in &left {
            os::wait_for_end(*process, KILL_TIME);
        }
    }
    let pids: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
    Err(format!("processes {} do not end", pids.join(", ")))
}

/// The end of a log in one line; empty if it says nothing.
fn last_words(log: &str) -> String {
    let options = LogOptions { lines: LAST_LINES, ..LogOptions::default() };
    let lines = log_file::read_end(Path::new(log), options).map(|end| end.lines);
    let lines = lines.unwrap_or_default();
    if lines.is_empty() { String::new() } else { format!(": {}", lines.join("; ")) }
}

fn prepare(base_dir: &str, cwd: &str) -> Result<Prepared, String> {
    let real = |path: &str| fs::canonicalize(path).map(|path| path.to_string_lossy().into_owned());
    let found = real(cwd).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("cwd does not exist: {cwd}"),
        _ => format!("cwd {cwd} cannot be used: {error}"),
    })?;
    if !Path::new(&found).is_dir() {
        return Err(format!("cwd is not a folder: {cwd}"));
    }
    let base = real(base_dir)
        .map_err(|error| format!("the base directory {base_dir} cannot be used: {error}"))?;
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Ok(Prepared { cwd: found, base, meminfo })
}

impl Worker {
    fn carry_out(&self, work: Work) -> Done {
        match work {
            Work::Prepare { cwd, options_file, options } => {
                let ground = prepare(&self.base_dir, &cwd).and_then(|ground| {
                    if !options.is_null() {
                        os::write_private_file(Path::new(&options_file), &options.to_string())
                            .map_err(|error| format!("cannot write {options_file}: {error}"))?;
                    }
                    Ok(ground)
                });
                Done::Prepared(ground)
            }
            Work::Start(order) => Done::Started(self.start(&order)),
            Work::Inspect { record, options_file } => {
                Done::Inspected(Box::new(self.inspect(&record, &options_file)))
            }
            Work::Stop { record, grace_ms } => {
                Done::Stopped(self.stop(&record, Duration::from_millis(grace_ms)))
            }
            Work::Collect { record, exit } => {
                let (exit, left) = self.collect(&record, exit);
                Done::Collected { exit, left }
            }
            Work::Clean { files } => {
                files.iter().for_each(|file| drop(fs::remove_file(file)));
                Done::Cleaned
            }
        }
    }

    fn start(&self, order: &StartOrder) -> Result<Started, StartFailure> {
        let failed = |text: String| StartFailure { text, exit: Exit::Unknown };
        if let Some(unit) = order.record.supervisor.unit() {
            let _ = units::stop(unit);
            units::forget(unit);
        }
        end_launch(&order.former_launch).map_err(failed)?;
        write_files(order).map_err(failed)?;
        if !self.systemd {
            return start_process(order, None);
        }
        match start_unit(order) {
            Err(NotStarted::Runner(failure)) => Err(failure),
            Err(NotStarted::Unit(text)) => {
                let _ = units::stop(&order.unit.unit);
                units::forget(&order.unit.unit);
                let note = format!(
                    "systemd does not start it ({text}); it runs as a process, which ends with the orchestrator's own service"
                );
                // The start of the unit may have taken the file of secrets away.
                write_files(order).map_err(failed)?;
                start_process(order, Some(note))
            }
            Ok(started) => Ok(started),
        }
    }

    fn inspect(&self, record: &Record, options_file: &str) -> Inspected {
        let options = os::open_file(Path::new(options_file)).ok();
        let options = options.and_then(|file| serde_json::from_reader(file).ok());
        let found = |process| Inspected { process, exit: Exit::Unknown, options, left: Ok(()) };
        if let Some(process) = self.living(record) {
            return found(Some(process));
        }
        let rebooted = !record.boot_id.is_empty() && record.boot_id != self.boot_id;
        let (exit, left) = self.collect(record, Exit::Unknown);
        let exit = if rebooted { Exit::Reboot } else { exit };
        Inspected { exit, left, ..found(None) }
    }

    /// The main process of a session, if it lives.
    fn living(&self, record: &Record) -> Option<ProcessRef> {
        if let Some(unit) = unit_of(record, self.systemd) {
            let state = units::show(&unit).unwrap_or_default();
            let main = until(MAIN_PROCESS_TIME, LOOK, || match units::show(&unit) {
                Ok(state) if state.is_up() => main_process(&state).map(Some),
                _ => Some(None),
            });
            if state.is_up() && main.is_none() {
                // Something of it runs, and nobody can tell what.
                let _ = units::stop(&unit);
            }
            if let Some(process) = main.flatten() {
                return Some(process);
            }
        }
        if record.boot_id != self.boot_id && !crate::planted::is("believed-pid") {
            return None;
        }
        if record.pid > 0 {
            return Some(record.process()).filter(|process| os::is_alive(*process));
        }
        // It was about to start when the orchestrator ended: its oldest process is the main one.
        let of_launch = match record.launch_id.as_str() {
            "" => Vec::new(),
            launch => os::processes_with_env(ENV_SESSION_LAUNCH, launch),
        };
        of_launch.into_iter().min_by_key(|process| (process.start, process.pid))
    }

    /// How a session ended whose main process is gone; what it has left is ended.
    fn collect(&self, record: &Record, told: Exit) -> (Exit, Result<(), String>) {
        let Some(unit) = unit_of(record, self.systemd) else {
            self.kill_group(record);
            return (told, end_launch(&record.launch_id));
        };
        let over =
            until(UNIT_END_TIME, LOOK, || units::show(&unit).ok().filter(|state| !state.is_up()));
        let Some(state) = over else {
            units::kill(&unit);
            let left = units::stop(&unit);
            return (Exit::Unknown, left.and_then(|()| end_launch(&record.launch_id)));
        };
        let exit = if record.supervisor.unit().is_some() { state.exit() } else { told };
        units::forget(&unit);
        (exit, end_launch(&record.launch_id))
    }

    /// A pid of another boot means nothing.
    fn kill_group(&self, record: &Record) {
        if record.supervisor.unit().is_none() && record.boot_id == self.boot_id {
            os::kill_group_of(record.process(), Signal::KILL);
        }
    }

    /// Politely at first, then by force; the error says what is still there.
    fn stop(&self, record: &Record, grace: Duration) -> Result<(), String> {
        let main = self.living(record);
        if let Some(main) = main {
            // The runner ends its session in order; a unit's own end would tell all of it at once.
            os::kill(main, Signal::TERM);
            let ended = os::wait_for_end(main, grace);
            os::reap(main.pid);
            if !ended && record.supervisor.unit().is_none() {
                os::kill(main, Signal::KILL);
                os::wait_for_end(main, KILL_TIME);
                os::reap(main.pid);
            }
            if !ended && let Some(unit) = record.supervisor.unit() {
                units::kill(unit);
            }
        }
        if let Some(unit) = record.supervisor.unit() {
            units::stop(unit)?;
            units::forget(unit);
        }
        self.kill_group(record);
        end_launch(&record.launch_id)?;
        match main.filter(|main| os::is_alive(*main)) {
            Some(main) => Err(format!("process {} does not end", main.pid)),
            None => Ok(()),
        }
    }
}

/// The unit that a session has, or may have: the orchestrator may have ended while it started.
fn unit_of(record: &Record, systemd: bool) -> Option<String> {
    let may_have = systemd && record.supervisor.kind.is_empty() && !record.launch_id.is_empty();
    let named = record.supervisor.unit().map(str::to_string);
    named.or_else(|| may_have.then(|| crate::core::orchestrator::names::unit(&record.name)))
}

fn main_process(state: &UnitState) -> Option<ProcessRef> {
    let process = os::process(state.main_pid);
    (state.main_pid > 0 && os::is_alive(process)).then_some(process)
}

/// Script, secrets, folders and the log. What others must not read is 0600, the script 0700.
fn write_files(order: &StartOrder) -> Result<(), String> {
    let refused = |path: &str, error: io::Error| format!("cannot write {path}: {error}");
    let record = &order.record;
    let parent = |path: &str| Path::new(path).parent().map(Path::to_path_buf).unwrap_or_default();
    for file in [&order.script_file, &record.runner_info_file, &record.log_file] {
        os::make_private_dir(&parent(file)).map_err(|error| refused(file, error))?;
    }
    let _ = fs::remove_file(&record.runner_info_file);
    let script = Path::new(&order.script_file);
    os::replace_private_file(script, &order.script, false)
        .and_then(|()| fs::set_permissions(script, Permissions::from_mode(0o700)))
        .map_err(|error| refused(&order.script_file, error))?;
    os::replace_private_file(Path::new(&order.environment_file), order.environment.expose(), false)
        .map_err(|error| refused(&order.environment_file, error))?;
    open_log(order).map(drop).map_err(|error| refused(&record.log_file, error))
}

/// The log of a first start begins anew; that of a further one goes on.
fn open_log(order: &StartOrder) -> io::Result<fs::File> {
    let is_first = order.former_launch.is_empty();
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    let file = os::open_private(Path::new(&order.record.log_file), &mut options)?;
    if is_first {
        file.set_len(0)?;
    }
    Ok(file)
}

enum NotStarted {
    /// The runner has ended: it would end in the same way as a process.
    Runner(StartFailure),
    /// There is no such unit.
    Unit(String),
}

fn start_unit(order: &StartOrder) -> Result<Started, NotStarted> {
    let unit = &order.unit.unit;
    let mut started = units::start(&order.unit);
    if started.as_ref().is_err_and(|said| said.contains("already")) {
        // Left by somebody who had this name before.
        let _ = units::stop(unit);
        units::forget(unit);
        started = units::start(&order.unit);
    }
    if let Err(said) = started {
        let state = units::show(unit).unwrap_or_default();
        let ended = state.load_state == "loaded" && !state.is_up() && state.exit().is_failure();
        let exit = state.exit();
        if ended && exit != Exit::Unknown {
            units::forget(unit);
            let text = format!("{exit}{}", last_words(&order.record.log_file));
            return Err(NotStarted::Runner(StartFailure { text, exit }));
        }
        return Err(NotStarted::Unit(said));
    }
    let process = until(MAIN_PROCESS_TIME, LOOK, || main_process(&units::show(unit).ok()?));
    let Some(process) = process else {
        return Err(NotStarted::Unit(format!(
            "systemd unit {unit}.service started without a MainPID"
        )));
    };
    let supervisor = Supervisor {
        kind: SYSTEMD.into(),
        unit: Some(unit.clone()),
        launch_script: Some(order.script_file.clone()),
    };
    Ok(Started { process, supervisor, note: None })
}

fn start_process(order: &StartOrder, note: Option<String>) -> Result<Started, StartFailure> {
    let record = &order.record;
    let failed = |text: String| StartFailure { text, exit: Exit::Unknown };
    let log = open_log(order).and_then(|log| Ok((log.try_clone()?, log)));
    let (out, err) =
        log.map_err(|error| failed(format!("cannot write {}: {error}", record.log_file)))?;
    let mut command = Command::new(&order.script_file);
    command.current_dir(&record.cwd).env_clear().env(ENV_SESSION_LAUNCH, &record.launch_id);
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    os::prepare_apart(&mut command);
    let mut child = command
        .spawn()
        .map_err(|error| failed(format!("cannot run {}: {error}", order.script_file)))?;
    let process = os::process(child.id());
    let limit = Duration::from_secs(order.unit.start_seconds);
    // Its runner tells where it is once it can be asked.
    let is_ready = || {
        let told = fs::read_to_string(&record.runner_info_file).ok()?;
        serde_json::from_str::<serde_json::Value>(&told).ok()
    };
    let seen = until(limit, READY_LOOK, || match child.try_wait() {
        Ok(Some(status)) => Some(Err(status)),
        _ => is_ready().map(|_| Ok(())),
    });
    match seen {
        Some(Ok(())) => {
            let launch_script = Some(order.script_file.clone());
            let supervisor = Supervisor { kind: PROCESS.into(), unit: None, launch_script };
            let bounded = !record.ceilings.is_none();
            let note = note.or_else(|| bounded.then(|| NO_CEILINGS.into()));
            Ok(Started { process, supervisor, note })
        }
        Some(Err(status)) => {
            let _ = end_launch(&record.launch_id);
            use std::os::unix::process::ExitStatusExt;
            let exit = match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            };
            Err(StartFailure { text: format!("{exit}{}", last_words(&record.log_file)), exit })
        }
        None => {
            let _ = child.kill();
            let _ = child.wait();
            let left = end_launch(&record.launch_id).err().unwrap_or_default();
            let text = format!(
                "its runner was not ready within {} s{}{left}",
                order.unit.start_seconds,
                last_words(&record.log_file)
            );
            Err(StartFailure { text, exit: Exit::TimedOut })
        }
    }
}

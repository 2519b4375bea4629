//! Terminals of sessions and of guests, by calls of tmux. Each session has a terminal server of its
//! own, which its runner tells; a guest's server is a child of ours and ends with us.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::call;
use crate::core::ids::ProcessRef;
use crate::core::limits::{
    ATTACH_SPEC_BYTES_MAX, TERMINAL_HISTORY, TERMINAL_READ_BYTES_MAX, TMUX_TIME,
};
use crate::core::orchestrator::guests::AttachSpec;
use crate::core::orchestrator::input::{self, Token};
use crate::core::orchestrator::picture::{FORMAT, Picture};
use crate::core::session::TERMINAL_SESSION;
use crate::os;
use crate::provider::text::shell_quoted;

/// What tmux says where there is no such terminal.
const NOBODY: [&str; 6] = [
    "can't find ",
    "no server running",
    "error connecting",
    "no sessions",
    "lost server",
    "server exited",
];
/// What a guest has run may take so long to end when its terminal is gone.
const END_TIME: Duration = Duration::from_millis(500);
/// Variables of our own that a guest's command gets too; no other one reaches it.
const HANDED_ON: [&str; 9] =
    ["HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TZ", "USER"];
/// A guest ends with its program, and takes the size of whoever looks at it last.
const GUEST_CONF: &str = "\
set -g status off
set -g default-size 200x50
set -g mouse off
set -g escape-time 0
set -g history-limit 2000
set -g default-terminal xterm-256color
set -g update-environment ''
setw -g allow-rename off
";

/// Where a terminal is: its server's socket, and its name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Session of tmux.
    pub session: String,
}

impl Place {
    /// Checked: a socket of this user (a server of somebody else could have the client write
    /// files), and a name that tmux takes for nothing else. None: no such terminal is there.
    pub fn new(socket: &str, session: &str) -> Option<Place> {
        let socket = PathBuf::from(socket);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_ours = fs::symlink_metadata(&socket).is_ok_and(|meta| {
            meta.file_type().is_socket() && meta.uid() == rustix::process::geteuid().as_raw()
        });
        let is_name = !session.is_empty() && session.chars().all(is_plain);
        (socket.is_absolute() && is_ours && is_name)
            .then(|| Place { socket, session: session.into() })
    }

    /// The pane, by its exact name: tmux takes others for beginnings of names.
    fn target(&self) -> String {
        format!("={}:", self.session)
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        // It starts no server where there is none.
        command.args(["-u", "-N", "-S"]).arg(&self.socket);
        command.env_remove("TMUX").env_remove("TMUX_PANE").env("LC_ALL", "C.UTF-8");
        command
    }

    /// What a call said; none: there is no such terminal.
    fn ask(&self, words: &[&str], what: &str) -> Result<Option<Vec<u8>>, String> {
        let mut command = self.tmux();
        command.args(words);
        let called = call::run(command, TMUX_TIME, TERMINAL_READ_BYTES_MAX)?;
        if called.code != 0 && NOBODY.iter().any(|start| called.complaint.starts_with(start)) {
            return Ok(None);
        }
        called.output_of(&format!("tmux {what}")).map(Some)
    }
}

/// Whether the terminal is there.
pub fn is_there(place: &Place) -> bool {
    UnixStream::connect(&place.socket).is_ok()
        && place
            .ask(&["has-session", "-t", &place.target()], "has-session")
            .is_ok_and(|told| told.is_some())
}

/// What it shows; none: it is not there.
pub fn capture(place: &Place) -> Result<Option<Picture>, String> {
    let (target, history) = (place.target(), format!("-{TERMINAL_HISTORY}"));
    let head = ["display-message", "-p", "-t", &target, FORMAT, ";"];
    let body = ["capture-pane", "-p", "-e", "-S", &history, "-t", &target];
    let told = place.ask(&[&head[..], &body[..]].concat(), "capture-pane")?;
    Ok(told.map(|told| Picture::read(&told)))
}

/// Types and presses; how many of the tokens have arrived. None: it is not there. An error ends it:
/// what was sent before stays sent.
pub fn send(place: &Place, tokens: &[Token]) -> Result<Option<usize>, String> {
    // Somebody may be looking back, which would take the keys. It is also how a terminal that is
    // not there is noticed where nothing is to be sent.
    if place.ask(&["copy-mode", "-q", "-t", &place.target()], "copy-mode")?.is_none() {
        return Ok(None);
    }
    let mut sent = 0;
    for call in input::calls(&place.target(), tokens) {
        let words: Vec<&str> = call.words.iter().map(String::as_str).collect();
        if place.ask(&words, "send-keys")?.is_none() {
            return Ok(None);
        }
        sent += call.tokens;
    }
    Ok(Some(sent))
}

/// Gives it another size; false: it is not there.
pub fn resize(place: &Place, columns: u16, rows: u16) -> Result<bool, String> {
    let (target, columns, rows) = (place.target(), columns.to_string(), rows.to_string());
    let words = ["resize-window", "-t", &target, "-x", &columns, "-y", &rows];
    Ok(place.ask(&words, "resize-window")?.is_some())
}

/// What a guest's terminal is made of, checked before.
#[allow(missing_docs)] // the names say it
pub struct GuestPlan<'a> {
    /// A folder for it alone; it is made, and removed at its end.
    pub dir: &'a Path,
    pub cwd: &'a str,
    pub command: &'a [String],
    /// Variables of the command.
    pub env: &'a BTreeMap<String, String>,
    /// Columns and rows.
    pub size: (u16, u16),
}

/// The terminal of a guest: a server of its own, which ends when this is dropped, with the thread
/// that has started it, and with its program.
pub struct Guest {
    server: Child,
    dir: PathBuf,
    /// Where it is.
    pub place: Place,
}

impl Guest {
    /// Starts it. Its variables are the environment of the server: in the words of a command every
    /// user of the machine could read them.
    pub fn start(plan: &GuestPlan<'_>) -> Result<Guest, String> {
        let failed = |what: &str, error: std::io::Error| format!("cannot {what}: {error}");
        os::make_private_dir(plan.dir)
            .and_then(|()| fs::set_permissions(plan.dir, Permissions::from_mode(0o700)))
            .map_err(|error| failed(&format!("make {}", plan.dir.display()), error))?;
        let (conf, script) = (plan.dir.join("tmux.conf"), plan.dir.join("guest.sh"));
        for (path, text) in [(&conf, GUEST_CONF), (&script, &guest_script(plan))] {
            os::replace_private_file(path, text, false)
                .map_err(|error| failed(&format!("write {}", path.display()), error))?;
        }
        let socket = plan.dir.join("s");
        let mut command = Command::new("tmux");
        command.args(["-u", "-D", "-S"]).arg(&socket).arg("-f").arg(&conf);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir(plan.cwd).env_clear();
        command.envs(handed_on());
        command.envs(plan.env).env_remove("TMUX").env_remove("TMUX_PANE");
        os::prepare_child(&mut command, true);
        let server = command.spawn().map_err(|error| failed("start tmux", error))?;
        let place = Place { socket, session: TERMINAL_SESSION.into() };
        let mut guest = Guest { server, dir: plan.dir.into(), place };
        guest.open(plan, &script)?;
        Ok(guest)
    }

    /// Opens the one session of the server, as soon as that accepts.
    fn open(&mut self, plan: &GuestPlan<'_>, script: &Path) -> Result<(), String> {
        let until = Instant::now() + TMUX_TIME;
        while UnixStream::connect(&self.place.socket).is_err() {
            if Instant::now() > until || !self.is_running() {
                return Err("tmux does not serve; it must be 3.2 or newer".into());
            }
            // A socket file cannot be waited for; nothing else is done by this thread meanwhile.
            std::thread::sleep(Duration::from_millis(2));
        }
        let (columns, rows) = (plan.size.0.to_string(), plan.size.1.to_string());
        let script = script.to_string_lossy();
        let mut command = self.place.tmux();
        // In an argument tmux would read signs of its own into the folder.
        command.current_dir(plan.cwd);
        // The one variable that a new session takes from its client, not from the server.
        let path = plan.env.get("PATH").map(OsString::from).or_else(|| std::env::var_os("PATH"));
        command.envs(path.map(|path| ("PATH", path)));
        command.args(["new-session", "-d", "-s", TERMINAL_SESSION, "-x", &columns, "-y", &rows]);
        // The words of a command are taken as they are, but for a semicolon at the end.
        command.args(["/bin/sh", &input::argument(&script), ";", "set", "-g", "exit-empty", "on"]);
        let called = call::run(command, TMUX_TIME, TERMINAL_READ_BYTES_MAX)?;
        called.output_of("tmux guest creation").map(drop)
    }

    /// Whether its server runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.server.try_wait(), Ok(None))
    }

    /// The process of its server.
    pub fn pid(&self) -> u32 {
        self.server.id()
    }
}

impl Drop for Guest {
    /// The server hangs up on its programs; what does not end because of that is killed.
    fn drop(&mut self) {
        let server = os::process(self.server.id());
        let family = os::descendants(server);
        let mut command = self.place.tmux();
        command.arg("kill-server");
        let until = Instant::now() + END_TIME;
        let asked = self.is_running() && call::run(command, END_TIME, 1024).is_ok();
        for process in family.into_iter().chain([server]) {
            if asked {
                wait_for_end(process, until);
            }
            os::kill(process, Signal::KILL);
        }
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Waits until a process has ended, or until then.
fn wait_for_end(process: ProcessRef, until: Instant) {
    let pid = Pid::from_raw(process.pid as i32).filter(|_| os::is_alive(process));
    let end = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(end) = end.filter(|_| os::is_alive(process)) {
        let left = until.saturating_duration_since(Instant::now());
        os::wait(&mut [PollFd::new(&end, PollFlags::IN)], Some(left));
    }
}

/// The variables of a command that attaches, those among them whose values stand in files.
pub fn variables(spec: &AttachSpec) -> Result<BTreeMap<String, String>, String> {
    let mut all = spec.env.clone();
    for (name, path) in &spec.env_files {
        let failed = |error: std::io::Error| format!("cannot read {path}: {error}");
        let file = os::open_file(Path::new(path)).map_err(failed)?;
        let mut value = String::new();
        file.take(ATTACH_SPEC_BYTES_MAX as u64).read_to_string(&mut value).map_err(failed)?;
        all.insert(name.clone(), value.trim_end().into());
    }
    Ok(all)
}

/// Our own variables that a guest gets.
fn handed_on() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| HANDED_ON.iter().any(|known| name == known))
}

/// What the pane runs. A client of another terminal refuses to run within one that it knows of.
fn guest_script(plan: &GuestPlan<'_>) -> String {
    let words: Vec<String> = plan.command.iter().map(|word| shell_quoted(word)).collect();
    let cwd = shell_quoted(plan.cwd);
    format!("#!/bin/sh\nunset TMUX TMUX_PANE\ncd -- {cwd} || exit 1\nexec {}\n", words.join(" "))
}

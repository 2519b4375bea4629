//! The provider as processes: looking it up on PATH, the process in the terminal, last words, and
//! the end of everything that it has started.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal as OsSignal};

use super::READ_BYTES;
use super::tmux::{Tmux, TmuxEvent};
use crate::core::agent::store::ProviderRecord;
use crate::core::ids::ProcessRef;
use crate::core::session::Screen;
use crate::os;
use crate::provider::launch::LaunchError;
use crate::provider::registry::USUAL_PLACES;
use crate::wire::control::ENV_PROVIDER_SESSION;

/// Lines of the last screen that are reported.
const LAST_LINES: usize = 12;

/// Waits until tmux has named the process in its terminal.
pub(super) fn first_pane(mut tmux: Tmux) -> std::io::Result<(Tmux, u32)> {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let mut fds = [PollFd::new(&tmux.output, PollFlags::IN)];
        os::wait(&mut fds, Some(until.saturating_duration_since(Instant::now())));
        if !os::is_ready(&fds[0]) {
            return Err(std::io::Error::other("tmux did not tell the process of its pane in time"));
        }
        let mut buffer = vec![0u8; READ_BYTES];
        let size = tmux.output.read(&mut buffer)?;
        if size == 0 {
            return Err(std::io::Error::other(
                "tmux ended at once; it must be version 3.2 or newer",
            ));
        }
        for told in tmux.parse(&buffer[..size]) {
            match told {
                TmuxEvent::Pane(pid) => return Ok((tmux, pid)),
                // The question was faster than the session; it is asked again.
                TmuxEvent::Failed(_) => {
                    std::thread::sleep(Duration::from_millis(2));
                    tmux.ask_pane()?;
                }
                _ => {}
            }
        }
    }
}

/// Last lines of a terminal, without colours.
pub(super) fn last_words(screen: &Screen) -> Vec<u8> {
    let text = crate::core::screen::plain(&screen.text);
    let lines: Vec<&str> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n").into_bytes()
}

pub(super) fn path_of(env: &[(String, String)]) -> String {
    let set = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    set.or_else(|| std::env::var("PATH").ok()).unwrap_or_default()
}

/// Where a command is: a path as it is, a name by PATH, else in the places that installers of
/// programs use. Services and cron have a short PATH.
pub fn find_command(program: &str, env: &[(String, String)]) -> Option<String> {
    if program.contains('/') {
        return Path::new(program).is_file().then(|| program.to_string());
    }
    let home = os::user_home();
    let usual = USUAL_PLACES.iter().filter_map(|place| match place.strip_prefix("~/") {
        Some(below) => home.as_ref().map(|home| home.join(below)),
        None => Some(PathBuf::from(place)),
    });
    let path = path_of(env);
    let found = std::env::split_paths(&path)
        .chain(usual)
        .map(|folder| folder.join(program))
        .find(|file| os::is_program(file));
    found.map(|file| file.to_string_lossy().into_owned())
}

/// The sentence about a command that was not found.
pub(super) fn missing_command(program: &str, env: &[(String, String)], hint: &str) -> String {
    format!(
        "the command {program:?} was not found; {hint} (PATH is {:?}; {} were looked at too)",
        path_of(env),
        USUAL_PLACES.join(", ")
    )
}

pub(super) fn not_found(program: &str, env: &[(String, String)], hint: &str) -> LaunchError {
    LaunchError::permanent(missing_command(program, env, hint))
}

pub(super) fn reap(mut child: Child) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    match child.wait() {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
        Err(_) => 255,
    }
}

/// Ends a child of ours, its group, and all that it has started: what carries the session id in its
/// environment, what descends from it, and what such processes have left to us when they ended. New
/// processes may appear while the old ones are being ended, hence the rounds.
pub fn end_everything(provider_session: &str, child: ProcessRef) {
    let pid = child.pid;
    let mut family = os::descendants(child);
    let inherited = rustix::process::getpgid(Pid::from_raw(pid as i32))
        .is_ok_and(|group| group == rustix::process::getpgrp());
    if !inherited {
        os::kill_group(pid, OsSignal::KILL);
    }
    let rounds = if crate::planted::is("forgotten-group") { 0 } else { 5 };
    for _ in 0..rounds {
        let mut rest = os::processes_with_env(ENV_PROVIDER_SESSION, provider_session);
        if !crate::planted::is("forgotten-family") {
            rest.append(&mut family);
            rest.extend(os::adopted(&[pid], child.start));
        }
        if rest.is_empty() {
            return;
        }
        for process in rest {
            os::kill(process, OsSignal::KILL);
        }
    }
}

/// Ends what an earlier runner of this agent left behind: the terminals that still listen at these
/// sockets, the process with that pid and start time, and everything with its session id.
pub(super) fn end_leftover(record: &ProviderRecord, terminals: &[PathBuf]) {
    terminals.iter().for_each(|socket| end_terminal(socket));
    if os::is_alive(record.process) {
        log::warn!(target: "lifecycle", "ending the provider of an earlier runner pid={}", record.process.pid);
        os::kill_group(record.process.pid, OsSignal::KILL);
        os::kill(record.process, OsSignal::KILL);
    }
    for _ in 0..20 {
        let rest = os::processes_with_env(ENV_PROVIDER_SESSION, &record.provider_session);
        if rest.is_empty() && !os::is_alive(record.process) {
            return;
        }
        for process in rest {
            os::kill(process, OsSignal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10)); // the kernel is ending them
    }
}

/// Ends the terminal server that still listens at this socket, with all that runs in it. Nobody but
/// an earlier start of this agent has put it there.
fn end_terminal(socket: &Path) {
    let Ok(listening) = UnixStream::connect(socket) else { return };
    let Ok(peer) = rustix::net::sockopt::socket_peercred(&listening) else { return };
    let server = os::process(peer.pid.as_raw_nonzero().get() as u32);
    if peer.uid != rustix::process::geteuid() || server.pid == std::process::id() {
        return;
    }
    log::warn!(target: "lifecycle", "ending the terminal of an earlier runner pid={}", server.pid);
    let family = os::descendants(server);
    for process in [server].into_iter().chain(family) {
        os::kill(process, OsSignal::KILL);
    }
    let _ = std::fs::remove_file(socket);
}

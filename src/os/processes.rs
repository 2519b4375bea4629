//! Processes: who lives, whose children they are, and how they are ended. A pid counts only
//! together with its start time.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open, waitpid,
};

use crate::core::ids::ProcessRef;

/// Places of the parent and of the start time in `/proc/<pid>/stat`, counted from the state on.
const PARENT: usize = 1;
const START: usize = 19;

/// Start time of a process in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    stat(pid)?.get(START)?.parse().ok()
}

/// The process that has this pid now; if there is none, one that is not alive.
pub fn process(pid: u32) -> ProcessRef {
    ProcessRef { pid, start: start_time(pid).unwrap_or_default() }
}

/// Fields of `/proc/<pid>/stat` after the command name, state first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after = text.rsplit_once(')')?.1;
    Some(after.split_whitespace().map(str::to_string).collect())
}

/// Whether the process with this pid and start time lives; a zombie does not.
pub fn is_alive(process: ProcessRef) -> bool {
    stat(process.pid).is_some_and(|fields| {
        runs(&fields) && fields.get(START).map(String::as_str) == Some(&process.start.to_string())
    })
}

/// Whether the process with this pid and start time lives and is this user's.
pub fn is_own(process: ProcessRef) -> bool {
    let owner = fs::metadata(format!("/proc/{}", process.pid)).map(|meta| meta.uid());
    is_alive(process) && owner.is_ok_and(|uid| uid == rustix::process::geteuid().as_raw())
}

/// All processes that carry `name=value` in their environment. A child cannot lose it by
/// changing its process group, so this finds what a provider left behind anywhere.
pub fn processes_with_env(name: &str, value: &str) -> Vec<ProcessRef> {
    let wanted = format!("{name}={value}");
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|text| text.parse::<u32>().ok()) else {
            continue;
        };
        if pid == own {
            continue;
        }
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
            continue;
        };
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
            && let process = process(pid)
            && is_alive(process)
        {
            found.push(process);
        }
    }
    found
}

/// Kills the process with this pid and start time, if it lives.
pub fn kill(process: ProcessRef, signal: Signal) {
    if is_alive(process)
        && let Some(pid) = Pid::from_raw(process.pid as i32)
    {
        let _ = kill_process(pid, signal);
    }
}

/// A descriptor that is readable once the process has ended; none if it has ended already.
pub fn end_of(process: ProcessRef) -> Option<OwnedFd> {
    let end = pidfd_open(Pid::from_raw(process.pid as i32)?, PidfdFlags::empty()).ok()?;
    // Looked at behind the opening: the descriptor is of the process that had the pid then.
    is_alive(process).then_some(end)
}

/// Waits for the end of a process; whether it has come.
pub fn wait_for_end(process: ProcessRef, limit: Duration) -> bool {
    let Some(end) = end_of(process) else { return true };
    super::wait(&mut [PollFd::new(&end, PollFlags::IN)], Some(limit));
    !is_alive(process)
}

/// Takes note of the end of a child: exit code or signal. None if it is no child of ours, or runs.
pub fn reap(pid: u32) -> Option<(Option<i32>, Option<i32>)> {
    let (_, status) = waitpid(Pid::from_raw(pid as i32), WaitOptions::NOHANG).ok()??;
    Some((status.exit_status(), status.terminating_signal()))
}

/// Signals a process group.
pub fn kill_group(group: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(group as i32) {
        let _ = kill_process_group(pid, signal);
    }
}

/// Signals what is left of the process group of a process that has led one, as long as no other
/// process has got its pid.
pub fn kill_group_of(leader: ProcessRef, signal: Signal) {
    let is_free = process(leader.pid).start == 0 || is_alive(leader);
    if leader.pid > 1 && leader.start > 0 && is_free {
        kill_group(leader.pid, signal);
    }
}

/// One process of the machine.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    process: ProcessRef,
    parent: u32,
    /// False: it has ended, and its parent has not been told yet.
    runs: bool,
}

fn runs(fields: &[String]) -> bool {
    fields.first().is_some_and(|state| state != "Z" && state != "X")
}

/// All processes that this one can see.
fn table() -> Vec<Row> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let row = |pid: u32| {
        let fields = stat(pid)?;
        let start = fields.get(START)?.parse().ok()?;
        let parent = fields.get(PARENT)?.parse().ok()?;
        Some(Row { process: ProcessRef { pid, start }, parent, runs: runs(&fields) })
    };
    pids.filter_map(row).collect()
}

/// Children of a process and theirs, the nearest and oldest first. Nothing that a child can change
/// takes it out of this list, as long as its parents live.
pub fn descendants(of: ProcessRef) -> Vec<ProcessRef> {
    family(&table(), of)
}

fn family(table: &[Row], of: ProcessRef) -> Vec<ProcessRef> {
    let mut found: Vec<&Row> = table.iter().filter(|row| row.process == of).collect();
    let mut at = 0;
    while let Some(parent) = found.get(at).map(|row| row.process) {
        // A child is never older than its parent: an older one belonged to whoever had that pid.
        let is_child = |row: &&Row| {
            row.parent == parent.pid && row.process.start >= parent.start && !found.contains(row)
        };
        let mut children: Vec<&Row> = table.iter().filter(is_child).collect();
        children.sort_by_key(|row| row.process.start);
        found.extend(children);
        at += 1;
    }
    found.iter().skip(1).filter(|row| row.runs).map(|row| row.process).collect()
}

/// From now on what our descendants leave behind becomes ours instead of the machine's first
/// process: so nothing that a session starts gets out of sight. Whoever asks for this has to reap.
pub fn adopt_orphans() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// Children that others have left to us since that time, with theirs: not those of `own`, which we
/// have started ourselves. The first process of a container is given what nobody started for it:
/// there nobody is told apart.
pub fn adopted(own: &[u32], since: u64) -> Vec<ProcessRef> {
    let me = std::process::id();
    if me == 1 {
        return Vec::new();
    }
    let table = table();
    let is_left = |row: &&Row| {
        row.parent == me && row.process.start >= since && !own.contains(&row.process.pid)
    };
    let left = table.iter().filter(is_left);
    left.flat_map(|row| {
        row.runs.then_some(row.process).into_iter().chain(family(&table, row.process))
    })
    .collect()
}

/// Takes note of the end of children that others have left to us. Those of `own` belong to whoever
/// has started them and waits for their exit codes.
pub fn reap_adopted(own: &[u32]) {
    let me = std::process::id();
    let is_over = |row: &&Row| row.parent == me && !row.runs && !own.contains(&row.process.pid);
    for row in table().iter().filter(is_over) {
        let _ = waitpid(Pid::from_raw(row.process.pid as i32), WaitOptions::NOHANG);
    }
}

/// Whether we were started with the end of a terminal ignored, as `nohup` does it.
pub fn ignores_hangup() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| is_ignored(&status, Signal::HUP))
}

/// Whether the text of `/proc/<pid>/status` says so of a signal.
fn is_ignored(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (signal.as_raw() - 1) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: u32, parent: u32, start: u64) -> Row {
        Row { process: ProcessRef { pid, start }, parent, runs: true }
    }

    #[test]
    fn a_family_is_found_whatever_its_members_are_called() {
        let table = [
            row(1, 0, 0),
            row(10, 1, 100),
            row(13, 11, 130),
            row(12, 10, 120),
            row(11, 10, 110),
            row(14, 13, 140),
            // Started before its parent: the pid had another owner.
            row(15, 13, 50),
            Row { runs: false, ..row(16, 12, 160) },
            row(17, 16, 170),
        ];
        let pids = |of: ProcessRef| -> Vec<u32> {
            family(&table, of).iter().map(|process| process.pid).collect()
        };
        assert_eq!(pids(ProcessRef { pid: 10, start: 100 }), [11, 12, 13, 14, 17]);
        assert_eq!(pids(ProcessRef { pid: 13, start: 130 }), [14]);
        assert_eq!(pids(ProcessRef { pid: 10, start: 99 }), [0; 0], "another process");
    }

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        for (status, want) in [
            ("Name:\tx\nSigIgn:\t0000000000001001\n", true),
            ("SigIgn:\t0000000000001000\n", false),
            ("SigCgt:\t0000000000000001\n", false),
            ("SigIgn:\tno\n", false),
            ("", false),
        ] {
            assert_eq!(is_ignored(status, Signal::HUP), want, "{status}");
        }
    }
}

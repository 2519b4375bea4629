//! What is seen of the provider's processes from outside: whether they compute, move bytes, or have
//! anything to do with the network. Looked at only when a session is probed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};

use crate::core::ids::ProcessRef;
use crate::core::session::{Input, Signs};
use crate::os;
use crate::wire::control::ENV_PROVIDER_SESSION;

/// What the provider has let us read so far.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Bytes of its streams, or pictures of its terminal.
    pub output: u64,
    /// Bytes of its files.
    record: u64,
    /// Port at which we ask it: what goes over that says nothing about what it does by itself.
    pub own_port: Option<u16>,
    /// It is a server: what it reads and writes itself is its records, for each of our questions
    /// and now and then. What it does comes over the network or by those that it starts.
    is_server: bool,
}

impl Heard {
    /// Nothing so far.
    pub fn of(is_server: bool) -> Heard {
        Heard { is_server, ..Heard::default() }
    }

    /// Its files have changed in this way.
    pub fn note_files(&mut self, seen: &[Input]) {
        self.record += seen
            .iter()
            .map(|input| match input {
                Input::FileAppended(bytes) => bytes.len() as u64,
                Input::FileChanged { .. } | Input::FileReset => 1,
                _ => 0,
            })
            .sum::<u64>();
    }
}

/// One clock tick of the kernel's tables, ms.
const TICK_MS: u64 = 10;
/// Processes of one provider that are looked at.
const PROCESSES_MAX: usize = 1024;
/// Descriptors of one process that are looked at.
const DESCRIPTORS_MAX: usize = 4096;

/// A row of the kernel's table of processes.
struct Row {
    parent: u32,
    name: String,
    /// With what its ended children have computed.
    ticks: u64,
}

/// All processes that can be seen.
fn processes() -> BTreeMap<u32, Row> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let row = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let ticks = (11..15).filter_map(number).sum();
        let name = head.split_once('(')?.1.to_string();
        Some((pid, Row { parent: number(1)? as u32, name, ticks }))
    };
    entries.filter_map(row).collect()
}

/// The provider and all that it has started: by descent, and by the mark in the environment for
/// what has left its parents.
fn family(all: &BTreeMap<u32, Row>, root: ProcessRef, provider_session: &str) -> BTreeSet<u32> {
    let marked = os::processes_with_env(ENV_PROVIDER_SESSION, provider_session);
    let mut found: BTreeSet<u32> = marked.into_iter().map(|process| process.pid).collect();
    found.insert(root.pid);
    loop {
        let more: Vec<u32> = all
            .iter()
            .filter(|(pid, row)| found.contains(&row.parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() || found.len() > PROCESSES_MAX {
            return found;
        }
        found.extend(more);
    }
}

/// Bytes that a process has read and written, files and pipes included.
fn moved(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let counts = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(':')?;
        matches!(name, "rchar" | "wchar").then(|| count.trim().parse::<u64>().ok())?
    });
    counts.sum()
}

/// The sockets of a process, by their inodes.
fn sockets(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inode = |entry: fs::DirEntry| {
        let to = fs::read_link(entry.path()).ok()?;
        to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    entries.take(DESCRIPTORS_MAX).filter_map(inode).collect()
}

/// Everything that can be seen now.
pub(super) fn look(root: ProcessRef, provider_session: &str, heard: &Heard) -> Signs {
    let all = processes();
    let family = family(&all, root, provider_session);
    let rows: Vec<(u32, &Row)> =
        family.iter().filter_map(|pid| Some((*pid, all.get(pid)?))).collect();
    let inodes: BTreeSet<u32> = rows.iter().flat_map(|(pid, _)| sockets(*pid)).collect();
    Signs {
        output: heard.output,
        record: heard.record,
        computed_ms: rows.iter().map(|(_, row)| row.ticks * TICK_MS).sum(),
        moved: rows
            .iter()
            .filter(|(pid, _)| {
                !heard.is_server || *pid != root.pid || crate::planted::is("busy-records")
            })
            .map(|(pid, _)| moved(*pid))
            .sum(),
        network: if inodes.is_empty() { 0 } else { network(&inodes, heard.own_port) },
        processes: rows.iter().map(|(pid, row)| (*pid, row.name.clone())).collect(),
    }
}

/// The kernel answers at once; who must not ask it gets no answer.
const KERNEL_TIME: Duration = Duration::from_millis(200);
/// Pieces of an answer that are read.
const PIECES_MAX: usize = 4096;
/// Address families of TCP: IPv4 and IPv6.
const FAMILIES: [u8; 2] = [2, 10];
/// Kind of a message that asks for sockets, and of its answers.
const BY_FAMILY: u16 = 20;
/// Kind of the message that ends an answer.
const DONE: u16 = 3;
/// Attribute of an answer: counters of the connection.
const TCP_INFO: u16 = 2;

/// Bytes that came and went over the TCP connections with these inodes, as the kernel counts them;
/// those at `own_port` do not count.
fn network(inodes: &BTreeSet<u32>, own_port: Option<u16>) -> u64 {
    let flags = SocketFlags::CLOEXEC;
    let Ok(kernel) =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG))
    else {
        return 0;
    };
    let bytes = |family: &u8| bytes_of(&kernel, *family, inodes, own_port).unwrap_or(0);
    FAMILIES.iter().map(bytes).sum()
}

/// The question for all TCP sockets of a family, with their counters.
fn question(family: u8) -> [u8; 72] {
    let mut asked = [0u8; 72];
    asked[0..4].copy_from_slice(&72u32.to_ne_bytes());
    asked[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    asked[6..8].copy_from_slice(&0x301u16.to_ne_bytes()); // a request for all
    (asked[16], asked[17], asked[18]) = (family, 6, 1 << (TCP_INFO - 1));
    asked[20..24].copy_from_slice(&0xfffu32.to_ne_bytes()); // in every state
    asked
}

fn bytes_of(
    kernel: &OwnedFd,
    family: u8,
    inodes: &BTreeSet<u32>,
    own_port: Option<u16>,
) -> Option<u64> {
    rustix::io::write(kernel, &question(family)).ok()?;
    let (mut sum, mut piece) = (0, vec![0u8; 64 << 10]);
    for _ in 0..PIECES_MAX {
        let mut fds = [PollFd::from_borrowed_fd(kernel.as_fd(), PollFlags::IN)];
        os::wait(&mut fds, Some(KERNEL_TIME));
        if !os::is_ready(&fds[0]) {
            return Some(sum);
        }
        let size = rustix::io::read(kernel, &mut piece[..]).ok()?;
        let mut rest = &piece[..size];
        while let Some(length) = u32_at(rest, 0).map(|it| it as usize).filter(|it| *it >= 16) {
            let message = rest.get(..length)?;
            match u16_at(message, 4)? {
                BY_FAMILY if u32_at(message, 84).is_some_and(|it| inodes.contains(&it)) => {
                    // Local and remote, in the order of the network.
                    let ports = [20, 22].map(|at| u16_at(message, at).map(u16::from_be));
                    let is_own = own_port.is_some() && ports.contains(&own_port);
                    if !is_own || crate::planted::is("own-words-live") {
                        sum += counted(message.get(88..)?);
                    }
                }
                BY_FAMILY => {}
                DONE => return Some(sum),
                _ => return None,
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Some(sum)
}

/// Bytes acknowledged and received, among the attributes of a socket.
fn counted(mut attributes: &[u8]) -> u64 {
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length);
        if kind == TCP_INFO {
            let count = |at: usize| {
                let bytes = attributes.get(4 + at..12 + at)?;
                Some(u64::from_ne_bytes(bytes.try_into().ok()?))
            };
            return count(120).unwrap_or(0) + count(128).unwrap_or(0);
        }
        if length < 4 {
            break;
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    0
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    fn start(script: &str) -> (Child, ProcessRef) {
        let mut command = Command::new("sh");
        let child =
            command.args(["-c", script]).stdin(Stdio::null()).spawn().expect("a shell is here");
        let process = os::process(child.id());
        (child, process)
    }

    fn signs(of: ProcessRef) -> Signs {
        look(of, "no session has this mark", &Heard::default())
    }

    /// Looks until it is so; a machine under load only takes longer.
    fn until(of: ProcessRef, what: &str, is_so: impl Fn(&Signs) -> bool) -> Signs {
        let begin = Instant::now();
        loop {
            let signs = signs(of);
            if is_so(&signs) {
                return signs;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "never {what}: {signs:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_child_that_computes_is_seen_and_one_that_sleeps_does_not() {
        let (mut busy, process) = start("(while :; do :; done) & wait");
        let first = until(process, "two processes", |it| it.processes.len() == 2);
        until(process, "computing", |it| it.computed_ms >= first.computed_ms + 100);
        let children = signs(process).processes;
        for (pid, _) in children.iter().filter(|(pid, _)| *pid != process.pid) {
            os::kill(os::process(*pid), rustix::process::Signal::KILL);
        }
        busy.wait().expect("ends");
        let (mut idle, process) = start("sleep 600 & wait");
        let named = |it: &Signs| it.processes.iter().any(|(_, name)| name == "sleep");
        let before = until(process, "asleep", named);
        let after = signs(process);
        assert!(after.computed_ms - before.computed_ms <= 2 * TICK_MS, "{before:?} {after:?}");
        for (pid, _) in after.processes {
            os::kill(os::process(pid), rustix::process::Signal::KILL);
        }
        idle.wait().expect("ends");
    }

    /// Its children's bytes still count.
    #[test]
    fn the_records_of_a_server_are_no_sign_of_it() {
        let (mut child, process) = start("cat /proc/self/status >/dev/null; sleep 600 & wait");
        let named = |it: &Signs| it.processes.iter().any(|(_, name)| name == "sleep");
        let all = until(process, "asleep", named).moved;
        let rest = look(process, "no session has this mark", &Heard::of(true));
        assert!(moved(process.pid) > 0 && rest.moved > 0, "{rest:?}");
        assert_eq!(rest.moved + moved(process.pid), all, "{rest:?}");
        for (pid, _) in rest.processes {
            os::kill(os::process(pid), rustix::process::Signal::KILL);
        }
        child.wait().expect("ends");
    }

    #[test]
    fn what_goes_over_a_connection_is_counted() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let mut one =
                TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
            let (mut other, _) = listener.accept().expect("accepts");
            let own: BTreeSet<u32> = {
                use std::os::fd::AsRawFd;
                let inode = |fd: i32| {
                    let to = fs::read_link(format!("/proc/self/fd/{fd}")).expect("is open");
                    let text = to.to_str().expect("text").to_string();
                    text.trim_start_matches("socket:[")
                        .trim_end_matches(']')
                        .parse()
                        .expect("inode")
                };
                [one.as_raw_fd(), other.as_raw_fd()].map(inode).into()
            };
            assert!(own.iter().all(|inode| sockets(std::process::id()).contains(inode)));
            let before = network(&own, None);
            one.write_all(&[7; 5000]).expect("writes");
            other.read_exact(&mut [0; 5000]).expect("reads");
            let more = network(&own, None) - before;
            assert!((5000..=10_002).contains(&more), "{address}: {more} bytes");
            let port = listener.local_addr().expect("bound").port();
            assert_eq!(network(&own, Some(port)), 0, "what we ask it is none of its signs");
            assert_eq!(network(&own, Some(1)) - before, more);
        }
    }
}

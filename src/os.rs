//! Thin wrappers of the operating system: random bytes, hashes, wake-ups, files of ours, and
//! processes by pid and start time.

mod processes;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::OFlags;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, kill_process, pidfd_open, setrlimit,
};

pub use self::processes::{
    adopt_orphans, adopted, descendants, end_of, ignores_hangup, is_alive, is_own, kill,
    kill_group, kill_group_of, process, processes_with_env, reap, reap_adopted, wait_for_end,
};

/// Random bytes for ids, tokens and seeds.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// A fresh secret: 32 random bytes as base64url.
pub fn secret() -> String {
    data_encoding::BASE64URL_NOPAD.encode(&random_bytes::<32>())
}

/// SHA-256 as hex.
pub fn sha256_hex(text: &str) -> String {
    data_encoding::HEXLOWER
        .encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref())
}

/// Wakes a thread that waits in poll or epoll.
#[derive(Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A fresh one.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Wakes; many wakes before the next look count as one.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Forgets past wakes; called by the thread that waited.
    pub fn clear(&self) {
        let mut buffer = [0u8; 8];
        let _ = rustix::io::read(&self.0, &mut buffer);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits for descriptors; `None` waits for ever. Interrupted waits count as a wake-up.
pub fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) {
    let limit = timeout.map(|left| Timespec {
        tv_sec: left.as_secs().min(1 << 30) as i64,
        tv_nsec: left.subsec_nanos().into(),
    });
    if poll(fds, limit.as_ref()).is_err() {
        for fd in fds {
            fd.clear_revents();
        }
    }
}

/// Readable or broken: either way a read tells.
pub fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
}

/// Host name, for ids and cards.
pub fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "host".into() } else { name }
}

/// Home of the user: what HOME says, else what the password file says, as programs take it that we
/// start. `None`: nobody says.
pub fn user_home() -> Option<PathBuf> {
    let said = std::env::var_os("HOME").filter(|home| !home.is_empty());
    said.map(PathBuf::from).or_else(|| {
        let users = fs::read_to_string("/etc/passwd").ok()?;
        home_of(&users, rustix::process::getuid().as_raw())
    })
}

/// The home of a user in the text of a password file.
fn home_of(users: &str, uid: u32) -> Option<PathBuf> {
    let fields = |line: &str| -> Option<PathBuf> {
        let mut fields = line.split(':').skip(2);
        let (id, home) = (fields.next()?, fields.nth(2)?);
        (id.parse() == Ok(uid) && home.starts_with('/')).then(|| PathBuf::from(home))
    };
    users.lines().find_map(fields)
}

/// Id of this boot of the machine: start times of processes mean something only together with it.
pub fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_string())
}

/// Raises the soft limit of descriptors to the hard one (at most `DESCRIPTORS_WANTED`) and returns
/// it. What we start gets the limit that we were started with: some programs count on a small one.
pub fn raise_descriptors() -> u64 {
    let limit = *STARTED_WITH.get_or_init(|| getrlimit(Resource::Nofile));
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(DESCRIPTORS_WANTED);
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if now < wanted
        && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
            .is_ok()
    {
        return wanted;
    }
    now
}

/// More connections than this are never served.
const DESCRIPTORS_WANTED: u64 = 65_536;
/// The limit of descriptors before it was raised.
static STARTED_WITH: OnceLock<Rlimit> = OnceLock::new();

/// Has the kernel kill the child when the spawning thread ends, so that thread must live as long as
/// the process. `apart`: in a process group of its own.
pub fn prepare_child(command: &mut std::process::Command, apart: bool) {
    if apart {
        command.process_group(0);
    }
    // A child that tells the service manager something would speak as this process.
    command.env_remove(crate::notify::NOTIFY_SOCKET);
    let parent = std::process::id();
    let descriptors = STARTED_WITH.get().copied();
    // SAFETY: between fork and exec only three system calls are made; none allocates or takes a
    // lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if let Some(limit) = descriptors {
                let _ = setrlimit(Resource::Nofile, limit);
            }
            // The parent may have died before the promise was made.
            match rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32) {
                Some(pid) if pid == parent => Ok(()),
                _ => Err(io::Error::from(io::ErrorKind::NotFound)),
            }
        });
    }
}

/// A child that outlives us: in a process group of its own, with the limits that we were started
/// with.
pub fn prepare_apart(command: &mut std::process::Command) {
    command.process_group(0);
    let descriptors = STARTED_WITH.get().copied();
    // SAFETY: between fork and exec only one system call is made; it neither allocates nor takes a
    // lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            if let Some(limit) = descriptors {
                let _ = setrlimit(Resource::Nofile, limit);
            }
            Ok(())
        });
    }
}

/// Opens a file of ours, for its owner only (0600) where it is made; never through a symbolic link:
/// whoever may write the folder could lead us to another file.
pub fn open_private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)
        .map_err(|error| {
            if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it is a symbolic link, where there must be a file of ours; remove it",
                )
            } else {
                error
            }
        })
}

/// Opens a file of ours for reading: a file, and neither a link to one nor something that would
/// keep its reader waiting.
pub fn open_file(path: &Path) -> io::Result<File> {
    let file = open_private(path, OpenOptions::new().read(true))?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    Ok(file)
}

/// Why the files below a folder are not safe from other users of this machine: everybody may write
/// it or a folder above it, and could put other files in their place. In folders that are shared by
/// design (`/tmp`) nobody can replace what is not his own.
pub fn exposed(folder: &Path) -> Option<String> {
    let real = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let is_open = |path: &&Path| {
        let mode = fs::metadata(path).map_or(0, |meta| meta.mode());
        let shared = mode & 0o1000 != 0 && **path != *real;
        mode & 0o002 != 0 && !shared
    };
    let open = folder.ancestors().chain(real.ancestors()).find(is_open)?.display();
    Some(format!(
        "every user of this machine may write {open} and put other files there; close it with `chmod o-w {open}`"
    ))
}

/// The folder on the way to this one that another user owns, root apart: its owner can put other
/// files there.
pub fn foreign_folder(folder: &Path) -> Option<&Path> {
    let own = rustix::process::geteuid().as_raw();
    folder
        .ancestors()
        .find(|path| fs::metadata(path).is_ok_and(|meta| meta.uid() != own && meta.uid() != 0))
}

/// Makes a directory with all parents, closed to others (0700).
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Replaces a file atomically and durably; only its owner may read it (0600).
pub fn write_private_file(path: &Path, text: &str) -> io::Result<()> {
    replace_private_file(path, text, true)
}

/// The same; what every start writes anew need not wait for the disk.
pub fn replace_private_file(path: &Path, text: &str, durable: bool) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_private_dir(parent)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = || {
        // What lies there is of a process that died; never written through, whatever it is.
        let _ = fs::remove_file(&temporary);
        let mut file = open_private(&temporary, OpenOptions::new().write(true).create_new(true))?;
        file.write_all(text.as_bytes())?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    };
    written().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// A killed holder of a lock is waited for at most so long.
const LOCK_TIME: Duration = Duration::from_secs(2);

/// Takes an exclusive lock that lasts as long as the file is open; `None`: somebody has it. Whoever
/// was killed has it until the last of its threads has ended, a moment after it counts as dead:
/// that is waited for, by the pid that holders write into it.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let file =
        open_private(path, OpenOptions::new().create(true).read(true).write(true).truncate(false))?;
    let try_lock =
        || match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(io::Error::from(error)),
        };
    let mut locked = try_lock()?;
    let holder = || fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    if !locked && let Some(pid) = holder().filter(|pid| !is_alive(process(*pid))) {
        if let Some(end) =
            Pid::from_raw(pid as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        {
            wait(&mut [PollFd::new(&end, PollFlags::IN)], Some(LOCK_TIME));
        }
        locked = try_lock()?;
    }
    Ok(locked.then_some(file))
}

/// A file that can be run.
pub fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Free bytes on the disk that holds a path.
pub fn free_bytes(path: &Path) -> Option<u64> {
    rustix::fs::statvfs(path).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A named place where a test may end things: `AGENT_RELAY_CRASH_AT=<name>:<n>` kills the process
/// at the n-th passage, as a power cut would; `panic@<name>:<n>` panics there. Without that
/// variable it costs one look at an empty cell.
pub fn crash_point(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static WANTED: OnceLock<Option<(String, bool, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("AGENT_RELAY_CRASH_AT").ok()?;
        let (place, count) = text.rsplit_once(':')?;
        let panics = place.starts_with("panic@");
        Some((place.trim_start_matches("panic@").to_string(), panics, count.parse().ok()?))
    });
    let Some((_, panics, _)) = wanted.as_ref().filter(|(place, _, count)| {
        place == name && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count
    }) else {
        return;
    };
    assert!(!panics, "asked for by AGENT_RELAY_CRASH_AT at {name}");
    let _ = kill_process(rustix::process::getpid(), Signal::KILL);
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_read_from_the_password_file() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken:x:7\nodd:x:8:8::relative:/bin/sh\n\
                     a:x:1000:1000:A, B:/home/a:/bin/sh\n";
        for (uid, want) in
            [(0, Some("/root")), (1000, Some("/home/a")), (7, None), (8, None), (9, None)]
        {
            assert_eq!(home_of(users, uid), want.map(PathBuf::from), "{uid}");
        }
    }
}

//! Files that the provider writes: one that grows is followed, small ones are watched. inotify
//! tells when to look; what is read is bounded, and nothing is read while nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::core::ids::ProcessRef;
use crate::core::session::{Input, WATCHED_BYTES_MAX};
use crate::os;

/// Bytes of one piece.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces in one reading; then orders have their turn.
const PIECES_MAX: usize = 16;
/// Files of processes that are looked at: more than live on a machine.
const FAMILY_FILES_MAX: usize = 4096;
/// Difference that is allowed between our clock and that of a file system.
const CLOCK_SLACK: Duration = Duration::from_secs(60);
/// Between readings where the kernel tells of no changes.
pub const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Reads what changes in the files of one provider process.
pub struct FileWatcher {
    inotify: Option<OwnedFd>,
    followed: Option<Followed>,
    watched: BTreeMap<PathBuf, Given>,
    family: Option<Family>,
    /// More can be read at once: call [`FileWatcher::read_changes`] again.
    pub has_more: bool,
    /// The kernel tells of no changes (its limits are used up): files are looked at now and then.
    polling: bool,
}

/// A process that is looked for by the file that it keeps of itself.
struct Family {
    folder: PathBuf,
    /// What the name of the file has behind the pid.
    suffix: &'static str,
    /// It is this one, or descends from it.
    root: ProcessRef,
    found: Option<ProcessRef>,
    /// A file that is older belongs to an earlier process with the same pid.
    since: SystemTime,
}

impl Family {
    /// The nearest and oldest one that has a file: what a session starts later has one too.
    fn find(&self) -> Option<ProcessRef> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let pid = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.strip_suffix(self.suffix)?.parse::<u32>().ok()?;
            let changed = entry.metadata().and_then(|meta| meta.modified()).ok()?;
            (changed >= self.since).then_some(pid)
        };
        let pids: BTreeSet<u32> = entries.take(FAMILY_FILES_MAX).filter_map(pid).collect();
        if pids.contains(&self.root.pid) {
            return Some(self.root);
        }
        let has_file = |process: &ProcessRef| pids.contains(&process.pid);
        (!pids.is_empty()).then(|| os::descendants(self.root).into_iter().find(has_file))?
    }

    fn file_of(&self, process: ProcessRef) -> PathBuf {
        self.folder.join(format!("{}{}", process.pid, self.suffix))
    }
}

/// What the session was last given of a watched file.
enum Given {
    Nothing,
    /// Its content; `None`: it is not there.
    Content(Option<String>),
}

struct Followed {
    path: PathBuf,
    file: Option<File>,
    offset: u64,
    /// Where to begin when the file is opened for the first time.
    whole: bool,
    caught: bool,
}

impl Default for FileWatcher {
    fn default() -> FileWatcher {
        FileWatcher::new()
    }
}

impl FileWatcher {
    /// A watcher of nothing.
    pub fn new() -> FileWatcher {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        FileWatcher {
            inotify,
            followed: None,
            watched: BTreeMap::new(),
            family: None,
            has_more: false,
            polling: false,
        }
    }

    /// Readable when something may have changed.
    pub fn descriptor(&self) -> Option<&OwnedFd> {
        self.inotify.as_ref().filter(|_| self.followed.is_some() || self.family.is_some())
    }

    /// Follows this file instead of another.
    pub fn follow(&mut self, path: &str, whole: bool) {
        let path = PathBuf::from(path);
        let file = open_plain(&path);
        // A file that is not there yet is read from its beginning when it comes.
        let offset = match (&file, whole) {
            (Some(file), false) => file.metadata().map(|meta| meta.len()).unwrap_or(0),
            _ => 0,
        };
        self.followed = Some(Followed { path, file, offset, whole, caught: false });
        self.has_more = true;
    }

    /// Follows this file from that byte on; what is shorter by then, from its beginning.
    pub fn follow_from(&mut self, path: &str, offset: u64) {
        self.follow(path, true);
        if let Some(followed) = &mut self.followed {
            followed.offset = offset;
        }
    }

    /// Follows nothing any more.
    pub fn unfollow(&mut self) {
        self.followed = None;
    }

    /// Watches the small file of the process that is `root` or descends from it, once there is one.
    pub fn watch_process(&mut self, folder: &str, suffix: &'static str, root: ProcessRef) {
        let folder = PathBuf::from(folder);
        let since = SystemTime::now().checked_sub(CLOCK_SLACK).unwrap_or(SystemTime::UNIX_EPOCH);
        self.family = Some(Family { folder, suffix, root, found: None, since });
        self.has_more = true;
    }

    /// The process whose file is watched.
    pub fn process(&self) -> Option<ProcessRef> {
        self.family.as_ref()?.found.filter(|process| os::is_alive(*process))
    }

    /// Looks for that process until it is found, and for another one when it has ended.
    fn find_process(&mut self) {
        if self.process().is_some() {
            return;
        }
        let Some(family) = &mut self.family else { return };
        let found = family.find();
        if let Some(process) = found.filter(|_| found != family.found) {
            family.found = found;
            self.watched.insert(family.file_of(process), Given::Nothing);
        }
    }

    /// After what time to read although nothing tells of a change.
    pub fn poll_after(&self) -> Option<Duration> {
        (self.polling && (self.followed.is_some() || self.family.is_some()))
            .then_some(POLL_INTERVAL)
    }

    /// Takes the notices of inotify away, or its descriptor would stay readable.
    pub fn drain_notices(&mut self) {
        if let Some(fd) = &self.inotify {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(fd, &mut buffer);
            while reader.next().is_ok() {}
        }
    }

    /// What is new, bounded; `has_more` tells whether to read again at once.
    pub fn read_changes(&mut self) -> Vec<Input> {
        self.has_more = false;
        self.add_watches();
        self.find_process();
        let mut seen = Vec::new();
        for (path, told) in &mut self.watched {
            let text = read_small(path);
            if !matches!(told, Given::Content(before) if *before == text) {
                *told = Given::Content(text.clone());
                seen.push(Input::FileChanged { path: path.to_string_lossy().into_owned(), text });
            }
        }
        if let Some(followed) = &mut self.followed {
            self.has_more = followed.read(&mut seen);
        }
        seen
    }

    /// Directories of all files, or of what exists above them; a watch that is there already stays.
    fn add_watches(&mut self) {
        let watched = self.try_add_watches();
        if !watched && !self.polling {
            log::warn!(
                target: "provider",
                "the kernel tells of no changes of files: raise fs.inotify.max_user_instances and max_user_watches; they are looked at \
                 every {} ms instead",
                POLL_INTERVAL.as_millis()
            );
        }
        self.polling = !watched;
    }

    fn try_add_watches(&self) -> bool {
        let Some(fd) = &self.inotify else { return false };
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        let family = self.family.iter().map(|family| family.folder.as_path());
        let followed = self.followed.iter().filter_map(|followed| followed.path.parent());
        let mut folders = family.chain(followed);
        folders.all(|folder| {
            folder.ancestors().any(|folder| inotify::add_watch(fd, folder, flags).is_ok())
        })
    }
}

impl Followed {
    /// Reads what has come; true: there is more.
    fn read(&mut self, seen: &mut Vec<Input>) -> bool {
        let there = fs::metadata(&self.path).ok();
        let open = self.file.as_ref().and_then(|file| file.metadata().ok());
        let same = matches!((&there, &open), (Some(a), Some(b)) if a.ino() == b.ino() && a.dev() == b.dev());
        let cut = there.as_ref().is_some_and(|meta| meta.len() < self.offset);
        if there.is_some() && (!same || cut) {
            // What was still to be read of the one before; its rest is no line of the new one.
            if !same && self.read_on(seen) {
                return true;
            }
            if self.file.is_some() {
                seen.push(Input::FileReset);
            }
            self.file = open_plain(&self.path);
            self.offset = 0;
        }
        if self.read_on(seen) {
            return true;
        }
        if !self.caught {
            self.caught = true;
            self.whole = false;
            seen.push(Input::CaughtUp);
        }
        false
    }

    /// Reads on in the file that is open; true: there is more.
    fn read_on(&mut self, seen: &mut Vec<Input>) -> bool {
        let Some(file) = &mut self.file else { return false };
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return false;
        }
        let mut piece = vec![0u8; PIECE_BYTES];
        for _ in 0..PIECES_MAX {
            match file.read(&mut piece) {
                Ok(0) => return false,
                Ok(size) => {
                    self.offset += size as u64;
                    seen.push(Input::FileAppended(piece[..size].to_vec()));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// Opens a plain file; anything else (a pipe would make us wait for its writer) counts as not
/// there.
fn open_plain(path: &Path) -> Option<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().is_ok_and(|meta| meta.is_file()).then_some(file)
}

fn read_small(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    open_plain(path)?.take(WATCHED_BYTES_MAX as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use super::*;

    fn text_of(inputs: &[Input]) -> String {
        let show = |input: &Input| match input {
            Input::FileAppended(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Input::CaughtUp => "<caught>".into(),
            Input::FileReset => "<rewound>".into(),
            Input::FileChanged { text, .. } => format!("<file {text:?}>"),
            other => format!("{other:?}"),
        };
        inputs.iter().map(show).collect()
    }

    #[test]
    fn a_file_is_followed_through_growth_replacement_and_cuts() {
        let dir =
            std::env::temp_dir().join(format!("agent-relay-file-watcher-{}", std::process::id()));
        let path = dir.join("later/log");
        fs::create_dir_all(&dir).expect("folder");
        let mut watcher = FileWatcher::new();
        watcher.follow(&path.to_string_lossy(), false);
        assert_eq!(text_of(&watcher.read_changes()), "<caught>", "not there yet");
        fs::create_dir_all(path.parent().expect("has one")).expect("folder");
        fs::write(&path, "one\n").expect("writes");
        assert_eq!(
            text_of(&watcher.read_changes()),
            "one\n",
            "read from its beginning when it comes"
        );
        File::options()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"two\n"))
            .expect("writes");
        assert_eq!(text_of(&watcher.read_changes()), "two\n");
        assert_eq!(text_of(&watcher.read_changes()), "");
        fs::write(&path, "3\n").expect("cut");
        assert_eq!(text_of(&watcher.read_changes()), "<rewound>3\n");
        let other = dir.join("other");
        fs::write(&other, "new file\n").expect("writes");
        fs::rename(&other, &path).expect("replaced");
        assert_eq!(text_of(&watcher.read_changes()), "<rewound>new file\n");
        watcher.follow(&path.to_string_lossy(), false);
        assert_eq!(text_of(&watcher.read_changes()), "<caught>", "from its end");
        watcher.follow(&path.to_string_lossy(), true);
        assert_eq!(text_of(&watcher.read_changes()), "new file\n<caught>", "from its beginning");
        // The rest of a file that is replaced is not lost.
        File::options()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"the rest\n"))
            .expect("writes");
        fs::write(&other, "a newer one\n").expect("writes");
        fs::rename(&other, &path).expect("replaced");
        assert_eq!(text_of(&watcher.read_changes()), "the rest\n<rewound>a newer one\n");
        // Neither a pipe nor a folder is waited for.
        let pipe = dir.join("pipe");
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        )
        .expect("a pipe");
        for path in [&pipe, &dir] {
            watcher.follow(&path.to_string_lossy(), true);
            assert_eq!(text_of(&watcher.read_changes()), "<caught>");
        }
        fs::remove_dir_all(&dir).expect("clean up");
    }

    /// A script that starts the program as its child, as launchers do it; it tells the child's pid.
    fn script() -> (std::process::Child, u32) {
        let mut script = std::process::Command::new("/bin/sh");
        script.args(["-c", "sleep 600 & echo $!; wait"]).stdout(std::process::Stdio::piped());
        let mut script = script.spawn().expect("a shell");
        let mut line = String::new();
        BufReader::new(script.stdout.take().expect("piped")).read_line(&mut line).expect("a pid");
        (script, line.trim().parse().expect("a pid"))
    }

    #[test]
    fn the_file_of_a_process_is_found_also_below_a_script() {
        let dir = std::env::temp_dir().join(format!("agent-relay-family-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("folder");
        let (mut script, program) = script();
        let root = os::process(script.id());
        let write = |pid: u32, text: &str| {
            fs::write(dir.join(format!("{pid}.json")), text).expect("writes");
        };
        let watch = || {
            let mut watcher = FileWatcher::new();
            watcher.watch_process(&dir.to_string_lossy(), ".json", root);
            watcher
        };
        let mut watcher = watch();
        write(std::process::id(), "a stranger");
        assert_eq!(text_of(&watcher.read_changes()), "");
        write(program, "x");
        assert_eq!(text_of(&watcher.read_changes()), "<file Some(\"x\")>");
        assert_eq!(watcher.process(), Some(os::process(program)));
        assert_eq!(text_of(&watcher.read_changes()), "");
        // What is started later is not looked for, but nothing is nearer than the process itself.
        write(root.pid, "y");
        assert_eq!(text_of(&watcher.read_changes()), "");
        assert_eq!(text_of(&watch().read_changes()), "<file Some(\"y\")>");
        // Of an earlier process with that pid.
        let file = File::options().write(true).open(dir.join(format!("{}.json", root.pid)));
        let old = SystemTime::now() - Duration::from_secs(3600);
        file.and_then(|file| file.set_modified(old)).expect("sets");
        assert_eq!(text_of(&watch().read_changes()), "<file Some(\"x\")>");
        os::kill(os::process(program), rustix::process::Signal::KILL);
        script.wait().expect("ends");
        assert_eq!(watcher.process(), None);
        fs::remove_dir_all(&dir).expect("clean up");
    }
}

//! Files that the provider writes: one that grows is followed, small ones are watched. inotify
//! tells when to look; what is read is bounded, and nothing is read while nothing changes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::core::session::{Input, WATCHED_BYTES_MAX};

/// Bytes of one piece.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces in one reading; then orders have their turn.
const PIECES_MAX: usize = 16;
/// Between readings where the kernel tells of no changes.
pub const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Reads what changes in the files of one provider process.
pub struct FileWatcher {
    inotify: Option<OwnedFd>,
    followed: Option<Followed>,
    watched: BTreeMap<PathBuf, Given>,
    /// More can be read at once: call [`FileWatcher::read_changes`] again.
    pub has_more: bool,
    /// The kernel tells of no changes (its limits are used up): files are looked at now and then.
    polling: bool,
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
            has_more: false,
            polling: false,
        }
    }

    /// Readable when something may have changed.
    pub fn descriptor(&self) -> Option<&OwnedFd> {
        self.inotify.as_ref().filter(|_| self.followed.is_some() || !self.watched.is_empty())
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

    /// Follows nothing any more.
    pub fn unfollow(&mut self) {
        self.followed = None;
    }

    /// Watches this small file too; the next reading tells its content.
    pub fn watch(&mut self, path: &str) {
        self.watched.insert(PathBuf::from(path), Given::Nothing);
        self.has_more = true;
    }

    /// After what time to read although nothing tells of a change.
    pub fn poll_after(&self) -> Option<Duration> {
        (self.polling && (self.followed.is_some() || !self.watched.is_empty()))
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
        let mut paths =
            self.watched.keys().chain(self.followed.iter().map(|followed| &followed.path));
        paths.all(|path| {
            path.ancestors().skip(1).any(|folder| inotify::add_watch(fd, folder, flags).is_ok())
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
    use std::io::Write;

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
        watcher.unfollow();
        let small = dir.join("small");
        watcher.watch(&small.to_string_lossy());
        assert_eq!(text_of(&watcher.read_changes()), "<file None>");
        fs::write(&small, "x").expect("writes");
        assert_eq!(text_of(&watcher.read_changes()), "<file Some(\"x\")>");
        assert_eq!(text_of(&watcher.read_changes()), "");
        fs::remove_dir_all(&dir).expect("clean up");
    }
}

//! The log of a session: its end, and what comes. It is read from the end backwards, so that a log
//! of any length costs the same, and followed by notices of the kernel.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::core::limits::LOG_WINDOW_BYTES_MAX;
use crate::core::orchestrator::log_text::{Following, LogOptions, last_lines};
use crate::core::session::Input;
use crate::edge::provider::file_watcher::FileWatcher;
use crate::os;

/// Bytes that are read first: what most questions need.
const FIRST_BYTES: usize = 32 << 10;

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// Its last lines, oldest first.
    pub lines: Vec<String>,
    /// Bytes that the log had; whoever follows goes on from here.
    pub size: u64,
    /// Bytes that were read for it, at most [`LOG_WINDOW_BYTES_MAX`].
    pub read: usize,
}

/// Reads the end of a log. An error: there is none, or it is not a file of ours.
pub fn read_end(path: &Path, options: LogOptions) -> io::Result<LogEnd> {
    let file = os::open_file(path)?;
    let size = file.metadata()?.len();
    let first = if crate::planted::is("whole-log") { size as usize } else { FIRST_BYTES };
    let (mut window, mut wanted) = (Vec::new(), first);
    loop {
        let whole = wanted as u64 >= size;
        let wanted_now = if whole { size as usize } else { wanted };
        window = longer(&file, size, window, wanted_now)?;
        let lines = last_lines(&window, whole, options);
        let enough = lines.len() >= options.lines || whole || wanted >= LOG_WINDOW_BYTES_MAX;
        if enough {
            return Ok(LogEnd { lines, size, read: window.len() });
        }
        // Four times as much: the rounds before cost a third of the last one.
        wanted = (wanted * 4).min(LOG_WINDOW_BYTES_MAX);
    }
}

/// The last `wanted` bytes of the first `size`, of which `known` are there already. A log that was
/// cut meanwhile has fewer.
fn longer(file: &File, size: u64, known: Vec<u8>, wanted: usize) -> io::Result<Vec<u8>> {
    let mut window = vec![0; wanted - known.len()];
    let from = size - wanted as u64;
    let mut filled = 0;
    while filled < window.len() {
        match file.read_at(&mut window[filled..], from + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    window.truncate(filled);
    window.extend_from_slice(&known);
    Ok(window)
}

/// A log that is followed. Nothing is read while nothing is written.
pub struct LogFollower {
    watcher: FileWatcher,
    following: Following,
}

impl LogFollower {
    /// Follows a log from that byte on; one that is not there yet, from its beginning.
    pub fn new(path: &Path, from: u64, raw: bool) -> LogFollower {
        let mut watcher = FileWatcher::new();
        watcher.follow_from(&path.to_string_lossy(), from);
        LogFollower { watcher, following: Following::new(raw) }
    }

    /// Waits until there is something new, or so long; the lines that are complete now, often none.
    pub fn wait(&mut self, limit: Duration) -> Vec<String> {
        let until = Instant::now() + limit;
        loop {
            let lines = self.read();
            let left = until.saturating_duration_since(Instant::now());
            if !lines.is_empty() || left.is_zero() {
                return lines;
            }
            if self.watcher.has_more {
                continue;
            }
            let left = self.watcher.poll_after().map_or(left, |pause| pause.min(left));
            match self.watcher.descriptor() {
                Some(notices) => os::wait(&mut [PollFd::new(notices, PollFlags::IN)], Some(left)),
                None => os::wait(&mut [], Some(left)),
            }
            self.watcher.drain_notices();
        }
    }

    fn read(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for change in self.watcher.read_changes() {
            match change {
                Input::FileAppended(bytes) => lines.extend(self.following.push(&bytes)),
                // Another run of the session writes from the beginning on.
                Input::FileReset => lines.extend(self.following.finish()),
                _ => {}
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let name = format!("agent-relay-log-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).expect("folder");
            Folder(dir)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn ask(lines: usize) -> LogOptions {
        LogOptions { lines, raw: false }
    }

    #[test]
    fn of_a_long_log_only_the_end_is_read() {
        let folder = Folder::new("long");
        let path = folder.0.join("log");
        let mut file = io::BufWriter::new(File::create(&path).expect("creates"));
        let count = 300_000;
        for n in 0..count {
            writeln!(file, "\u{1b}[32mline {n}\u{1b}[0m of a long log").expect("writes");
        }
        file.into_inner().expect("flushed");
        let size = std::fs::metadata(&path).expect("there").len();
        assert!(size > 9 << 20, "{size}");
        for (lines, read_max) in [(1, FIRST_BYTES), (100, FIRST_BYTES), (1000, FIRST_BYTES * 4)] {
            let end = read_end(&path, ask(lines)).expect("reads");
            assert_eq!((end.lines.len(), end.size), (lines, size));
            let want = format!("line {} of a long log", count - lines);
            assert_eq!(end.lines.first(), Some(&want));
            assert!(end.read <= read_max, "{} bytes for {lines} lines", end.read);
        }
    }

    #[test]
    fn what_has_no_lines_is_looked_at_only_so_far() {
        let folder = Folder::new("endless");
        let path = folder.0.join("log");
        for piece in ["x", "\n", "\u{1b}P"] {
            std::fs::write(&path, piece.repeat(3 << 20)).expect("writes");
            let end = read_end(&path, ask(1000)).expect("reads");
            assert_eq!(end.read, LOG_WINDOW_BYTES_MAX);
            assert!(end.lines.len() <= 1, "{}", end.lines.len());
        }
    }

    #[test]
    fn small_logs_are_read_whole_and_others_are_none() {
        let folder = Folder::new("small");
        let path = folder.0.join("log");
        assert!(read_end(&path, ask(5)).is_err(), "not there");
        for (text, want) in [("", &[] as &[&str]), ("a", &["a"]), ("a\nb\n\nc", &["b", "c"])] {
            std::fs::write(&path, text).expect("writes");
            let end = read_end(&path, ask(2)).expect("reads");
            assert_eq!(
                (end.lines, end.size),
                (want.iter().map(|s| s.to_string()).collect(), text.len() as u64)
            );
        }
        let link = folder.0.join("link");
        std::os::unix::fs::symlink(&path, &link).expect("link");
        assert!(read_end(&link, ask(5)).is_err(), "a link leads elsewhere");
        assert!(read_end(&folder.0, ask(5)).is_err(), "a folder");
    }

    /// Reads until nothing comes within a moment that the kernel needs at most.
    fn lines_until(follower: &mut LogFollower, count: usize) -> Vec<String> {
        let mut seen = Vec::new();
        let until = Instant::now() + Duration::from_secs(60);
        while seen.len() < count && Instant::now() < until {
            seen.extend(follower.wait(Duration::from_secs(5)));
        }
        seen
    }

    #[test]
    fn a_log_is_followed_from_where_its_end_was_read() {
        let folder = Folder::new("followed");
        let path = folder.0.join("log");
        std::fs::write(&path, "one\ntwo\n").expect("writes");
        let end = read_end(&path, ask(1)).expect("reads");
        let append = |text: &str| {
            let file = File::options().append(true).open(&path);
            file.and_then(|mut file| file.write_all(text.as_bytes())).expect("writes");
        };
        append("three\nfo");
        let mut follower = LogFollower::new(&path, end.size, false);
        assert_eq!(lines_until(&mut follower, 1), ["three"]);
        assert_eq!(follower.wait(Duration::ZERO), [""; 0]);
        append("ur\n");
        assert_eq!(lines_until(&mut follower, 1), ["four"]);
        // A writer that comes while somebody waits.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lines_until(&mut follower, 1));
            append("five\n");
            assert_eq!(waiting.join().expect("ends"), ["five"]);
        });
        // The session begins anew.
        append("its last wor");
        assert_eq!(follower.wait(Duration::ZERO), [""; 0]);
        std::fs::write(&path, "six\n").expect("cut");
        assert_eq!(lines_until(&mut follower, 2), ["its last wor", "six"]);
    }
}

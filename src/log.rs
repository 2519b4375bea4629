//! The logger of a runner: one file, levels changeable at run time.
//!
//! `env_logger` does the filtering and dispatch; the line format and the file are ours. Logging
//! never fails: what the file does not take goes to standard error if it is an error, and is lost
//! otherwise.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use log::LevelFilter;

use crate::core::chars::one_line;
use crate::wire::control::LogLevel;

/// The file is replaced when it grows beyond this.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Where lines go; set once, by [`start`].
static TARGET: OnceLock<Mutex<Target>> = OnceLock::new();

/// A level as people write it.
pub fn level_of(word: &str) -> Option<LogLevel> {
    LogLevel::parse(&word.trim().to_ascii_lowercase())
}

/// The level that the environment asks for.
pub fn start_level() -> LogLevel {
    let wanted = std::env::var("AGENT_RELAY_LOG_LEVEL").ok().and_then(|word| level_of(&word));
    let debug = std::env::var("AGENT_RELAY_SESSION_DEBUG").is_ok_and(|value| value == "1");
    wanted.unwrap_or(if debug { LogLevel::Debug } else { LogLevel::Info })
}

/// From which level on lines are written.
pub fn current_level() -> LogLevel {
    match log::max_level() {
        LevelFilter::Debug | LevelFilter::Trace => LogLevel::Debug,
        LevelFilter::Info => LogLevel::Info,
        LevelFilter::Warn => LogLevel::Warn,
        LevelFilter::Error => LogLevel::Error,
        LevelFilter::Off => LogLevel::Fatal,
    }
}

/// From now on only lines of this level and above are written.
pub fn set_level(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Error => LevelFilter::Error,
        // The `log` crate has no such level: these lines go past its filter.
        LogLevel::Fatal => LevelFilter::Off,
    });
}

struct Target {
    path: Option<PathBuf>,
    file: Option<File>,
    written: u64,
    echo: bool,
}

impl Target {
    fn open(path: &Path) -> std::io::Result<(File, u64)> {
        if let Some(parent) = path.parent() {
            crate::os::make_private_dir(parent)?;
        }
        let file = crate::os::open_private(path, OpenOptions::new().create(true).append(true))?;
        let size = file.metadata().map(|meta| meta.len()).unwrap_or(0);
        Ok((file, size))
    }

    fn write(&mut self, line: &str, is_error: bool) {
        if self.written > FILE_BYTES_MAX
            && let Some(path) = &self.path
        {
            let _ = std::fs::rename(path, path.with_extension("log.old"));
            (self.file, self.written) =
                Target::open(path).map_or((None, 0), |(file, size)| (Some(file), size));
        }
        let ok = self.file.as_mut().is_some_and(|file| file.write_all(line.as_bytes()).is_ok());
        self.written += line.len() as u64;
        if self.echo || (is_error && !ok) {
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

/// Starts logging into a file, or to standard error when there is none. `echo`: also to standard
/// error. A file that cannot be opened is an error, and nothing is logged.
pub fn start(path: Option<PathBuf>, echo: bool) -> std::io::Result<()> {
    let opened = path.as_deref().map(Target::open).transpose()?;
    let (file, written) = opened.map_or((None, 0), |(file, size)| (Some(file), size));
    let echo = echo || path.is_none();
    let _ = TARGET.set(Mutex::new(Target { path, file, written, echo }));
    // Filtering is left to `set_level`, which can change while the program runs.
    let logger = env_logger::Builder::new()
        .filter_module("rustls", LevelFilter::Off)
        .filter_module("ureq", LevelFilter::Off)
        .filter_module("ureq_proto", LevelFilter::Off)
        .filter_module("tungstenite", LevelFilter::Off)
        .filter_level(LevelFilter::Debug)
        .format(|_, record| {
            let level = match record.level() {
                log::Level::Error => LogLevel::Error,
                log::Level::Warn => LogLevel::Warn,
                log::Level::Info => LogLevel::Info,
                log::Level::Debug | log::Level::Trace => LogLevel::Debug,
            };
            put(level, record.target(), &record.args().to_string());
            Ok(())
        })
        .build();
    let _ = log::set_boxed_logger(Box::new(logger));
    set_level(start_level());
    Ok(())
}

/// Writes a line, whatever the level of the log is.
fn put(level: LogLevel, component: &str, text: &str) {
    let line = line(&timestamp(), level, component, text);
    if let Some(mut target) = TARGET.get().and_then(|target| target.lock().ok()) {
        target.write(&line, level >= LogLevel::Error);
    }
}

/// One line, whatever a stranger's text in it holds: breaks are shown as a sign, what acts on a
/// terminal as `\u{…}`.
fn line(time: &str, level: LogLevel, component: &str, text: &str) -> String {
    let level = level.as_str().to_ascii_uppercase();
    format!("[{time}] {level:<5} [{component}] {}\n", one_line(text))
}

/// Writes a line of an effect, if the level of the log lets it pass.
pub fn write(level: LogLevel, component: &str, text: &str) {
    match level {
        LogLevel::Fatal => put(level, component, text),
        LogLevel::Error => log::error!(target: component, "{text}"),
        LogLevel::Warn => log::warn!(target: component, "{text}"),
        LogLevel::Info => log::info!(target: component, "{text}"),
        LogLevel::Debug => log::debug!(target: component, "{text}"),
    }
}

/// ISO time, UTC, milliseconds.
pub fn timestamp() -> String {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    iso(since.as_millis() as i64)
}

/// The time in UTC as a part of a file's name: `20260131-235959`.
pub fn file_stamp() -> String {
    timestamp()
        .chars()
        .take(19)
        .filter(|c| *c != '-' && *c != ':')
        .map(|c| if c == 'T' { '-' } else { c })
        .collect()
}

/// ISO time of a moment in milliseconds.
pub fn iso(wall_ms: i64) -> String {
    let (days, ms) = (wall_ms.div_euclid(86_400_000), wall_ms.rem_euclid(86_400_000));
    // Days to a civil date, counted in eras of 400 years that begin on 1 March.
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s, milli) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{milli:03}Z")
}

/// An id as part of a file name: at most 180 characters, others than `A-Za-z0-9_.-` as `_`.
pub fn safe_name(id: &str) -> String {
    let mut name = String::new();
    for c in id.chars() {
        let fine = c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if fine {
            name.push(c);
        } else if !name.ends_with('_') {
            name.push('_');
        }
    }
    name.truncate(180);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_lines_have_their_form() {
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso(1_709_164_799_999), "2024-02-28T23:59:59.999Z");
        assert_eq!(iso(1_709_251_200_000), "2024-03-01T00:00:00.000Z");
        assert_eq!(line("T", LogLevel::Info, "bus", "a\r\nb\nc"), "[T] INFO  [bus] a ⏎ b ⏎ c\n");
        assert_eq!(
            line("T", LogLevel::Info, "bus", "a\r[T] ERROR b\u{1b}[2J\u{202e}\n"),
            "[T] INFO  [bus] a ⏎ [T] ERROR b\\u{1b}[2J\\u{202e}\n"
        );
        assert_eq!(
            line("T", LogLevel::Fatal, "x", "\u{1}fatal y"),
            "[T] FATAL [x] \\u{1}fatal y\n"
        );
        let stamp = file_stamp();
        assert!(stamp.len() == 15 && stamp.as_bytes()[8] == b'-', "{stamp}");
        assert_eq!(safe_name("a b//ü.c"), "a_b_.c");
    }
}

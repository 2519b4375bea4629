//! `logs`, `diagnose`: what became of a session, for people and for scripts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Diagnose, Logs};
use super::exit::{Failure, OK, Outcome};
use super::print;
use super::sessions::Host;
use crate::core::orchestrator::config::SessionFiles;
use crate::core::orchestrator::diagnosis;
use crate::core::orchestrator::log_text::LogOptions;
use crate::edge::orchestrator::log_file::{LogFollower, read_end};

/// Longest wait for something new; then it is waited for again.
const FOLLOW_WAIT: Duration = Duration::from_secs(3600);

/// The log of a session of that name, if there is one. A name that could lead elsewhere has none.
fn log_of(home: &Path, name: &str) -> Option<PathBuf> {
    let is_name = !name.is_empty() && !name.contains(['/', '\\', '\0']);
    let path = PathBuf::from(SessionFiles::of(&home.to_string_lossy(), name).log);
    (is_name && path.is_file()).then_some(path)
}

/// The log that a person means: a session by its name, its agent's id or its label; and of what is
/// over, and while no orchestrator runs, by the session's name.
fn find_log(home: &Path, word: &str) -> Result<PathBuf, Failure> {
    let named = Host::find().and_then(|host| host.named(word));
    match named {
        Ok(name) => log_of(home, &name)
            .ok_or_else(|| Failure::no(format!("{name} has no log on this machine"))),
        Err(failure) => log_of(home, word).ok_or(failure),
    }
}

/// `logs`
pub fn logs(options: &Logs) -> Outcome {
    let lines = options.lines.map_or(json!(null), |lines| json!(lines));
    let asked = LogOptions::parse(&json!({"lines": lines, "raw": options.raw}));
    let asked = asked.map_err(Failure::usage)?;
    let path = find_log(&crate::config::home()?, &options.session)?;
    let end = read_end(&path, asked)
        .map_err(|error| Failure::no(format!("cannot read {}: {error}", path.display())))?;
    show(&end.lines, options.json);
    if !options.follow {
        return Ok(OK);
    }
    let mut follower = LogFollower::new(&path, end.size, options.raw);
    loop {
        show(&follower.wait(FOLLOW_WAIT), options.json);
    }
}

/// One line for each; nothing of it acts on the terminal, not even of a raw one.
fn show(lines: &[String], as_json: bool) {
    for line in lines {
        if as_json { print::json(&json!({"line": line})) } else { print::line(line) }
    }
}

/// `diagnose`
pub fn diagnose(options: &Diagnose) -> Outcome {
    let host = Host::find()?;
    // Of a session that is over its name is known, and nothing else.
    let name = host.named(&options.session).unwrap_or_else(|_| options.session.clone());
    let told = host.ask("orchestrator.diagnose", &json!({"sessionName": name}))?;
    if told == Value::Null {
        let text =
            format!("nothing is known of {name}; `agent-relay sessions --ended` lists what is");
        return Err(Failure::no(text));
    }
    if options.json {
        print::json(&told);
    } else {
        diagnosis::page(&told).iter().for_each(|line| print::line(line));
    }
    Ok(OK)
}

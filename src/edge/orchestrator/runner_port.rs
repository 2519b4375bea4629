//! What the runner of a session tells: its info file, and its control port. Both are believed only
//! while the process that the record names lives: a port that it has left may be anybody's.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::core::Cause;
use crate::core::limits::{ATTACH_SPEC_TIME, RUNNER_INFO_BYTES_MAX};
use crate::core::orchestrator::record::Record;
use crate::edge::http::{Base, Http};
use crate::edge::orchestrator::terminal::Place;
use crate::os;
use crate::secret::Secret;
use crate::wire::control::RunnerInfo;

/// The runner of a session, if it has told where it is and lives.
pub fn find(record: &Record) -> Option<RunnerInfo> {
    let mut text = String::new();
    let file = os::open_file(Path::new(&record.runner_info_file)).ok()?;
    file.take(RUNNER_INFO_BYTES_MAX).read_to_string(&mut text).ok()?;
    let info = checked(&text)?;
    let is_it = crate::planted::is("stale-runner") || (info.pid == record.pid && lives(record));
    is_it.then_some(info)
}

fn lives(record: &Record) -> bool {
    os::is_alive(record.process())
}

/// An info file that is believed: its port is on this machine.
fn checked(text: &str) -> Option<RunnerInfo> {
    let info: RunnerInfo = serde_json::from_str(text).ok()?;
    let port = info.control_url.strip_prefix("http://127.0.0.1:")?.trim_end_matches('/');
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    is_port.then_some(info)
}

/// Asks a runner; `None`: what answered may not have been the runner.
fn ask(record: &Record, info: &RunnerInfo, path: &str) -> Option<Result<(u16, Value), Cause>> {
    let base = Base::parse(&info.control_url).ok()?;
    let token = Secret::new(info.control_token.clone());
    let answer = Http::new(base, ATTACH_SPEC_TIME).call_bearer("GET", path, None, &token);
    // It has had the port for as long as it lives.
    lives(record).then_some(answer)
}

/// What a runner says of how a guest attaches; not checked. The error is for whoever asked.
pub fn attach_spec(record: &Record, info: &RunnerInfo) -> Result<Value, String> {
    match ask(record, info, "/terminal/attach-spec") {
        Some(Ok((200..=299, spec))) => Ok(spec),
        Some(Ok((status, body))) => Err(match body["error"].as_str() {
            Some(said) => said.into(),
            None => format!("runner attach-spec failed with {status}"),
        }),
        Some(Err(cause)) => Err(format!("the runner does not answer: {cause}")),
        None => Err("managed runner session not found".into()),
    }
}

/// Where a session's terminal is, if it has one.
pub fn terminal(record: &Record, info: &RunnerInfo) -> Option<Place> {
    let (_, status) = ask(record, info, "/status")?.ok().filter(|(status, _)| *status == 200)?;
    let text = |at: &str| status.pointer(at).and_then(Value::as_str);
    Place::new(text("/terminal/tmuxSocket")?, text("/terminal/tmuxSession")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ports_of_this_machine_are_asked() {
        for (url, want) in [
            ("http://127.0.0.1:4000", true),
            ("http://127.0.0.1:4000/", true),
            ("http://127.0.0.1:", false),
            ("http://127.0.0.1:70000", false),
            ("http://127.0.0.1:80@elsewhere", false),
            ("http://127.0.0.1:80/x", false),
            ("http://127.0.0.1.elsewhere:80", false),
            ("https://127.0.0.1:80", false),
            ("", false),
        ] {
            let text = serde_json::json!({"controlUrl": url, "agentId": "a"}).to_string();
            assert_eq!(checked(&text).is_some(), want, "{url}");
        }
        for text in ["", "[]", "5", "{", "{\"pid\": \"x\"}"] {
            assert_eq!(checked(text), None, "{text}");
        }
    }

    #[test]
    fn a_runner_that_is_gone_or_another_is_not_asked() {
        let dir = std::env::temp_dir().join(format!("agent-relay-port-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("folder");
        let file = dir.join("runner.json");
        let own = os::process(std::process::id());
        let write = |pid: u32| {
            let info = serde_json::json!({"controlUrl": "http://127.0.0.1:9", "pid": pid});
            std::fs::write(&file, info.to_string()).expect("writes");
        };
        let record = |pid: u32, start_time: u64| Record {
            pid,
            start_time,
            runner_info_file: file.to_string_lossy().into_owned(),
            ..Record::default()
        };
        write(own.pid);
        assert!(find(&record(own.pid, own.start)).is_some());
        assert_eq!(find(&record(own.pid, own.start + 1)), None, "the pid is another process's now");
        write(own.pid + 1);
        assert_eq!(find(&record(own.pid, own.start)), None, "of an earlier start");
        std::fs::remove_dir_all(&dir).expect("clean up");
        assert_eq!(find(&record(own.pid, own.start)), None);
    }
}

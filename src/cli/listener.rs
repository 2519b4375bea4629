//! Who listens where on this machine: what a person needs to hear when the relay is silent or a
//! stranger's.

use std::path::{Path, PathBuf};

use crate::edge::http::Base;
use crate::hub::place;

/// How to get on with a relay that takes no token of ours; empty for one on another machine.
pub fn whose(base: &Base, home: &Path) -> String {
    if !base.is_loopback() {
        return String::new();
    }
    let own = place::live_pid(home)
        .and_then(|_| place::read_info(home)?.get("url")?.as_str().map(str::to_string));
    let pid = holder(base.port);
    let who = pid.map_or_else(|| "another hub".to_string(), |pid| format!("the process {pid}"));
    let of = pid
        .and_then(home_of)
        .map(|other| format!(" (the hub of {})", other.display()))
        .unwrap_or_default();
    match own {
        Some(url) if Base::parse(&url).is_ok_and(|own| own.port == base.port) => String::new(),
        Some(url) => format!(
            "; {who} listens there{of}; the hub of this home listens on {url}: set AGENT_RELAY_URL to that"
        ),
        None => format!("; {who} listens there{of}, which is not the hub of {}", home.display()),
    }
}

/// The home of a hub's process, if its environment can be read and what stands in that home names
/// the same process.
fn home_of(pid: u32) -> Option<PathBuf> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variable = |name: &str| {
        let mut all = environment.split(|byte| *byte == 0);
        let value =
            all.find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        (!value.is_empty()).then(|| PathBuf::from(String::from_utf8_lossy(value).into_owned()))
    };
    let home =
        variable("AGENT_RELAY_HOME").or_else(|| Some(variable("HOME")?.join(".agent-relay")))?;
    (home.is_absolute() && place::live_pid(&home) == Some(pid)).then_some(home)
}

/// What to do about a relay on this machine that takes connections and says nothing; none for
/// another machine, and where the process cannot be seen.
pub fn silent(base: &Base) -> Option<String> {
    let pid = holder(base.port).filter(|_| base.is_loopback())?;
    Some(format!(
        "the process {pid} listens there and may hang: look at it, or end it and start a hub again"
    ))
}

/// The process that listens on a port, if it can be seen.
pub fn holder(port: u16) -> Option<u32> {
    let wanted = format!(":{port:04X}");
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"]
        .map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let inode = tables.iter().flat_map(|table| table.lines().skip(1)).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == "0A")
            .then(|| fields.get(9).map(|inode| inode.to_string()))?
    })?;
    let wanted = format!("socket:[{inode}]");
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|text| text.parse::<u32>().ok()) else {
            continue;
        };
        for fd in std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            if std::fs::read_link(fd.path()).is_ok_and(|link| link.to_string_lossy() == wanted) {
                return Some(pid);
            }
        }
    }
    None
}

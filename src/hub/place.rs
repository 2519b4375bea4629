//! Where the hub of this home is, and whether it lives.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::core::ids::ProcessRef;
use crate::os;

/// Folder of the hub below the root of everything.
pub fn directory(home: &Path) -> PathBuf {
    home.join("hub")
}

/// Content of `hub/hub.json`, which names the live hub of this home: pid, start time, URL.
pub fn read_info(home: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(directory(home).join("hub.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// The process id of a live hub on this home.
pub fn live_pid(home: &Path) -> Option<u32> {
    let info = read_info(home)?;
    let process = ProcessRef {
        pid: info.get("pid")?.as_u64()? as u32,
        start: info.get("startTime")?.as_u64()?,
    };
    os::is_alive(process).then_some(process.pid)
}

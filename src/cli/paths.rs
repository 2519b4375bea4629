//! Where the files of an agent lie on this machine.

use std::path::{Path, PathBuf};

use crate::config::env;
use crate::os;

/// A directory name that no other agent id has: ids that a file name cannot hold as they are get a
/// hash.
fn dir_name(agent_id: &str) -> String {
    let safe = crate::log::safe_name(agent_id);
    if safe == agent_id && !safe.starts_with('.') {
        return safe;
    }
    format!("{}-{}", safe.trim_start_matches('.'), &os::sha256_hex(agent_id)[..12])
}

/// Where the things of an agent lie on this machine.
pub fn agent_dir(home: &Path, agent_id: &str) -> PathBuf {
    home.join("agents").join(dir_name(agent_id))
}

/// The runner info file of an agent.
pub fn info_path(home: &Path, agent_id: &str) -> PathBuf {
    env("AGENT_RELAY_RUNNER_INFO_FILE")
        .map(PathBuf::from)
        .unwrap_or_else(|| agent_dir(home, agent_id).join("runner.json"))
}

/// Directory of the store: a variable, else beside the runner info file, else with the agent.
pub(super) fn store_dir(home: &Path, agent_id: &str) -> PathBuf {
    if let Some(dir) = env("AGENT_RELAY_RUNNER_OUTBOX_DIR") {
        return PathBuf::from(dir).join(dir_name(agent_id));
    }
    match env("AGENT_RELAY_RUNNER_INFO_FILE")
        .and_then(|file| Path::new(&file).parent().map(Path::to_path_buf))
    {
        Some(beside) => beside.join(format!("{}.store", dir_name(agent_id))),
        None => agent_dir(home, agent_id),
    }
}

/// Where the tools inside the session find the agent's token. Only the runner that holds the
/// store's lock writes there.
pub(super) fn token_file(home: &Path, agent_id: &str) -> PathBuf {
    store_dir(home, agent_id).join("relay-token")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_agents_share_a_directory() {
        let names = ["a_b", "a/b", "a b", "\u{fc}", "\u{f6}", "..", ".", ".a", "a"].map(dir_name);
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        assert!(
            names.iter().all(|name| !name.starts_with('.') && !name.contains('/')),
            "{names:?}"
        );
        assert_eq!(dir_name("my-agent"), "my-agent");
    }
}

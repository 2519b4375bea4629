//! Settings of an orchestrator, as plain data that was checked before; and where the files of a
//! session lie.

use std::collections::BTreeMap;
use std::time::Duration;

use super::admission::Room;
use super::launch::Surroundings;
use super::names;
use super::systemd::Ceilings;
use crate::core::agent::config::RestartPolicy;

/// All settings of one orchestrator.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone)]
pub struct OrchestratorConfig {
    /// What the names of its sessions begin with.
    pub prefix: String,
    /// Sessions work in this folder or below it.
    pub base_dir: String,
    /// Fresh for every process.
    pub instance_id: String,
    /// Id of this boot of the machine.
    pub boot_id: String,
    /// What every session is started with.
    pub about: Surroundings,
    /// Names of the providers that there are.
    pub providers: Vec<String>,
    /// Ceilings by provider, for spawns that name none.
    pub ceilings: BTreeMap<String, Ceilings>,
    pub room: Room,
    /// When a session that ended is started again.
    pub restart: RestartPolicy,
    /// So many starts at once, and in [`OrchestratorConfig::starts_time`].
    pub starts_burst: u32,
    pub starts_time: Duration,
}

/// Where the files of a session lie.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct SessionFiles {
    pub log: String,
    pub script: String,
    /// The secret half of its environment, until its runner has read it.
    pub environment: String,
    /// What it was asked for, for as long as it may be started again.
    pub options: String,
    pub runner_info: String,
}

impl SessionFiles {
    /// The files of a session below the root of everything.
    pub fn of(home: &str, session: &str) -> SessionFiles {
        let (name, runner) = (names::safe(session, "agent"), names::safe(session, "runner"));
        SessionFiles {
            log: format!("{home}/logs/{session}.log"),
            script: format!("{home}/sessions/{name}.sh"),
            environment: format!("{home}/sessions/{name}.env"),
            options: format!("{home}/sessions/{name}.spawn.json"),
            runner_info: format!("{home}/runners/{runner}.json"),
        }
    }

    /// Those that end with the session; the log stays.
    pub fn passing(self) -> Vec<String> {
        vec![self.script, self.environment, self.options, self.runner_info]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_the_session() {
        let files = SessionFiles::of("/h", "ar-p-web");
        assert_eq!(files.log, "/h/logs/ar-p-web.log");
        assert_eq!(files.runner_info, "/h/runners/ar-p-web.json");
        let left = files.clone().passing();
        assert!(!left.contains(&files.log) && left.contains(&files.options), "{left:?}");
    }
}

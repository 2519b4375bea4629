//! Where the orchestrator of this home is, and whether it lives.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::core::ids::ProcessRef;
use crate::os;
use crate::secret::Secret;

/// Folder of the orchestrator below the root of everything.
pub fn directory(home: &Path) -> PathBuf {
    home.join("orchestrator")
}

/// The file that holds what is known of each session.
pub fn records(home: &Path) -> PathBuf {
    home.join("orchestrator-sessions.json")
}

/// The file that names the live orchestrator of this home; 0600, since it holds a token.
pub fn info_file(home: &Path) -> PathBuf {
    directory(home).join("orchestrator.json")
}

/// Content of that file.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OrchestratorInfo {
    pub pid: u32,
    /// Start time of the process, in clock ticks since the boot.
    pub start_time: u64,
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    /// Bearer token of the interface.
    pub token: String,
}

impl OrchestratorInfo {
    /// What was written last, by one that may have ended since.
    pub fn read(home: &Path) -> Option<OrchestratorInfo> {
        serde_json::from_reader(os::open_file(&info_file(home)).ok()?).ok()
    }

    /// Whether its process lives.
    pub fn is_live(&self) -> bool {
        os::is_alive(ProcessRef { pid: self.pid, start: self.start_time })
    }

    /// The token.
    pub fn secret(&self) -> Secret {
        Secret::new(self.token.clone())
    }
}

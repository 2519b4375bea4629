//! What a provider is, in one value: its row in the table of providers.

use std::time::Duration;

use super::hooks::Hooks;
use super::launch::{PlanFn, Transport};
use super::settings::{ApprovalMode, ProviderSetting};
use crate::core::session::SessionCapabilities;

/// A provider that this program can supervise.
pub struct Provider {
    /// Word on the command line, in ids, tags and file names.
    pub name: &'static str,
    /// What it is, for help texts.
    pub about: &'static str,
    /// Arguments of `run` that show how it is started, for help texts.
    pub examples: &'static [&'static str],
    /// Settings that only it has.
    pub settings: &'static [ProviderSetting],
    /// Makes the plan of a start from what is wanted and what is on disk.
    pub plan: PlanFn,
    /// How it can be talked to, the usual way first.
    pub transports: &'static [Transport],
    /// What its sessions can do.
    pub capabilities: SessionCapabilities,
    /// Why these arguments cannot be passed on to it.
    pub check_args: fn(&[String]) -> Option<String>,
    /// So long a question waits for an answer unless configured.
    pub approval_timeout: Duration,
    /// So long at most: a question is denied before the provider gives it up.
    pub approval_timeout_max: Duration,
    /// Its own program and the version that was tested, where it has one.
    pub program: Option<(&'static str, &'static str)>,
    /// How it is logged in, where a start without it looks ready.
    pub login: Option<Login>,
    /// Whether the command must be given, after `--` or by a preset.
    pub needs_command: bool,
    /// Agents that are known by name.
    pub presets: fn() -> Vec<&'static Preset>,
    /// Hooks that its program calls, if it has some.
    pub hooks: Option<&'static Hooks>,
    /// Variable that tells what a session starts which process the session is.
    pub session_pid_env: Option<&'static str>,
}

/// Where a login would be found.
pub struct Login {
    /// Variable that names the provider's own folder.
    pub folder_env: &'static str,
    /// That folder below the home, where the variable is not set.
    pub folder: &'static str,
    /// The file in it.
    pub file: &'static str,
    /// Variables that do instead.
    pub env: &'static [&'static str],
    /// What helps.
    pub cure: &'static str,
}

/// A known agent: how it is started.
#[derive(Debug)]
pub struct Preset {
    /// Word for `--preset`.
    pub name: &'static str,
    /// Program and arguments.
    pub command: &'static [&'static str],
    /// Version that was tested; empty: none.
    pub version: &'static str,
    /// What it is and what it needs.
    pub about: &'static str,
    /// Environment unless it is set already.
    pub env: &'static [(&'static str, &'static str)],
    /// The same, when the relay is asked.
    pub guarded_env: &'static [(&'static str, &'static str)],
    /// The same, when everything is rejected.
    pub read_only_env: &'static [(&'static str, &'static str)],
}

impl Preset {
    /// Environment for an approval mode.
    pub fn env_for(
        &self,
        approval: ApprovalMode,
    ) -> impl Iterator<Item = (&'static str, &'static str)> {
        let more = match approval {
            ApprovalMode::Open => &[],
            ApprovalMode::Guarded => self.guarded_env,
            ApprovalMode::ReadOnly => self.read_only_env,
        };
        self.env.iter().chain(more).copied()
    }
}

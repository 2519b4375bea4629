//! Agents that speak the Agent Client Protocol, version 1, over standard streams.
//!
#![doc = include_str!("FACTS.md")]

pub mod presets;
mod replay;
pub mod session;

use std::time::Duration;

use super::capabilities::Provider;
use super::launch::{Conversation, Disk, LaunchError, LaunchPlan, LaunchRequest, Transport};
use crate::core::session::SessionCapabilities;

/// Its row in the table.
pub const PROVIDER: Provider = Provider {
    name: "acp",
    about: "any agent that speaks the Agent Client Protocol on its standard input and output",
    examples: &[
        "--preset opencode",
        "--label web --approval open -- gemini --acp",
        "--agent-id demo -- agent-relay demo-agent",
    ],
    settings: &[],
    plan,
    transports: &[Transport::Stream],
    capabilities: SessionCapabilities {
        split_by_sender: false,
        takes_urgent: false,
        tracks_turns: false,
        changes_context: false,
        takes_guests: false,
    },
    check_args: |_| None,
    approval_timeout: Duration::from_secs(600),
    approval_timeout_max: Duration::MAX,
    program: None,
    login: None,
    needs_command: true,
    presets: || presets::all().collect(),
    hooks: None,
    session_pid_env: None,
};

/// The command as it is: everything else is said over the protocol.
fn plan(
    request: &LaunchRequest,
    _: Conversation<'_>,
    _: &dyn Disk,
) -> Result<LaunchPlan, LaunchError> {
    Ok(LaunchPlan {
        argv: request.args.clone(),
        env: Vec::new(),
        unset: Vec::new(),
        files: Vec::new(),
        sockets: None,
        is_server: false,
        port: None,
        behind: |_, _| None,
        session: Box::new(
            session::AcpSession::new(request.session.clone()).with_tools(request.tools()),
        ),
        hint: "check the name and PATH",
    })
}

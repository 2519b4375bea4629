//! Thread `heartbeat`: HTTP calls to the relay, one at a time, one attempt each, and the files that
//! hold relay tokens. The state thread orders each call, so a heartbeat proves that it is alive.

use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::http::{Base, RelayClient};
use crate::core::agent::effect::HeartbeatCommand;
use crate::core::agent::event::Event;

/// One exchange may take this long.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Files that this thread reads and writes.
pub struct Files {
    /// The configuration, which may hold a token. None: an orchestrator hands over what is needed,
    /// and a person's token is not this agent's.
    pub config: Option<PathBuf>,
    /// The agent's token, for the tools inside its session.
    pub token: PathBuf,
}

/// Body of the thread.
pub fn run(files: Files, orders: Receiver<HeartbeatCommand>, lane: Sender<Event>) {
    let mut relay_client = RelayClient::new(CALL_LIMIT);
    for order in orders {
        let event = match order {
            HeartbeatCommand::Call { call, relay, method, path, body, token } => {
                let http = relay_client.of(&relay);
                let result = http.and_then(|http| http.call(method, &path, body.as_ref(), &token));
                Event::Called { call, result }
            }
            HeartbeatCommand::ReadConfigToken => {
                let (url, token) =
                    files.config.as_deref().map(crate::config::relay_in).unwrap_or_default();
                Event::ConfigToken { url: url.filter(|url| Base::parse(url).is_ok()), token }
            }
            HeartbeatCommand::WriteToken { token } => {
                let written = crate::os::replace_private_file(&files.token, token.expose(), false);
                Event::TokenWritten(
                    written.map_err(|error| format!("{}: {error}", files.token.display())),
                )
            }
        };
        if lane.send(event).is_err() {
            return;
        }
    }
}

//! Thread `heartbeat`: HTTP calls to the relay, one at a time, one attempt each, and the files that hold relay tokens. The
//! state thread orders each call, so a heartbeat proves that it is alive.

use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use serde_json::Value;

use super::http::{Base, Http};
use crate::core::agent::event::Event;
use crate::core::ids::CallNumber;
use crate::secret::Secret;

/// One exchange may take this long.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// An order of the state thread.
#[allow(missing_docs)] // the names say it
#[derive(Debug)]
pub enum Order {
    /// Make a call.
    Call {
        call: CallNumber,
        method: &'static str,
        /// With the query.
        path: String,
        body: Option<Value>,
        token: Secret,
        /// The relay to ask.
        base: Base,
    },
    /// Look for relay and token in the configuration file.
    ReadConfigToken,
    /// Replace the file that tools inside the session read.
    WriteToken {
        /// The agent's own relay token.
        token: Secret,
    },
}

/// Files that this thread reads and writes.
pub struct Files {
    /// The configuration, which may hold a token.
    pub config: PathBuf,
    /// The agent's token, for the tools inside its session.
    pub token: PathBuf,
}

/// Body of the thread.
pub fn run(files: Files, orders: Receiver<Order>, lane: Sender<Event>) {
    let mut http: Option<(Base, Http)> = None;
    for order in orders {
        let event = match order {
            Order::Call { call, method, path, body, token, base } => {
                if http.as_ref().is_none_or(|(known, _)| *known != base) {
                    http = Some((base.clone(), Http::new(base, CALL_LIMIT)));
                }
                let (_, http) = http.as_ref().expect("made above");
                Event::Called { call, result: http.call(method, &path, body.as_ref(), &token) }
            }
            Order::ReadConfigToken => {
                let (url, token) = crate::config::relay_in(&files.config);
                Event::ConfigToken { url: url.filter(|url| Base::parse(url).is_ok()), token }
            }
            Order::WriteToken { token } => {
                let written = crate::os::replace_private_file(&files.token, token.expose(), false);
                Event::TokenWritten(written.map_err(|error| format!("{}: {error}", files.token.display())))
            }
        };
        if lane.send(event).is_err() {
            return;
        }
    }
}

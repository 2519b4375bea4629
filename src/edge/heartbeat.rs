//! Thread `heartbeat`: HTTP calls to the relay, one at a time, one attempt each. Ordered by the state thread, so a beat
//! proves that the state thread turns.

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

/// One order.
#[derive(Debug)]
pub enum Order {
    /// Make a call.
    Call {
        /// Number for the answer.
        call: CallNumber,
        /// Method.
        method: &'static str,
        /// Path with query.
        path: String,
        /// JSON body.
        body: Option<Value>,
        /// Token.
        token: Secret,
        /// The relay.
        base: Base,
    },
    /// Look for relay and token in the configuration file.
    ReadConfigToken,
}

/// Body of the thread.
pub fn run(config_file: PathBuf, orders: Receiver<Order>, lane: Sender<Event>) {
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
                let (url, token) = crate::config::relay_in(&config_file);
                Event::ConfigToken { url: url.filter(|url| Base::parse(url).is_ok()), token }
            }
        };
        if lane.send(event).is_err() {
            return;
        }
    }
}

//! Thread `heartbeat`: HTTP calls to the relay, one at a time, one attempt each. Ordered by the state thread, so a beat
//! proves that the state thread turns.

use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use serde_json::Value;

use super::http::{Base, Http};
use crate::core::agent::event::Event;
use crate::secret::Secret;

/// One exchange may take this long.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// One order.
#[derive(Debug)]
pub enum Order {
    /// Make a call.
    Call {
        /// Number for the answer.
        call: u64,
        /// Method.
        method: &'static str,
        /// Path with query.
        path: String,
        /// JSON body.
        body: Option<Value>,
        /// Token.
        token: Secret,
    },
    /// Look for a token in the configuration file (R-147a).
    ReadConfigToken,
}

/// Body of the thread.
pub fn run(base: Base, config_file: PathBuf, orders: Receiver<Order>, lane: Sender<Event>) {
    let mut http = None;
    for order in orders {
        let event = match order {
            Order::Call { call, method, path, body, token } => {
                let http = http.get_or_insert_with(|| Http::new(base.clone(), CALL_LIMIT));
                Event::Called { call, result: http.call(method, &path, body.as_ref(), &token) }
            }
            Order::ReadConfigToken => Event::ConfigToken(crate::config::token_in(&config_file)),
        };
        if lane.send(event).is_err() {
            return;
        }
    }
}

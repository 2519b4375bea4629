//! What `doctor` says of the relay: whether it answers, the clock, the token, the bus.

use std::time::Duration;

use super::Findings;
use crate::cli::client::Client;
use crate::cli::print;
use crate::config::Global;
use crate::edge::bus::probe;
use crate::edge::http::Http;
use crate::edge::proxy::Route;
use crate::secret::Secret;
use crate::wire::api::{TokenRecord, path};

/// A token that expires sooner than this gets a warning, ms: a day.
const TOKEN_LEFT_MS_MIN: i64 = 24 * 3_600_000;
/// A difference of clocks above this is a warning: times of messages get confusing.
const SKEW_MS_MAX: i64 = 5_000;

pub(super) fn check(findings: &mut Findings, global: &Global) {
    let client = match Client::new(global) {
        Ok(client) => client,
        Err(failure) => {
            return findings.broken(
                "relay",
                failure.text,
                "fix relayUrl in config.json or AGENT_RELAY_URL",
            );
        }
    };
    let before = print::now_ms();
    let health = match client.health() {
        Ok(health) => health,
        Err(failure) => {
            let (found, cure) = failure
                .text
                .split_once("; ")
                .unwrap_or((&failure.text, "start one with `agent-relay hub`"));
            return findings.broken("relay", found, cure);
        }
    };
    let (version, protocol) =
        (health["version"].as_str().unwrap_or("?"), health["protocol"].as_u64().unwrap_or(1));
    findings.fine(
        "relay",
        format!(
            "{} answers{} (version {version}, protocol {protocol})",
            global.relay_url,
            Route::to(&client.base)
        ),
    );
    if let Some(theirs) = health["serverTime"].as_i64() {
        let skew = theirs - (before + print::now_ms()) / 2;
        if skew.abs() <= SKEW_MS_MAX {
            findings.fine("clock", format!("{skew} ms from the relay's"))
        } else {
            findings.weak(
                "clock",
                format!("{} s from the relay's", skew / 1000),
                "set both clocks by NTP: timedatectl set-ntp true",
            )
        }
    }
    let cure = if global.session.is_some() {
        "the agent's runner gets one from the relay: look at its log, in the folder logs of its home"
    } else {
        "on the hub's machine `agent-relay token create`, then set \"token\" in config.json or AGENT_RELAY_TOKEN"
    };
    match global.token.clone() {
        None => findings.broken("token", "none is set", cure),
        Some(known) => token(findings, &client, known, cure),
    }
}

fn token(findings: &mut Findings, client: &Client, token: Secret, cure: &str) {
    let http = Http::new(client.base.clone(), Duration::from_secs(10));
    match http.call("GET", path::TOKEN_SELF, None, &token) {
        Ok((200, record)) => {
            let record = TokenRecord::of_answer(&record);
            let left = record.expires_at.map(|end| end * 1000 - print::now_ms());
            let ends = left.map_or("never ends".to_string(), |left| {
                format!("ends in {}", print::format_duration(left))
            });
            // Runners renew the tokens of their agents.
            let is_renewed = record.profile_id.starts_with("provider-");
            if left.is_some_and(|left| left < TOKEN_LEFT_MS_MIN) && !is_renewed {
                findings.weak(
                    "token",
                    format!("{}, {ends}", record.profile_id),
                    "make a new one: `agent-relay token create`",
                )
            } else {
                findings.fine("token", format!("{}, {ends}", record.profile_id))
            }
            bus(findings, client, &token);
        }
        Ok((401 | 403, _)) => {
            findings.broken("token", "the relay does not know it, or it has expired", cure);
        }
        Ok(_) => {
            findings.fine("token", "set; this relay does not tell about tokens");
            bus(findings, client, &token);
        }
        Err(cause) => findings.broken("token", cause.to_string(), "look at the relay"),
    }
}

/// The bus, opened as a runner opens it: HTTP may get through where a WebSocket does not.
fn bus(findings: &mut Findings, client: &Client, token: &Secret) {
    let (url, route) = (client.base.bus_url(), Route::to(&client.base));
    match probe(&client.base, token) {
        Ok(took) => {
            findings.fine("bus", format!("{url} answers in {} ms{route}", took.as_millis()));
        }
        Err(cause) => findings.weak(
            "bus",
            format!(
                "{url} cannot be used{route}: {cause}; runners ask by HTTP instead, every 20 s"
            ),
            "let WebSockets (GET with Upgrade: websocket) through on the way to the relay, or name \
             a proxy that does (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)",
        ),
    }
}

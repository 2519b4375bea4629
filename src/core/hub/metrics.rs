//! Counts and times of a hub, told as Prometheus text.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::Hub;
use super::rights::line_of;
use crate::core::http::{GateStats, Greedy};
use crate::wire::VERSION;
use crate::wire::api::{MessageKind, TokenRecord};

/// Upper bounds of the buckets, seconds.
const BOUNDS: [f64; 12] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0];

/// How long things took.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(at) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn print(&self, text: &mut String, name: &str, about: &str) {
        let _ = writeln!(text, "# HELP {name} {about}\n# TYPE {name} histogram");
        let mut sum = 0;
        for (bound, count) in BOUNDS.iter().zip(self.buckets) {
            sum += count;
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let _ = writeln!(
            text,
            "{name}_bucket{{le=\"+Inf\"}} {}\n{name}_sum {:.6}\n{name}_count {}",
            self.count, self.sum, self.count
        );
    }
}

/// What a hub counts.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Answers by status class, 0 to 5.
    pub answers: [u64; 6],
    pub limited: u64,
    /// Times that a line met a limit here, all together and by line, with the last limit.
    pub limits_met: u64,
    pub lines: HashMap<String, (u64, &'static str)>,
    pub accepted: BTreeMap<&'static str, u64>,
    pub delivered: u64,
    pub acknowledged: u64,
    pub retired: u64,
    pub request_time: Histogram,
    pub commit_time: Histogram,
    pub send_to_frame: Histogram,
}

impl Meter {
    pub fn count_message(&mut self, kind: &MessageKind) {
        let name = match kind {
            MessageKind::Task => "task",
            MessageKind::System => "system",
            MessageKind::Session => "session",
            MessageKind::Chat | MessageKind::Other(_) => "chat",
        };
        *self.accepted.entry(name).or_default() += 1;
    }
}

impl Hub {
    /// What there is now, for people and for Prometheus.
    pub(super) fn gauges(&self, gate: &GateStats) -> Vec<(&'static str, &'static str, u64)> {
        let count = |n: usize| n as u64;
        let connected = self.agents.values().filter(|agent| agent.peer.is_some()).count();
        let streams = self.peers.values().filter(|peer| peer.stream).count();
        vec![
            ("agents", "Agents that are known", count(self.agents.len())),
            ("agents_connected", "Agents on the bus", count(connected)),
            ("peers", "Connections on the bus", count(self.peers.len() - streams)),
            ("event_streams", "Readers of server-sent events", count(streams)),
            (
                "messages_unacknowledged",
                "Messages that wait for agents",
                self.queues.values().map(|queue| count(queue.ids.len())).sum(),
            ),
            ("messages_unresolved", "Messages that match nobody yet", count(self.unresolved.len())),
            ("offers", "Claimable messages that are not settled", count(self.offers.len())),
            ("tasks_open", "Tasks that are not final", count(self.tasks.len())),
            ("commands_open", "Commands that are not final", count(self.commands.len())),
            ("tokens", "Tokens", count(self.tokens.len())),
            ("commits_in_flight", "Commits under way", count(self.commits.in_flight())),
            ("reads_in_flight", "Reads under way", count(self.reads_under_way())),
            ("requests_in_flight", "Requests that wait for an answer", count(self.tickets.len())),
            (
                "store_unavailable",
                "1 while the store cannot be written",
                u64::from(self.commits.trouble().is_some()),
            ),
            ("last_message_id", "Newest message id", self.last_message.0),
            ("connections", "Open connections, all kinds", gate.open),
            ("connections_headless", "Connections without a complete request", gate.headless),
            ("connection_bytes", "Bytes that connections hold", gate.held_bytes),
            ("line_bytes_max", "Most bytes that one agent has held", gate.line_held_max),
            ("turn_events_max", "Most events of one line in a row beside others", gate.row.events),
            ("turn_bytes_max", "Bytes before the last of them", gate.row.bytes),
            ("turn_members_max", "Values before the last of them", gate.row.members),
        ]
    }

    /// What has happened since the start, for Prometheus.
    fn counters(&self, gate: &GateStats) -> [(&'static str, &'static str, u64); 10] {
        [
            ("rate_limited_total", "Requests refused with 429", self.meter.limited),
            (
                "limits_met_total",
                "Times that a token line met a limit",
                self.meter.limits_met + gate.limited,
            ),
            ("frames_delivered_total", "Message frames sent to agents", self.meter.delivered),
            ("acknowledged_total", "Messages that agents have taken over", self.meter.acknowledged),
            ("retired_total", "Messages deleted by retention", self.meter.retired),
            ("gate_turns_total", "Turns of the loop that serves connections", gate.turns),
            ("connections_accepted_total", "Connections taken", gate.accepted),
            ("connections_evicted_total", "Connections closed to make room", gate.evicted),
            ("connections_refused_total", "Connections refused without room", gate.refused),
            (
                "connections_timed_out_total",
                "Connections that did not keep a time limit",
                gate.timed_out,
            ),
        ]
    }

    pub(super) fn metrics_text(&self, gate: &GateStats, store: &Value) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "# TYPE agent_relay_hub_info gauge\nagent_relay_hub_info{{version=\"{VERSION}\"}} 1"
        );
        for (name, about, value) in self.gauges(gate) {
            let _ = writeln!(
                text,
                "# HELP agent_relay_hub_{name} {about}\n# TYPE agent_relay_hub_{name} gauge\nagent_relay_hub_{name} {value}"
            );
        }
        for (name, field) in [("store_bytes", "bytes"), ("store_free_bytes", "freeBytes")] {
            let value = store.get(field).and_then(Value::as_u64).unwrap_or(0);
            let _ = writeln!(
                text,
                "# TYPE agent_relay_hub_{name} gauge\nagent_relay_hub_{name} {value}"
            );
        }
        let counter = |text: &mut String, name: &str, labels: &str, value: u64| {
            let _ = writeln!(text, "agent_relay_hub_{name}{labels} {value}");
        };
        let _ = writeln!(
            text,
            "# HELP agent_relay_hub_requests_total Answers by class of status\n# TYPE agent_relay_hub_requests_total counter"
        );
        for (class, value) in self.meter.answers.iter().enumerate().skip(2) {
            counter(&mut text, "requests_total", &format!("{{status=\"{class}xx\"}}"), *value);
        }
        let _ = writeln!(
            text,
            "# HELP agent_relay_hub_messages_total Messages taken, by kind\n# TYPE agent_relay_hub_messages_total counter"
        );
        for (kind, value) in &self.meter.accepted {
            counter(&mut text, "messages_total", &format!("{{kind=\"{kind}\"}}"), *value);
        }
        for (name, about, value) in self.counters(gate) {
            let _ = writeln!(
                text,
                "# HELP agent_relay_hub_{name} {about}\n# TYPE agent_relay_hub_{name} counter\nagent_relay_hub_{name} {value}"
            );
        }
        if let Some(greedy) = self.greediest(gate) {
            let agent = self.agent_of_line(&greedy.line).unwrap_or_default();
            let name = "agent_relay_hub_greediest_line";
            let _ = writeln!(
                text,
                "# HELP {name} Times that the line met limits which met most\n# TYPE {name} gauge\n{name}{{line=\"{}\",agent=\"{agent}\",limit=\"{}\"}} {}",
                greedy.line, greedy.limit, greedy.met
            );
        }
        self.meter.request_time.print(
            &mut text,
            "agent_relay_hub_request_seconds",
            "From request to answer",
        );
        self.meter.commit_time.print(
            &mut text,
            "agent_relay_hub_commit_seconds",
            "From change to durable",
        );
        self.meter.send_to_frame.print(
            &mut text,
            "agent_relay_hub_send_to_frame_seconds",
            "From a sent message to its frame on the bus",
        );
        text
    }

    pub(super) fn info(&self, gate: &GateStats, store: &Value) -> Value {
        let uptime = self.started.map(|start| (self.now.tick - start).as_millis() as u64);
        let gauges: serde_json::Map<String, Value> = self
            .gauges(gate)
            .into_iter()
            .map(|(name, _, value)| (camel(name), json!(value)))
            .collect();
        json!({"id": self.config.id, "version": VERSION, "uptimeMs": uptime, "store": store,
        "trouble": self.commits.trouble().map(|trouble| trouble.cause.to_string()), "now": gauges,
        "limitsMet": self.meter.limits_met + gate.limited,
        "greediest": self.greediest(gate).map(|greedy| json!({
            "line": *greedy.line, "agent": self.agent_of_line(&greedy.line), "limit": greedy.limit, "met": greedy.met,
        }))})
    }

    /// The line that has met limits most often, at the gate or here.
    fn greediest(&self, gate: &GateStats) -> Option<Greedy> {
        let here = self.meter.lines.iter().max_by_key(|(_, (met, _))| *met);
        let here = here.map(|(line, (met, limit))| Greedy {
            line: line.as_str().into(),
            met: *met,
            limit,
        });
        here.into_iter().chain(gate.greedy.clone()).max_by_key(|greedy| greedy.met)
    }

    fn agent_of_line(&self, line: &str) -> Option<String> {
        let own = self.tokens.values().find(|record| line_of(record) == line);
        own.and_then(|record| record.agent_id.clone())
    }

    /// Whose tokens are gone need not be named any more.
    pub(super) fn forget_lines(&mut self) {
        let lines: HashSet<&str> = self.tokens.values().map(|record| line_of(record)).collect();
        self.meter.lines.retain(|line, _| lines.contains(line.as_str()));
    }

    /// A token has met a limit of its line.
    pub(super) fn note_limit_met(&mut self, token: &TokenRecord, limit: &'static str) {
        self.meter.limits_met += 1;
        let line = self.meter.lines.entry(line_of(token).to_string()).or_insert((0, limit));
        *line = (line.0 + 1, limit);
    }
}

/// `messages_unresolved` → `messagesUnresolved`, as everything else in JSON.
fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_string();
    words.fold(first, |text, word| text + &word[..1].to_uppercase() + &word[1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let mut histogram = Histogram::default();
        for ms in [0, 1, 3, 3, 9_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut text = String::new();
        histogram.print(&mut text, "x", "about");
        for line in [
            "x_bucket{le=\"0.0002\"} 1",
            "x_bucket{le=\"0.001\"} 2",
            "x_bucket{le=\"0.005\"} 4",
            "x_bucket{le=\"5\"} 4",
            "x_bucket{le=\"+Inf\"} 5",
            "x_count 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert_eq!(camel("messages_unresolved"), "messagesUnresolved");
    }
}

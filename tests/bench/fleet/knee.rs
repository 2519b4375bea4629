//! How many messages a second the hub takes when nobody paces them: each sender has one call under
//! way, always.

use super::*;

const SENDERS: usize = 16;
/// A phase lasts so long, and once before it what is not counted.
const TIME: Duration = Duration::from_secs(5);
const BEFORE: Duration = Duration::from_secs(1);
/// Messages of one call of the second phase.
const BATCH: usize = 64;

/// Rows: what is stored, delivered and acknowledged in a second, and what one message costs.
pub fn knee() {
    agent_relay::os::raise_descriptors();
    let hub = Hub::new("knee");
    let (tokens, _) = hub.tokens_of_agents(AGENTS);
    let fleet = Fleet::start(&hub, tokens);
    fleet.wait_registered();
    phase(&hub, &fleet, 1, "single posts", ["≥ 2.5 × 08d390c; 8,000/s", "≤ 0.4 × 08d390c"]);
    phase(&hub, &fleet, BATCH, "batches of 64", ["≥ 2.5 × 08d390c", "≤ 0.4 × 08d390c"]);
}

fn phase(hub: &Hub, fleet: &Fleet, size: usize, name: &str, goals: [&str; 2]) {
    pour(hub, fleet, size, BEFORE);
    let (_, before) = hub.costs();
    let begin = Instant::now();
    let (sent, mut waits) = pour(hub, fleet, size, TIME);
    let took = begin.elapsed();
    let (rss, after) = hub.costs();
    let (once, more) = fleet.take_seen();
    assert_eq!(more, 0, "no message comes twice");
    row(
        &format!("hub, {SENDERS} senders without a pace, {name}: delivered once and acknowledged"),
        goals[0],
        format!(
            "{:.0}/s ({once} of {sent} once), answer p99 {}; RSS {rss:.1} MB",
            sent as f64 / took.as_secs_f64(),
            ms(percentile(&mut waits, 0.99)),
        ),
    );
    row(
        "… processor time of the hub for one message",
        goals[1],
        us((after - before) / sent as u32),
    );
}

/// Sends for so long, and waits until all is acknowledged: how many messages that were, and how
/// long each call took.
fn pour(hub: &Hub, fleet: &Fleet, size: usize, time: Duration) -> (u64, Vec<Duration>) {
    fleet.take_seen();
    let calls: Vec<Vec<Duration>> = std::thread::scope(|scope| {
        let pour_one = |number: usize| {
            let mut client = Client::connect(hub).expect("connects");
            let (begin, mut turn) = (Instant::now(), 0);
            let mut calls = Vec::new();
            while begin.elapsed() < time {
                let messages: Vec<String> = (0..size)
                    .map(|at| {
                        let to = ((turn * size + at) * SENDERS + number) as u64 % fleet.count();
                        let body = "x".repeat(200);
                        format!(r#"{{"to":"agent-{to}","body":"{body}","replyExpected":false}}"#)
                    })
                    .collect();
                let (path, text) = match messages.as_slice() {
                    [one] => ("/api/messages", one.clone()),
                    all => {
                        ("/api/messages/batch", format!(r#"{{"messages":[{}]}}"#, all.join(",")))
                    }
                };
                let at = Instant::now();
                assert!(client.post(path, &text), "stored");
                calls.push(at.elapsed());
                turn += 1;
            }
            calls
        };
        let threads: Vec<_> =
            (0..SENDERS).map(|number| scope.spawn(move || pour_one(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("joins")).collect()
    });
    wait_acknowledged(hub);
    let calls = calls.concat();
    ((calls.len() * size) as u64, calls)
}

//! The hub with a long history.

use super::*;

/// Rows of the README: a long history.
pub fn history() {
    let mut hub = Hub::new("history");
    let agents = 1000u64;
    let fresh = latency(&hub);
    hub.kill();
    fill(&hub, agents);
    let mut starts: Vec<Duration> = (0..5)
        .map(|_| {
            hub.kill();
            hub.start()
        })
        .collect();
    row(
        "hub with 1,000,000 messages (100,000 waiting): start to first answer, p50",
        "≤ 1 s",
        ms(percentile(&mut starts, 0.5)),
    );
    let mut client = Client::connect(&hub).expect("connects");
    let mut polls: Vec<Duration> = (0..1000)
        .map(|turn| {
            let begin = Instant::now();
            let path = format!("/api/messages?for=agent-{}&unread=true&limit=100", turn % agents);
            let answer = client.ask("GET", &path, None).expect("an answer");
            assert_eq!(
                answer["messages"].as_array().map(Vec::len),
                Some(100),
                "a hundred wait for each"
            );
            begin.elapsed()
        })
        .collect();
    let (p50, p99) = (percentile(&mut polls, 0.5), percentile(&mut polls, 0.99));
    row(
        "… unread poll of 100 messages, p50 (p99)",
        "p99 ≤ 5 ms",
        format!("{} ({})", us(p50), ms(p99)),
    );
    let (rss, _) = hub.costs();
    let old = latency(&hub);
    let ratio = old.as_secs_f64() / fresh.as_secs_f64();
    row(
        "… send and store one message, p50, against an empty hub",
        "does not grow",
        format!("{} against {}: {ratio:.2} ×; RSS {rss:.1} MB", us(old), us(fresh)),
    );
}

/// A million messages, of which one of ten still waits.
fn fill(hub: &Hub, agents: u64) {
    let mut store = HubStore::open(&hub.home().join("hub/hub.sqlite")).expect("opens");
    let begin = store.snapshot().expect("reads").last_message;
    for block in 0..1000u64 {
        let mut ops = Vec::new();
        for row in 1..=1000u64 {
            let id = begin.plus(block * 1000 + row);
            let to = format!("agent-{}", id.0 % agents);
            let message = Message {
                id,
                from: "user".into(),
                to: to.clone(),
                kind: "chat".into(),
                body: "x".repeat(200),
                created_at: crate::now_ms(),
                ..Default::default()
            };
            ops.push(HubOp::MessagePut {
                message: message.into(),
                recipients: vec![to.clone()],
                key: Some(format!("k{id}")),
                sees_all: true,
            });
            // One of ten still waits.
            if !block.is_multiple_of(10) {
                ops.push(HubOp::Read {
                    message: id,
                    recipient: to,
                    at: 1,
                    reason: Some("bench".into()),
                });
            }
        }
        store.commit_ops(&ops).expect("commits");
    }
}

fn latency(hub: &Hub) -> Duration {
    let mut client = Client::connect(hub).expect("connects");
    let mut times: Vec<Duration> = (0..500)
        .map(|_| {
            let begin = Instant::now();
            client
                .ask("POST", "/api/messages", Some(&json!({"to": "user", "body": "x".repeat(200)})))
                .expect("stored");
            begin.elapsed()
        })
        .collect();
    percentile(&mut times, 0.5)
}

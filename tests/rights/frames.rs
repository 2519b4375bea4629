//! The frames of the table.

use super::*;

/// Registers as a if the token may, else as an orchestrator, else only to listen; then the frame of
/// the row is sent.
pub fn send(name: &str, token: &str, gone: bool) -> String {
    let mut world = World::new();
    let refused = matches!(token, "none" | "exp" | "rev");
    // Who gets no connection has no frame: there the check of the connection is taken away, for
    // others that of the frame.
    uncheck(gone && refused, "bus");
    let connected = world.connect(500, token);
    uncheck(gone, "");
    if !connected {
        return "401".into();
    }
    let said = frame_of(&mut world, name, token, gone && !refused);
    uncheck(gone, "");
    said
}

fn frame_of(world: &mut World, name: &str, token: &str, gone: bool) -> String {
    if name.starts_with("bus register") {
        uncheck(gone, "frame");
    }
    let registration = match name {
        "bus register {provider a}" => Some(register("provider", Some("a"))),
        "bus register {orchestrator o}" => Some(register("orchestrator", Some("o"))),
        "bus register {channel}" => Some(register("channel", None)),
        "bus register {integration}" => Some(register("integration", None)),
        _ => None,
    };
    if let Some(frame) = registration {
        return world.frame(500, &frame);
    }
    let ways = [
        register("provider", Some("a")),
        register("orchestrator", Some("o")),
        register("channel", None),
    ];
    assert!(ways.iter().any(|way| world.frame(500, way) == "ok"), "{token} can at least listen");
    let command = world.call("root", "GET", "/api/commands", json!({})).1["commands"][0]["id"]
        .as_str()
        .expect("a command")
        .to_string();
    let update = |status: &str| json!({"type": "command.update", "id": "u", "payload": {"commandId": command, "status": status}});
    let issue = |target: &str| json!({"type": "command", "id": "u", "payload": {"commandType": "agent.kill", "target": target, "params": {}}});
    let subscribe =
        |event: &str| json!({"type": "subscribe", "id": "u", "payload": {"events": [event]}});
    let changes = |world: &mut World, frame: Value, changed: fn(&Value) -> bool| match world
        .frame(500, &frame)
        .as_str()
    {
        "ok" if changed(&world.card()) => "ok".to_string(),
        "ok" => "-".into(),
        other => other.into(),
    };
    uncheck(gone, "frame");
    match name {
        "bus heartbeat {of a}" => {
            let frame =
                json!({"type": "heartbeat", "payload": {"status": "busy", "meta": {"here": 1}}});
            changes(world, frame, |card| card["meta"]["here"] == 1)
        }
        "bus status {of a}" => {
            let frame = json!({"type": "status", "payload": {"agentStatus": "busy"}});
            changes(world, frame, |card| card["status"] == "busy")
        }
        "bus ack {message of a}" => {
            let first = newest_number(world);
            let frame =
                |seq: u64| json!({"type": "ack", "payload": {"frameId": format!("e{seq}")}});
            (first.saturating_sub(4)..first)
                .for_each(|seq| assert_eq!(world.frame(500, &frame(seq)), "ok"));
            changes(world, frame(first), |card| card["queued"].as_u64() < Some(2))
        }
        "bus command" => world.frame(500, &issue("component-b")),
        "bus command {for o}" => world.frame(500, &issue("o")),
        "bus command.update" => world.frame(500, &update("succeeded")),
        "bus command.update {cancelled}" => world.frame(500, &update("cancelled")),
        "bus subscribe {message.new}" => world.frame(500, &subscribe("message.new")),
        "bus subscribe {agent.status}" => world.frame(500, &subscribe("agent.status")),
        "bus resume" => {
            world.frame(500, &json!({"type": "resume", "id": "u", "payload": {"since": 0}}))
        }
        other => panic!("no frame is known for the row {other:?}"),
    }
}

/// The number of the newest frame, which whoever got it knows; others have to guess.
fn newest_number(world: &World) -> u64 {
    let number = |effect: &Effect| match effect {
        Effect::Gate(GateCommand::PeerSend { text, .. }) => {
            text.split("\"seq\":").nth(1)?.split([',', '}']).next()?.parse::<u64>().ok()
        }
        _ => None,
    };
    world.effects.iter().rev().find_map(number).unwrap_or(1_760_000_000_000_001)
}

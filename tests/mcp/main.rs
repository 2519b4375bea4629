//! Tools of the relay for a model: recorded clients get what they need, and damaged frames harm
//! nothing.

use agent_relay::core::mcp::call::{Next, ToolCall};
use agent_relay::core::mcp::tools::TOOLS;
use agent_relay::core::mcp::{Headers, STATELESS, Step, ToolResult, receive};
use agent_relay::core::rng::Rng;
use serde_json::{Value, json};

fn told(frame: &Value, headers: Option<&Headers>) -> (u16, Value) {
    match receive(frame.to_string().as_bytes(), headers, None) {
        Step::Answer(status, body) => (status, body.unwrap_or_default()),
        Step::Call { reply, tool, .. } => (200, reply.result(&ToolResult::failed(tool.name))),
    }
}

/// Requests of real clients, one list for each recording.
fn recordings() -> Vec<(String, Vec<Value>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mcp");
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("fixtures").flatten().collect();
    files.sort_by_key(|file| file.file_name());
    files
        .iter()
        .map(|file| {
            let text = std::fs::read_to_string(file.path()).expect("reads");
            let rows = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
            (file.file_name().to_string_lossy().into_owned(), rows.collect())
        })
        .collect()
}

#[test]
fn recorded_clients_get_what_they_need() {
    let (mut seen, mut calls) = (std::collections::BTreeSet::new(), 0);
    for (name, rows) in recordings() {
        for row in rows.iter().filter(|row| row["dir"] == "in" && row["msg"].is_object()) {
            let frame = &row["msg"];
            let header = |name: &str| row["headers"][name].as_str().unwrap_or_default().to_string();
            let headers = row["http"].is_string().then(|| Headers {
                version: header("mcp-protocol-version"),
                method: header("mcp-method"),
                name: header("mcp-name"),
            });
            let (status, body) = told(frame, headers.as_ref());
            let place = |at: &str| body.pointer(at).cloned().unwrap_or_default();
            let method = frame["method"].as_str().unwrap_or("(answer)");
            seen.insert(method.to_string());
            calls += usize::from(method == "tools/call");
            assert!(body.is_null() || body["id"] == frame["id"], "{name}: {frame}");
            match method {
                "server/discover" => {
                    assert_eq!(place("/result/supportedVersions"), json!([STATELESS]), "{name}");
                    assert_eq!(place("/result/capabilities"), json!({"tools": {}}), "{name}");
                }
                "initialize" => {
                    let offered = &frame["params"]["protocolVersion"];
                    assert_eq!(&place("/result/protocolVersion"), offered, "{name}");
                    assert!(place("/result/instructions").is_string(), "{name}");
                }
                "tools/list" => {
                    assert!(place("/result/tools").as_array().is_some_and(|all| all.len() > 5));
                }
                // The recording server had other tools: the model is told of ours.
                "tools/call" => {
                    let text = place("/error/message").to_string();
                    assert!(text.contains("relay_reply"), "{name}: {body}");
                }
                "prompts/list" | "resources/list" | "subscriptions/listen" => {
                    assert_eq!(place("/error/code"), json!(-32601), "{name}: {frame}");
                }
                other => {
                    assert!(other.starts_with("notifications/"), "{name}: {frame}");
                    assert_eq!((status, &body), (202, &Value::Null), "{name}: {frame}");
                }
            }
        }
    }
    assert!(seen.len() >= 7 && calls > 30, "{seen:?}, {calls} calls");
}

/// Some bytes are lost, changed or added.
fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..rng.below(4) {
        let at = rng.below(bytes.len() as u64) as usize;
        match rng.below(4) {
            0 => bytes.truncate(at.max(1)),
            1 => bytes[at] = rng.below(256) as u8,
            2 => {
                bytes.remove(at);
            }
            _ => bytes.insert(at, b"{}[]\",:0\\"[rng.below(9) as usize]),
        }
        if bytes.is_empty() {
            bytes.push(b'{');
        }
    }
}

#[test]
fn damaged_frames_are_answered_and_harm_nothing() {
    let frames: Vec<Vec<u8>> = recordings()
        .into_iter()
        .flat_map(|(_, rows)| rows)
        .filter(|row| row["dir"] == "in" && row["msg"].is_object())
        .map(|row| {
            let ours = TOOLS[row["t_ms"].as_u64().unwrap_or(0) as usize % TOOLS.len()].name;
            row["msg"].to_string().replace("\"probe\"", &format!("{ours:?}")).into_bytes()
        })
        .collect();
    let (mut rng, mut kinds) = (Rng::new(17), [0u32; 3]);
    for round in 0..100_000u32 {
        let mut bytes = frames[rng.below(frames.len() as u64) as usize].clone();
        damage(&mut bytes, &mut rng);
        match receive(&bytes, None, None) {
            Step::Answer(202, None) => kinds[0] += 1,
            Step::Answer(status, Some(body)) => {
                assert!((200..500).contains(&status) && body["jsonrpc"] == "2.0", "{round}");
                assert!(body.get("result").is_some() != body.get("error").is_some(), "{round}");
                kinds[1] += 1;
            }
            Step::Answer(status, None) => panic!("{round}: {status} without a body"),
            Step::Call { reply, tool, arguments } => {
                kinds[2] += 1;
                let result = match ToolCall::new(tool, &arguments, None) {
                    Err(result) => result,
                    Ok(mut call) => {
                        call.first();
                        match call.next(200, &json!({"agents": 5, "id": [], "messages": {}})) {
                            Next::Done(result) => result,
                            Next::Ask(_) => call.unreachable("away"),
                        }
                    }
                };
                assert!(reply.result(&result)["result"]["content"].is_array(), "{round}");
            }
        }
    }
    assert!(kinds.iter().all(|count| *count > 1000), "{kinds:?}");
}

//! Who may do what at the hub: every call and every frame by every kind of token, as `table.txt`
//! says it. The table of routes only proves that none is missing here.

mod calls;
mod frames;
mod world;

use agent_relay::core::commit::Commit;
use agent_relay::core::http::GateCommand;
use agent_relay::core::hub::event::StoreCommand;
use calls::ask;
use frames::send;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use world::World;

use agent_relay::core::Machine;
use agent_relay::core::http::Request;
use agent_relay::core::hub::event::{Effect, Event, HubOp, StoreEvent};
use agent_relay::core::hub::routes::ROUTES;
use agent_relay::core::hub::{Hub, HubConfig, scopes_of};
use agent_relay::core::ids::{PeerId, Ticket};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::hub::store::{Committed, HubStore};
use agent_relay::wire::api::TokenRecord;
use agent_relay::wire::bus::ClientFrame;
use serde_json::{Value, json};

const TABLE: &str = include_str!("table.txt");

/// Takes the checks of one place away, in the build that can do that; `gone`: whether it is wanted
/// at all.
fn uncheck(gone: bool, place: &str) {
    if gone {
        agent_relay::planted::uncheck(place);
    }
}

fn register(role: &str, agent: Option<&str>) -> Value {
    json!({"type": "register", "id": "r", "payload": {"role": role, "agentId": agent, "instanceId": "j", "componentId": "c"}})
}

/// Rows of the table: name, and what each column says.
fn rows() -> (Vec<&'static str>, Vec<(&'static str, Vec<&'static str>)>) {
    let mut lines = TABLE.lines().filter(|line| line.contains('|') && !line.starts_with('#'));
    let split = |line: &'static str| {
        line.split_once('|')
            .map(|(name, cells)| (name.trim(), cells.split_whitespace().collect()))
            .expect("a row")
    };
    let (_, columns): (_, Vec<&str>) = split(lines.next().expect("a head"));
    (columns, lines.map(split).collect())
}

/// A cell that differs from the table: the token, what came, and what was wanted.
struct Cell {
    token: &'static str,
    got: String,
    want: &'static str,
}

/// Cells that differ from the table, by row; `gone`: each call and each frame is asked once more
/// without its checks.
fn differences(gone: bool) -> BTreeMap<&'static str, Vec<Cell>> {
    let (columns, rows) = rows();
    let differs = |(name, cells): &(&'static str, Vec<&'static str>)| {
        assert_eq!(cells.len(), columns.len(), "{name}");
        let cell = |(token, want): (&&'static str, &&'static str)| {
            let got = if name.starts_with("bus ") {
                send(name, token, gone)
            } else {
                ask(name, token, gone)
            };
            (got != *want).then_some(Cell { token, got, want })
        };
        let found: Vec<Cell> = columns.iter().zip(cells).filter_map(cell).collect();
        (!found.is_empty()).then_some((*name, found))
    };
    let half = rows.len() / 2;
    let (one, two) = std::thread::scope(|scope| {
        let second = scope.spawn(|| rows[half..].iter().filter_map(differs).collect::<Vec<_>>());
        (rows[..half].iter().filter_map(differs).collect::<Vec<_>>(), second.join().expect("runs"))
    });
    one.into_iter().chain(two).collect()
}

#[test]
fn every_call_and_every_frame_is_allowed_to_whom_the_table_says() {
    let told = |(name, cells): (&str, Vec<Cell>)| -> Vec<String> {
        cells
            .iter()
            .map(|cell| format!("{name} by {}: {}, not {}", cell.token, cell.got, cell.want))
            .collect()
    };
    let found: Vec<String> = differences(false).into_iter().flat_map(told).collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// Where the check of one call or frame is taken away, its row differs: where it says that somebody
/// is refused, somebody is not. This can be seen only in the build with planted defects; there the
/// test fails if every row has noticed.
#[test]
fn a_row_whose_check_is_gone_differs() {
    let found = differences(true);
    let (columns, rows) = rows();
    let root = columns.iter().position(|column| *column == "root").expect("a column");
    let notices = |name: &str, cells: &[&str], refusal: &str| {
        // What is refused to root too is refused for what it is, and by whom it is allowed shows
        // then.
        let any = refusal == "403" && cells[root] == "403";
        let differs = found
            .get(name)
            .is_some_and(|found| found.iter().any(|cell| any || cell.want == refusal));
        differs || !cells.contains(&refusal)
    };
    let blind = |(name, cells): &&(&str, Vec<&str>)| {
        !["401", "403"].iter().all(|refusal| notices(name, cells, refusal))
    };
    let unseen: Vec<&str> = rows.iter().filter(blind).map(|(name, _)| *name).collect();
    println!("without their checks these rows do not differ: {unseen:#?}");
    assert!(!unseen.is_empty(), "each row has noticed that its check is gone");
}

#[test]
fn no_call_and_no_frame_is_missing() {
    let (_, rows) = rows();
    let known: BTreeSet<&str> = rows
        .iter()
        .map(|(name, _)| name.strip_suffix('}').map_or(*name, |_| strip_note(name)))
        .collect();
    for route in ROUTES {
        let name = format!("{} {}", route.method, route.path);
        assert!(known.contains(name.as_str()), "tests/rights/table.txt has no row for {name}");
    }
    // A new kind of frame does not compile here without a name.
    let name = |frame: &ClientFrame| match frame {
        ClientFrame::Register { .. } => "bus register",
        ClientFrame::Heartbeat { .. } => "bus heartbeat",
        ClientFrame::Status { .. } => "bus status",
        ClientFrame::Command { .. } => "bus command",
        ClientFrame::CommandUpdate { .. } => "bus command.update",
        ClientFrame::Subscribe { .. } => "bus subscribe",
        ClientFrame::Ack { .. } => "bus ack",
        ClientFrame::Resume { .. } => "bus resume",
    };
    let frames = [
        "register",
        "heartbeat",
        "status",
        "command",
        "command.update",
        "subscribe",
        "ack",
        "resume",
    ];
    for kind in frames {
        let payload = json!({"agentStatus": "idle", "commandType": "x", "target": "x", "commandId": "x", "status": "x", "frameId": "x"});
        let frame =
            ClientFrame::parse(&json!({"type": kind, "id": "x", "payload": payload}).to_string());
        let frame = frame.unwrap_or_else(|_| ClientFrame::Register {
            id: String::new(),
            registration: Default::default(),
        });
        assert!(
            known.contains(name(&frame)),
            "tests/rights/table.txt has no row for {}",
            name(&frame)
        );
    }
}

/// The name of a row without what tells it from others of the same route; parts of a path in braces
/// stay.
fn strip_note(name: &str) -> &str {
    name.rsplit_once(" {").map_or(name, |(name, _)| name)
}

/// A connection does not outlive its token, nor what it may see.
#[test]
fn a_connection_has_the_rights_of_its_token_until_that_ends() {
    let mut world = World::new();
    assert!(world.connect(500, "other"));
    assert_eq!(world.frame(500, &register("provider", Some("b"))), "ok");
    assert_eq!(world.call("root", "DELETE", "/api/tokens/other", json!({})).0, "204");
    assert!(world.effects.iter().any(|effect| matches!(effect, Effect::Gate(GateCommand::PeerClose { peer, .. }) if *peer == PeerId(500))));
    world.now.tick = world.now.tick + Duration::from_secs(1);
    assert_eq!(world.call("other", "GET", "/api/tokens/self", json!({})).0, "401");
}

/// A tool is allowed to whom the calls of the API are allowed that it consists of, and to nobody
/// else.
#[test]
fn a_tool_does_what_its_token_may_do_and_no_more() {
    // The tool, the calls that it makes, and what they change.
    let message = json!({"to": "a", "body": "x"});
    let reaction = json!({"emoji": "+"});
    let command = json!({"type": "agent.shutdown", "target": "a"});
    let read = ("GET", "/api/messages/1", Value::Null);
    let rows = [
        ("relay_send_message", message.clone(), vec![("POST", "/api/messages", message)]),
        (
            "relay_reply",
            json!({"messageId": 1, "body": "x"}),
            vec![
                read.clone(),
                ("POST", "/api/messages", json!({"to": "user", "body": "x", "replyTo": 1})),
            ],
        ),
        (
            "relay_react",
            json!({"messageId": 1, "emoji": "+"}),
            vec![("POST", "/api/messages/1/reactions", reaction)],
        ),
        ("relay_get_message", json!({"messageId": 1}), vec![read]),
        (
            "relay_get_thread",
            json!({"messageId": 1}),
            vec![("GET", "/api/messages/1/thread", Value::Null)],
        ),
        ("relay_find_agents", json!({}), vec![("GET", "/api/agents", Value::Null)]),
        (
            "relay_agent_status",
            json!({"agentId": "a"}),
            vec![("GET", "/api/agents/a", Value::Null)],
        ),
        ("relay_whoami", json!({}), vec![("GET", "/api/tokens/self", Value::Null)]),
        ("relay_shutdown_agent", json!({"agentId": "a"}), vec![("POST", "/api/commands", command)]),
    ];
    let (columns, _) = self::rows();
    let (mut allowed, mut refused) = (0, 0);
    for (tool, arguments, calls) in rows {
        for token in columns.iter().filter(|token| !["none", "exp", "rev"].contains(*token)) {
            let mut plain = World::new();
            let may = calls.iter().all(|(method, path, body)| {
                plain.call(token, method, path, body.clone()).0.starts_with('2')
            });
            let mut world = World::new();
            let params = json!({"name": tool, "arguments": arguments});
            let frame = json!({"id": "x", "method": "tools/call", "params": params});
            let (status, body) = world.call(token, "POST", "/api/mcp", frame);
            assert_eq!((status.as_str(), &body["id"]), ("200", &json!("x")), "{tool} {token}");
            assert_eq!(body["result"]["isError"], !may, "{tool} by {token}: {body}");
            let text = body["result"]["content"][0]["text"].as_str().unwrap_or_default();
            assert!(may || text.contains("failed: "), "{tool} by {token}: {text}");
            if may { allowed += 1 } else { refused += 1 }
        }
    }
    assert!(allowed > 50 && refused > 50, "{allowed} {refused}");
}

#[test]
fn a_client_of_tools_hears_at_once_what_is_not_there() {
    let mut world = World::new();
    for (token, method, path, want) in [
        // A stream that is never opened, and sessions that are never given.
        ("own", "GET", "/api/mcp", "405"),
        ("own", "DELETE", "/api/mcp", "405"),
        // There is no login to be found.
        ("none", "GET", "/.well-known/oauth-protected-resource/api/mcp", "404"),
        ("none", "GET", "/.well-known/oauth-authorization-server", "404"),
        ("none", "POST", "/register", "404"),
        ("none", "POST", "/api/mcp", "401"),
        ("none", "GET", "/api/nothing", "401"),
    ] {
        assert_eq!(world.call(token, method, path, json!({})).0, want, "{method} {path}");
    }
    let frame = json!({"method": "notifications/initialized"});
    assert_eq!(world.call("own", "POST", "/api/mcp", frame), ("202".into(), Value::Null));
    let names = |world: &mut World, token: &str| {
        let frame = json!({"id": 1, "method": "tools/list"});
        let (_, body) = world.call(token, "POST", "/api/mcp", frame);
        body["result"]["tools"].as_array().map_or(0, Vec::len)
    };
    // Reading alone, an agent, everything.
    assert_eq!(["o:mr", "own", "root"].map(|token| names(&mut world, token)), [5, 8, 9]);
}

//! Who may do what at the hub: every call and every frame by every kind of token, as `table.txt`
//! says it. The table of routes only proves that none is missing here.

use agent_relay::core::commit::Commit;
use agent_relay::core::http::GateCommand;
use agent_relay::core::hub::event::StoreCommand;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agent_relay::core::Machine;
use agent_relay::core::http::{Body, Request};
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

/// The scopes of the columns `o:XX`.
const SINGLE: [(&str, &str); 12] = [
    ("o:as", "agent:self"),
    ("o:ms", "message:send"),
    ("o:mr", "message:read"),
    ("o:mc", "message:claim"),
    ("o:tu", "task:update"),
    ("o:ci", "command:issue"),
    ("o:cu", "command:update"),
    ("o:ar", "artifact:read"),
    ("o:aw", "artifact:write"),
    ("o:iw", "insight:write"),
    ("o:sp", "spawn"),
    ("o:ti", "token:issue"),
];

/// A hub on a store in memory, with the agents a and b and one thing of each kind for a.
struct World {
    hub: Hub,
    store: HubStore,
    now: Now,
    tickets: u64,
    effects: Vec<Effect>,
}

fn record(jti: &str, profile: &str, agent: Option<&str>, scopes: &[&str]) -> TokenRecord {
    TokenRecord {
        jti: jti.into(),
        profile_id: profile.into(),
        agent_id: agent.map(str::to_string),
        scopes: scopes.iter().map(|scope| scope.to_string()).collect(),
        ..Default::default()
    }
}

/// The tokens of the columns, by the name of the column.
fn tokens() -> Vec<(String, TokenRecord)> {
    let agent = scopes_of("provider-agent");
    let mut all = vec![
        (
            "exp",
            TokenRecord {
                expires_at: Some(1),
                ..record("exp", "operator", None, scopes_of("operator"))
            },
        ),
        ("rev", record("rev", "operator", None, scopes_of("operator"))),
        ("root", record("root", "root", None, &["admin"])),
        ("adm", record("adm", "operator", None, &["admin"])),
        ("oper", record("oper", "operator", None, scopes_of("operator"))),
        ("own", record("own", "provider-agent", Some("a"), agent)),
        ("other", record("other", "provider-agent", Some("b"), agent)),
        ("inter", record("inter", "provider-interactive", Some("a"), agent)),
        ("orch", record("orch", "orchestrator", None, scopes_of("orchestrator"))),
    ];
    all.extend(
        SINGLE.iter().map(|(name, scope)| (*name, record(name, "operator", None, &[scope]))),
    );
    all.into_iter().map(|(name, record)| (name.to_string(), record)).collect()
}

impl World {
    fn new() -> World {
        let config = HubConfig {
            id: "hub".into(),
            hash: |token| format!("#{token}"),
            secret: Box::new(|| "secret".into()),
        };
        let mut store = HubStore::in_memory().expect("memory");
        let ops = tokens()
            .into_iter()
            .map(|(name, record)| HubOp::TokenPut { hash: format!("#{name}"), record })
            .collect();
        store.commit(&[(0, ops)]).expect("memory");
        let snapshot = store.snapshot().expect("memory");
        let now = Now { tick: Tick(1_000_000), wall: Wall(1_760_000_000_000) };
        let mut world =
            World { hub: Hub::new(config, 1), store, now, tickets: 0, effects: Vec::new() };
        world.tell(Event::Store(StoreEvent::Restored(Box::new(snapshot))));
        world.fill();
        world
    }

    fn fill(&mut self) {
        let done =
            |(status, body): (String, Value)| assert!(status.starts_with('2'), "{status} {body}");
        done(self.call("root", "DELETE", "/api/tokens/rev", json!({})));
        let agent = |id: &str, role: &str| json!({"id": id, "role": role, "instanceId": "i", "componentId": format!("component-{id}")});
        done(self.call("own", "POST", "/api/agents", agent("a", "provider")));
        done(self.call("other", "POST", "/api/agents", agent("b", "provider")));
        done(self.call("orch", "POST", "/api/agents", agent("o", "orchestrator")));
        done(self.call("root", "POST", "/api/messages", json!({"to": "a", "body": "message 1"})));
        done(self.call(
            "root",
            "POST",
            "/api/tasks",
            json!({"to": "a", "title": "task 1 is message 2"}),
        ));
        done(self.call(
            "root",
            "POST",
            "/api/commands",
            json!({"type": "agent.restart", "target": "a"}),
        ));
    }

    /// Tells the hub, and carries out what it wants of its store until it wants nothing more.
    fn tell(&mut self, event: Event) {
        let mut todo = self.hub.handle(self.now, event);
        while !todo.is_empty() {
            let mut next = Vec::new();
            for effect in todo {
                let answer = match &effect {
                    Effect::Store(StoreCommand::Commit(Commit { number, ops })) => {
                        let committed =
                            self.store.commit(&[(*number, ops.clone())]).expect("memory");
                        let Committed { existing, unattached, unseen, retired } = committed;
                        StoreEvent::Committed {
                            upto: *number,
                            existing,
                            unattached,
                            unseen,
                            retired,
                        }
                    }
                    Effect::Read { number, query } => {
                        StoreEvent::Read { number: *number, answer: self.store.answer(query) }
                    }
                    Effect::Store(StoreCommand::Vacuum) => StoreEvent::Vacuumed(Ok((2, 1))),
                    _ => {
                        self.effects.push(effect);
                        continue;
                    }
                };
                next.extend(self.hub.handle(self.now, Event::Store(answer)));
            }
            todo = next;
        }
    }

    /// Status and body of a call; a reader of events is a 200.
    fn call(&mut self, token: &str, method: &str, target: &str, body: Value) -> (String, Value) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let token = if token == "none" { "" } else { token };
        let request = Request {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            token: token.into(),
            body: body.to_string().into_bytes(),
            ..Default::default()
        };
        self.tell(Event::Request { ticket, request });
        let answer = self.effects.iter().find_map(|effect| match effect {
            Effect::Gate(GateCommand::Respond { ticket: t, status, body: Body::Json(body) })
                if *t == ticket =>
            {
                Some((status.to_string(), body.clone()))
            }
            Effect::Gate(GateCommand::Respond { ticket: t, status, .. }) if *t == ticket => {
                Some((status.to_string(), Value::Null))
            }
            Effect::Gate(GateCommand::Accept { ticket: t }) if *t == ticket => {
                Some(("200".into(), Value::Null))
            }
            _ => None,
        });
        answer.expect("an answer")
    }

    /// Opens a connection; false: refused.
    fn connect(&mut self, peer: u64, token: &str) -> bool {
        let token = if token == "none" { "" } else { token };
        self.tell(Event::Upgrade {
            ticket: Ticket(peer),
            request: Request { path: "/bus".into(), token: token.into(), ..Default::default() },
        });
        self.effects.iter().any(|effect| matches!(effect, Effect::Gate(GateCommand::Accept { ticket }) if *ticket == Ticket(peer)))
    }

    /// Sends a frame; `ok`, or `403` where the answer is a refusal and the connection stays.
    fn frame(&mut self, peer: u64, frame: &Value) -> String {
        let before = self.effects.len();
        self.tell(Event::PeerText { peer: PeerId(peer), text: frame.to_string() });
        let new = &self.effects[before..];
        if new.iter().any(|effect| matches!(effect, Effect::Gate(GateCommand::PeerClose { peer: p, .. }) if *p == PeerId(peer))) {
            return "closed".into();
        }
        let error = new.iter().find_map(|effect| match effect {
            Effect::Gate(GateCommand::PeerSend { peer: p, text }) if *p == PeerId(peer) => {
                let frame: Value = serde_json::from_str(text).expect("a frame");
                (frame["type"] == "error")
                    .then(|| frame["payload"]["code"].as_str().unwrap_or_default().to_string())
            }
            _ => None,
        });
        match error.as_deref() {
            None => "ok".into(),
            Some("forbidden") => "403".into(),
            Some(other) => other.into(),
        }
    }

    /// What everybody knows of a.
    fn card(&mut self) -> Value {
        self.call("root", "GET", "/api/agents/a", json!({})).1
    }
}

/// The request of a row, and what has to be done first.
fn request(name: &str) -> (&'static str, &'static str, Value) {
    let agent = json!({"id": "a", "role": "provider", "instanceId": "i"});
    match name {
        "POST /api/agents" => ("", "/api/agents", agent),
        "POST /api/agents {as orchestrator}" => {
            ("", "/api/agents", json!({"id": "o", "role": "orchestrator", "instanceId": "i"}))
        }
        "PUT /api/agents/{id}/status" => {
            ("", "/api/agents/a/status", json!({"status": "busy", "instanceId": "i"}))
        }
        "PUT /api/agents/{id}/ready" => {
            ("", "/api/agents/a/ready", json!({"ready": true, "instanceId": "i"}))
        }
        "POST /api/agents/{id}/heartbeat" => {
            ("", "/api/agents/a/heartbeat", json!({"instanceId": "i"}))
        }
        "PUT /api/agents/{id}/label" => ("", "/api/agents/a/label", json!({"label": "web"})),
        "GET /api/agents/{id}/reply-obligations" => {
            ("", "/api/agents/a/reply-obligations", json!({}))
        }
        "GET /api/agents/{id}" | "DELETE /api/agents/{id}" => ("", "/api/agents/a", json!({})),
        "POST /api/messages" => ("", "/api/messages", json!({"to": "a", "body": "x"})),
        "POST /api/messages {as a}" => {
            ("", "/api/messages", json!({"to": "b", "from": "a", "body": "x"}))
        }
        "POST /api/messages/batch" => {
            ("", "/api/messages/batch", json!({"messages": [{"to": "a", "body": "x"}]}))
        }
        "GET /api/messages" => ("", "/api/messages?for=a", json!({})),
        "GET /api/messages/{id}" => ("", "/api/messages/1", json!({})),
        "GET /api/messages/{id}/thread" => ("", "/api/messages/1/thread", json!({})),
        "POST /api/messages/{id}/claim" => ("", "/api/messages/2/claim", json!({"agentId": "a"})),
        "POST /api/messages/{id}/claim {as itself}" => ("", "/api/messages/2/claim", json!({})),
        "POST /api/messages/{id}/claim/renew" => {
            ("claim", "/api/messages/2/claim/renew", json!({"agentId": "a"}))
        }
        "DELETE /api/messages/{id}/claim" => {
            ("claim", "/api/messages/2/claim", json!({"agentId": "a"}))
        }
        "POST /api/messages/{id}/read" => ("", "/api/messages/1/read", json!({"agentId": "a"})),
        "POST /api/messages/{id}/read {as itself}" => ("", "/api/messages/1/read", json!({})),
        "POST /api/messages/{id}/reactions" => {
            ("", "/api/messages/1/reactions", json!({"agentId": "a", "emoji": "+"}))
        }
        "POST /api/messages/{id}/reactions {as itself}" => {
            ("", "/api/messages/1/reactions", json!({"emoji": "+"}))
        }
        "POST /api/tasks" => ("", "/api/tasks", json!({"to": "a", "title": "t"})),
        "GET /api/tasks/{id}" => ("", "/api/tasks/1", json!({})),
        "PATCH /api/tasks/{id}" => {
            ("claim", "/api/tasks/1", json!({"status": "in_progress", "agentId": "a"}))
        }
        "POST /api/commands" => {
            ("", "/api/commands", json!({"type": "agent.kill", "target": "component-a"}))
        }
        "POST /api/commands {for o}" => {
            ("", "/api/commands", json!({"type": "agent.spawn", "target": "component-o"}))
        }
        "GET /api/commands/{id}" => ("", "/api/commands/COMMAND", json!({})),
        "PATCH /api/commands/{id}" => ("", "/api/commands/COMMAND", json!({"status": "succeeded"})),
        "PATCH /api/commands/{id} {cancelled}" => {
            ("", "/api/commands/COMMAND", json!({"status": "cancelled"}))
        }
        "POST /api/tokens {provider-agent}" => {
            ("", "/api/tokens", json!({"profileId": "provider-agent", "agentId": "a"}))
        }
        "POST /api/tokens {operator}" => ("", "/api/tokens", json!({"profileId": "operator"})),
        "DELETE /api/tokens/{jti}" => ("", "/api/tokens/own", json!({})),
        "POST /api/insights/observations" => {
            ("", "/api/insights/observations", json!({"signal": "x"}))
        }
        _ => ("", "", json!({})),
    }
}

fn ask(name: &str, token: &str, gone: bool) -> String {
    let mut world = World::new();
    let (first, target, body) = request(name);
    if first == "claim" {
        assert_eq!(world.call("own", "POST", "/api/messages/2/claim", json!({})).0, "200");
    }
    let (method, path) = name.split_once(' ').expect("a method");
    let target = if target.is_empty() { path.split(" {").next().unwrap_or(path) } else { target };
    let command = world.call("root", "GET", "/api/commands", json!({})).1["commands"][0]["id"]
        .as_str()
        .expect("a command")
        .to_string();
    uncheck(gone, if name.ends_with("}") { strip_note(name) } else { name });
    let (status, _) = world.call(token, method, &target.replace("COMMAND", &command), body);
    uncheck(gone, "");
    status
}

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

/// Registers as a if the token may, else as an orchestrator, else only to listen; then the frame of
/// the row is sent.
fn send(name: &str, token: &str, gone: bool) -> String {
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
    match name {
        "bus register {provider a}" => return world.frame(500, &register("provider", Some("a"))),
        "bus register {orchestrator o}" => {
            return world.frame(500, &register("orchestrator", Some("o")));
        }
        "bus register {channel}" => return world.frame(500, &register("channel", None)),
        "bus register {integration}" => return world.frame(500, &register("integration", None)),
        _ => {}
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
            // The number of the frame is known to whoever got it; others have to guess.
            let number = |effect: &Effect| match effect {
                Effect::Gate(GateCommand::PeerSend { text, .. }) => {
                    text.split("\"seq\":").nth(1)?.split([',', '}']).next()?.parse::<u64>().ok()
                }
                _ => None,
            };
            let first =
                world.effects.iter().rev().find_map(number).unwrap_or(1_760_000_000_000_001);
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

//! The hub of these tests, with its tokens.

use super::*;

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
pub struct World {
    pub hub: Hub,
    pub store: HubStore,
    pub now: Now,
    pub tickets: u64,
    pub effects: Vec<Effect>,
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
pub fn tokens() -> Vec<(String, TokenRecord)> {
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
    pub fn new() -> World {
        let config = HubConfig {
            id: "hub".into(),
            hash: |token| format!("#{token}"),
            secret: Box::new(|| "secret".into()),
        };
        let mut store = HubStore::in_memory().expect("memory");
        let ops: Vec<HubOp> = tokens()
            .into_iter()
            .map(|(name, record)| HubOp::TokenPut { hash: format!("#{name}"), record })
            .collect();
        store.commit_ops(&ops).expect("memory");
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
    pub fn tell(&mut self, event: Event) {
        let mut todo = self.hub.handle(self.now, event);
        while !todo.is_empty() {
            let mut next = Vec::new();
            for effect in todo {
                let answer = match &effect {
                    Effect::Store(StoreCommand::Commit(Commit { number, ops })) => {
                        let committed = self.store.commit_ops(ops).expect("memory");
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
    pub fn call(
        &mut self,
        token: &str,
        method: &str,
        target: &str,
        body: Value,
    ) -> (String, Value) {
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
            Effect::Gate(GateCommand::Respond { ticket: t, status, body }) if *t == ticket => {
                Some((status.to_string(), body.to_json()))
            }
            Effect::Gate(GateCommand::Accept { ticket: t }) if *t == ticket => {
                Some(("200".into(), Value::Null))
            }
            _ => None,
        });
        answer.expect("an answer")
    }

    /// Opens a connection; false: refused.
    pub fn connect(&mut self, peer: u64, token: &str) -> bool {
        let token = if token == "none" { "" } else { token };
        self.tell(Event::Upgrade {
            ticket: Ticket(peer),
            request: Request { path: "/bus".into(), token: token.into(), ..Default::default() },
        });
        self.effects.iter().any(|effect| matches!(effect, Effect::Gate(GateCommand::Accept { ticket }) if *ticket == Ticket(peer)))
    }

    /// Sends a frame; `ok`, or `403` where the answer is a refusal and the connection stays.
    pub fn frame(&mut self, peer: u64, frame: &Value) -> String {
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
    pub fn card(&mut self) -> Value {
        self.call("root", "GET", "/api/agents/a", json!({})).1
    }
}

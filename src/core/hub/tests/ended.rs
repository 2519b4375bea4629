//! How agents end, what is kept of it, and how they are forgotten.

use super::*;
use crate::core::hub::event::StoredAgent;

/// The agent `c`, on the bus or without one.
struct Scene {
    bench: Bench,
    /// As it was stored last.
    stored: Option<StoredAgent>,
}

const C: PeerId = PeerId(70);

impl Scene {
    fn new(snapshot: HubSnapshot) -> Scene {
        Scene { bench: Bench::with(snapshot), stored: None }
    }

    /// Nothing is kept but what was ordered to be.
    fn keep(&mut self, effects: Vec<Effect>) {
        for effect in effects.into_iter().chain(self.bench.commit()) {
            let Effect::Store(StoreCommand::Commit(Commit { ops, .. })) = effect else { continue };
            for op in ops {
                match op {
                    HubOp::AgentPut(agent) if agent.id == "c" => self.stored = Some(agent),
                    _ => {}
                }
            }
        }
    }

    fn call(&mut self, method: &str, path: &str, body: Value) {
        let effects = self.bench.ask("operator", method, path, body);
        self.keep(effects);
    }

    fn connect(&mut self, instance: &str) {
        let request =
            Request { path: "/bus".into(), token: "operator".into(), ..Default::default() };
        self.bench.tell(Event::Upgrade { ticket: C.ticket(), request });
        let payload = json!({"role": "provider", "agentId": "c", "instanceId": instance});
        self.frame(json!({"type": "register", "id": "r", "payload": payload}));
    }

    fn frame(&mut self, frame: Value) {
        let effects = self.bench.tell(Event::PeerText { peer: C, text: frame.to_string() });
        self.keep(effects);
    }

    fn status(&mut self, word: &str, meta: Value) {
        let payload = json!({"agentStatus": word, "meta": meta});
        self.frame(json!({"type": "status", "payload": payload}));
    }

    fn lose(&mut self) {
        let effects = self.bench.tell(Event::PeerClosed { peer: C });
        self.keep(effects);
    }

    fn later(&mut self, time: Duration) {
        let effects = self.bench.later(time);
        self.keep(effects);
    }

    fn card(&mut self) -> Value {
        self.bench.call("operator", "GET", "/api/agents/c", json!({})).1
    }
}

fn last_words(why: &str, more: Value) -> Value {
    let mut meta = json!({"status": "offline", "statusWhy": why, "statusSince": 77});
    meta.as_object_mut().expect("a record").extend(more.as_object().expect("a record").clone());
    meta
}

fn on_the_bus(scene: &mut Scene) {
    scene.connect("1");
    scene.status("idle", json!({"status": "idle", "statusWhy": "no turn"}));
}

fn without_a_bus(scene: &mut Scene) {
    let registration = json!({"id": "c", "role": "provider", "instanceId": "1"});
    scene.call("POST", "/api/agents", registration);
}

/// Name, how it begins, how it ends, and the status and the reason that are known afterwards.
type Way = (&'static str, fn(&mut Scene), fn(&mut Scene), (&'static str, &'static str));

fn say_goodbye(scene: &mut Scene) {
    let meta = last_words("stopped by X", json!({"lifecycleAction": "shutting-down"}));
    scene.status("offline", meta);
    scene.lose();
}

fn fail(scene: &mut Scene) {
    let failed = json!({"status": "error", "terminalStatus": "error"});
    scene.status("offline", last_words("no login", failed));
    scene.lose();
}

fn die(scene: &mut Scene) {
    scene.lose();
    scene.later(OFFLINE_AFTER_LOSS);
}

fn die_while_restarting(scene: &mut Scene) {
    let meta = last_words("next start soon", json!({"lifecycleAction": "restarting"}));
    scene.status("offline", meta);
    scene.lose();
}

fn say_goodbye_by_calls(scene: &mut Scene) {
    scene.call("PUT", "/api/agents/c/status", json!({"status": "offline"}));
    let meta = last_words("stopped by X", json!({"lifecycleAction": "shutting-down"}));
    scene.call("PUT", "/api/agents/c/ready", json!({"ready": false, "meta": meta}));
}

const LOST: (&str, &str) = ("offline", "without a goodbye");
const WAYS: [Way; 6] = [
    ("a goodbye", on_the_bus, say_goodbye, ("offline", "stopped by X")),
    ("a failed start", on_the_bus, fail, ("error", "no login")),
    ("a kill", on_the_bus, die, LOST),
    ("a kill while its provider was started again", on_the_bus, die_while_restarting, LOST),
    ("a goodbye by calls", without_a_bus, say_goodbye_by_calls, ("offline", "stopped by X")),
    ("silence", without_a_bus, |scene| scene.later(OFFLINE_AFTER_SILENCE), LOST),
];

/// One rule for every way: the agent stays, with reason and time, and a hub that starts again tells
/// the same.
#[test]
fn however_an_agent_ends_it_stays_with_reason_and_time_over_restarts_of_the_hub() {
    for (what, begin, end, (status, why)) in WAYS {
        let mut scene = Scene::new(HubSnapshot::default());
        begin(&mut scene);
        assert_eq!(scene.card()["ended"], Value::Null, "{what}");
        end(&mut scene);
        let ended = scene.card()["ended"].clone();
        assert_eq!(ended["status"], status, "{what}: {ended}");
        assert!(ended["why"].as_str().is_some_and(|it| it.contains(why)), "{what}: {ended}");
        assert!(ended["since"].as_i64().is_some_and(|it| it > 0), "{what}: {ended}");
        let agents = vec![scene.stored.clone().expect("stored")];
        let mut again = Scene::new(HubSnapshot { agents, ..Default::default() });
        assert_eq!(again.card()["ended"], ended, "{what}, over a restart of the hub");
        let sent = json!({"to": "c", "body": "x"});
        assert_eq!(again.bench.call("operator", "POST", "/api/messages", sent).0, 201, "{what}");
        begin(&mut again);
        assert_eq!(again.card()["ended"], Value::Null, "{what}: it is back");
        let stored = again.stored.as_ref().expect("stored");
        assert_eq!(stored.ended, None, "{what}: it is back");
    }
}

/// It was there when the hub ended, and did not come back.
#[test]
fn whoever_does_not_come_back_after_a_restart_of_the_hub_says_so() {
    let stored = StoredAgent { id: "c".into(), ..Default::default() };
    let mut scene = Scene::new(HubSnapshot { agents: vec![stored], ..Default::default() });
    let ended = scene.card()["ended"].clone();
    let since = ended["since"].as_i64();
    assert!(
        ended["why"].to_string().contains("not come back") && since == Some(1_000_000),
        "{ended}"
    );
}

#[test]
fn a_status_tells_an_event_of_the_timeline_once() {
    let mut scene = Scene::new(HubSnapshot::default());
    on_the_bus(&mut scene);
    let request = Request { token: "operator".into(), ..Default::default() };
    let request = Request { method: "GET".into(), path: "/api/events".into(), ..request };
    scene.bench.tell(Event::Request { ticket: Ticket(90), request });
    let told = |scene: &mut Scene, meta: Value| {
        let payload = json!({"agentStatus": "busy", "meta": meta});
        let text = json!({"type": "status", "payload": payload}).to_string();
        let mut effects = scene.bench.tell(Event::PeerText { peer: C, text });
        effects.extend(scene.bench.commit());
        let frames = effects.iter().filter_map(|effect| match effect {
            Effect::Gate(GateCommand::PeerSend { peer: PeerId(90), text }) => {
                Some(text.to_string())
            }
            _ => None,
        });
        frames.collect::<String>()
    };
    let event = json!({"status": "compacting", "timestamp": 5});
    let first = told(&mut scene, json!({"status": "busy", "timelineEvent": event}));
    assert_eq!(first.matches("compacting").count(), 1, "{first}");
    // The same status with another event is told; the event stays in no card and rides on nothing.
    let second =
        told(&mut scene, json!({"status": "busy", "timelineEvent": {"status": "compacted"}}));
    assert!(second.contains("compacted") && !second.contains("compacting"), "{second}");
    assert_eq!(scene.card()["meta"]["timelineEvent"], Value::Null);
    let third = told(&mut scene, json!({"status": "blocked"}));
    assert!(third.contains("blocked") && !third.contains("timelineEvent"), "{third}");
}

#[test]
fn only_what_is_gone_is_forgotten_and_nothing_is_queued_for_it_any_more() {
    let mut scene = Scene::new(HubSnapshot::default());
    on_the_bus(&mut scene);
    let named = json!({"ids": ["c", "nobody"]});
    let forget = |scene: &mut Scene, token: &str, body: &Value| {
        scene.bench.call(token, "DELETE", "/api/agents", body.clone())
    };
    // Who is connected, or was a moment ago, is kept; agents forget nobody.
    let (_, answer) = forget(&mut scene, "operator", &named);
    let kept = answer["kept"].to_string();
    assert!(kept.contains("command c shutdown") && kept.contains("no such agent"), "{answer}");
    scene.lose();
    assert!(forget(&mut scene, "operator", &named).1["kept"].to_string().contains("less than"));
    scene.later(OFFLINE_AFTER_LOSS);
    assert_eq!(forget(&mut scene, "a", &named).0, 403);
    assert_eq!(forget(&mut scene, "operator", &json!({})).0, 400);
    let waiting = |scene: &Scene| scene.bench.hub.queues.get("c").map_or(0, |it| it.ids.len());
    let broadcast = json!({"to": "broadcast", "body": "x"});
    scene.call("POST", "/api/messages", broadcast.clone());
    assert_eq!(waiting(&scene), 1);
    let (status, answer) = forget(&mut scene, "operator", &json!({"offline": true}));
    assert_eq!((status, &answer["forgotten"]), (200, &json!(["c"])), "{answer}");
    assert_eq!(scene.bench.call("operator", "GET", "/api/agents/c", json!({})).0, 404);
    scene.call("POST", "/api/messages", broadcast);
    assert_eq!(waiting(&scene), 1, "what waited is kept for a day, and no more comes");
    // It may come back, and gets what waited.
    scene.connect("2");
    assert_eq!(scene.card()["queued"], 1);
}

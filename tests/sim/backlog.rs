//! A runner and its real store with more messages than memory holds, restarted in the middle.

use agent_relay::core::agent::effect::{
    BusCommand, Effect, HeartbeatCommand, ProviderCommand, StoreCommand,
};
use agent_relay::core::commit::Commit;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use agent_relay::core::Machine;
use agent_relay::core::agent::Agent;
use agent_relay::core::agent::event::{BusEvent, Event, ProviderEvent, StoreEvent};
use agent_relay::core::agent::store::{RowKind, StoreOp};
use agent_relay::core::ids::{MessageId, ProcessRef};
use agent_relay::core::limits::{BATCH_MESSAGES_MAX, INBOX_CACHED_MAX};
use agent_relay::core::session::{DeliveryOutcome, OpenMode, Opened, SessionEvent, TurnEnd, Verb};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::edge::store::Store;
use agent_relay::wire::api::Message;
use agent_relay::wire::bus::{ClientFrame, Registered, RelayFrame};
use serde_json::json;

use crate::world::config;

/// A turn of the provider: the numbers of its messages.
type Turn = Vec<u64>;

struct Office {
    agent: Agent,
    store: Store,
    now: Now,
    life: u64,
    /// Effects that are still to be carried out.
    open: VecDeque<Effect>,
    turns: Vec<Turn>,
    /// To whom something was said after each turn.
    told: Vec<BTreeSet<String>>,
    /// Turns are held back, as if the provider worked for long.
    works: bool,
    held: Option<SessionEvent>,
    /// The runner dies once, at this.
    dies: Option<Death>,
}

/// When a runner dies.
#[derive(Debug, PartialEq)]
enum Death {
    /// When it asks its store what is next.
    Asking,
    /// When it has just handed a batch over.
    Delivering,
}

impl Office {
    fn new() -> Office {
        let now = Now { tick: Tick(1_000_000), wall: Wall(1_000_000) };
        let store = Store::in_memory().expect("memory");
        let mut office = Office {
            agent: Agent::new(config(0, 1, now.wall.0), 1),
            store,
            now,
            life: 0,
            open: VecDeque::new(),
            turns: Vec::new(),
            told: Vec::new(),
            works: true,
            held: None,
            dies: None,
        };
        office.restart();
        office
    }

    /// The runner is gone and starts again with what is in its store.
    fn restart(&mut self) {
        self.life += 1;
        self.open.clear();
        self.held = None;
        self.agent = Agent::new(config(0, self.life, self.now.wall.0), self.life);
        let snapshot = self.store.snapshot().expect("memory");
        self.tell(Event::Store(StoreEvent::Restored(Box::new(snapshot))));
        self.run();
    }

    fn tell(&mut self, event: Event) {
        self.now.tick = self.now.tick + Duration::from_millis(1);
        let effects = self.agent.handle(self.now, event);
        self.open.extend(effects);
    }

    fn session_event(&mut self, event: SessionEvent) {
        self.tell(Event::Provider(ProviderEvent::Session(event)));
    }

    fn arrive(&mut self, id: u64, from: &str) {
        let message = Message {
            id: MessageId(id),
            from: from.into(),
            to: "agent0".into(),
            kind: "chat".into(),
            body: format!("m{id}"),
            ..Default::default()
        };
        let data = serde_json::to_value(message).expect("plain data");
        self.tell(Event::Bus(BusEvent::Framed(RelayFrame::Event {
            seq: id,
            event: "message.new".into(),
            data,
            at: 0,
        })));
        self.run();
    }

    /// Until nothing is left to do, or the runner dies.
    fn run(&mut self) {
        while let Some(effect) = self.open.pop_front() {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Store(StoreCommand::Commit(Commit { number, ops })) => {
                for op in &ops {
                    if let (StoreOp::OutboxAppend(row), Some(told)) = (op, self.told.last_mut()) {
                        told.extend(
                            row.payload["to"]
                                .as_str()
                                .filter(|_| row.kind == RowKind::Message)
                                .map(str::to_string),
                        );
                    }
                }
                let dropped = self.store.commit_ops(&ops).expect("memory");
                self.tell(Event::Store(StoreEvent::Committed { upto: number, dropped }));
            }
            Effect::Store(StoreCommand::FetchInbox(choice)) => {
                if self.dies.take_if(|death| *death == Death::Asking).is_some() {
                    return self.restart();
                }
                let (rows, more) = self.store.inbox(&choice).expect("memory");
                assert!(rows.len() <= INBOX_CACHED_MAX);
                self.tell(Event::Store(StoreEvent::InboxRows { rows, more }));
            }
            Effect::Store(StoreCommand::FetchOutbox) => {
                self.tell(Event::Store(StoreEvent::OutboxRows { rows: Ok(Vec::new()) }))
            }
            Effect::Bus(BusCommand::Connect(_)) => self.tell(Event::Bus(BusEvent::Connected)),
            Effect::Bus(BusCommand::Send(text)) => {
                let Ok(ClientFrame::Register { .. }) = ClientFrame::parse(&text) else { return };
                let registered = Registered { epoch: 1, ..Default::default() };
                self.tell(Event::Bus(BusEvent::Framed(RelayFrame::Registered {
                    id: "f".into(),
                    registered,
                })));
            }
            Effect::Heartbeat(HeartbeatCommand::Call { call, path, .. }) => {
                // It does not say which answers are owed: all are given.
                let answer = match path.as_str() {
                    "/api/tokens" => (
                        201,
                        json!({"token": "t", "record": {"jti": "j", "profileId": "provider-agent"}}),
                    ),
                    path if path.ends_with("reply-obligations") => (500, json!({})),
                    _ => (200, json!({"messages": []})),
                };
                self.tell(Event::Called { call, result: Ok(answer) });
            }
            Effect::Provider(command) => self.provider_command(command),
            Effect::Finish(outcome) => panic!("it ends: {outcome:?}"),
            _ => {}
        }
    }

    fn provider_command(&mut self, command: ProviderCommand) {
        match command {
            ProviderCommand::Spawn { .. } => {
                let process = ProcessRef { pid: self.life as u32, start: 1 };
                self.tell(Event::Provider(ProviderEvent::Spawned { process, terminal: None }));
            }
            ProviderCommand::Verb { verb: Verb::Open { resume }, .. } => {
                // What it was given when the runner died had not arrived.
                let how = match resume {
                    Some(resume) => {
                        OpenMode::Loaded(vec![DeliveryOutcome::Unseen; resume.evidence_for.len()])
                    }
                    None => OpenMode::New,
                };
                let opened = Opened {
                    session: "s".into(),
                    how,
                    agent: "demo".into(),
                    model: None,
                    has_evidence: true,
                };
                self.session_event(SessionEvent::Opened(opened));
            }
            ProviderCommand::Verb { verb: Verb::Deliver(delivery), .. } => {
                if self.dies.take_if(|death| *death == Death::Delivering).is_some() {
                    return self.restart();
                }
                let number = |line: &str| {
                    line.strip_prefix("[relay message #")?.split(' ').next()?.parse().ok()
                };
                self.turns.push(delivery.text.lines().filter_map(number).collect());
                self.told.push(BTreeSet::new());
                self.session_event(SessionEvent::Accepted {
                    batch: delivery.batch,
                    key: delivery.key,
                    evidence: "seen".into(),
                });
                let end = SessionEvent::TurnEnded {
                    batch: Some(delivery.batch),
                    end: TurnEnd::Completed,
                    text: delivery.text,
                };
                if self.works {
                    self.held = Some(end);
                } else {
                    self.session_event(end);
                }
            }
            _ => {}
        }
    }

    /// The turn that is under way ends; the next one runs until it is held back again.
    fn end_turn(&mut self) -> bool {
        let Some(end) = self.held.take() else { return false };
        self.session_event(end);
        self.run();
        true
    }
}

/// Every message was delivered once, those of one sender in order, no turn had two senders, and
/// each was answered to its own.
fn all_is_well(office: &Office, senders: &BTreeMap<u64, &str>) {
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut count = 0;
    for (turn, told) in office.turns.iter().zip(&office.told) {
        let of: BTreeSet<&str> = turn.iter().map(|id| senders[id]).collect();
        let [sender] = of.iter().copied().collect::<Vec<_>>().try_into().expect("one sender");
        assert!(
            turn.is_sorted()
                && newest
                    .insert(sender, *turn.last().expect("not empty"))
                    .is_none_or(|last| last < turn[0]),
            "in order"
        );
        assert_eq!(told, &BTreeSet::from([sender.to_string()]));
        count += turn.len();
    }
    assert_eq!(count, senders.len(), "each once");
}

#[test]
fn one_message_is_not_kept_waiting_by_five_thousand_of_another() {
    let mut office = Office::new();
    let mut senders = BTreeMap::new();
    for id in 1..=5000 {
        office.arrive(id, "a");
        senders.insert(id, "a");
    }
    office.arrive(5001, "b");
    senders.insert(5001, "b");
    assert_eq!(office.turns, [vec![1]], "it works on the first one");
    office.dies = Some(Death::Asking);
    office.end_turn();
    assert_eq!(
        (office.life, &office.turns[1..]),
        (2, &[vec![5001]][..]),
        "the other one is next, also after a restart"
    );
    assert!(office.end_turn());
    assert_eq!(office.turns[2].len(), BATCH_MESSAGES_MAX, "then all that fits of the first one");
    // One that comes now is next; a restart in the middle loses and repeats nothing.
    office.arrive(5002, "c");
    senders.insert(5002, "c");
    office.dies = Some(Death::Delivering);
    office.end_turn();
    assert_eq!((office.life, &office.turns[3]), (3, &vec![5002]));
    while office.end_turn() {}
    all_is_well(&office, &senders);
    assert_eq!(office.turns.len(), 3 + 5, "no more turns than needed");
}

#[test]
fn a_thousand_messages_of_twenty_senders_are_twenty_turns_whatever_restarts() {
    const NAMES: [&str; 20] = [
        "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "s12", "s13",
        "s14", "s15", "s16", "s17", "s18", "user",
    ];
    let mut office = Office::new();
    let mut senders = BTreeMap::from([(1, "first")]);
    office.arrive(1, "first");
    for id in 2..=1001 {
        let name = NAMES[id as usize * 7 % 20];
        office.arrive(id, name);
        senders.insert(id, name);
    }
    loop {
        office.dies = (office.turns.len() % 3 == 1).then_some(Death::Delivering);
        if !office.end_turn() {
            break;
        }
    }
    assert!(office.life > 5, "it was restarted in the middle");
    all_is_well(&office, &senders);
    assert_eq!(office.turns.len(), 21);
}

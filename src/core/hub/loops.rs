//! Two agents that answer each other without end: nobody is at work any more but their models.
//!
//! What counts is how often the word changes sides between the same two, within some minutes and
//! without a person or a task in between. Then everything that one of them writes to the other
//! waits before it is delivered, each time twice as long. Nothing is dropped: what waits is as
//! durable as everything else, and a hub that starts anew delivers it at once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::Hub;
use super::event::{AcceptedMessage, After};
use super::rights::ADMIN;
use crate::core::ids::MessageId;
use crate::core::limits::*;
use crate::core::time::Tick;
use crate::wire::api::{MessageKind, NewMessage, TokenRecord, USER};
use crate::wire::control::LogLevel;

/// As whom the hub speaks; no agent can have that name.
const SYSTEM: &str = "system";

/// Two agents, in the order of their names.
type Pair = (String, String);

/// What two agents say to each other.
#[derive(Debug)]
struct Exchange {
    /// Who wrote last.
    speaker: String,
    /// When the word changed sides, oldest first.
    turns: VecDeque<Tick>,
    /// When one of them wrote last.
    last: Tick,
    /// How long the newest message waits; none: no loop was noticed.
    delay: Option<Duration>,
    /// Until when.
    until: Tick,
}

/// All exchanges of late, and what waits.
#[derive(Debug, Default)]
pub(super) struct Loops {
    exchanges: HashMap<Pair, Exchange>,
    /// Until when, which, and for whom.
    held: BTreeSet<(Tick, MessageId, String)>,
}

impl Loops {
    /// Whether a message waits that is for this agent.
    pub(super) fn holds(&self, id: MessageId, recipient: &str) -> bool {
        // There are few, and mostly none.
        self.held.iter().any(|(_, held, whom)| *held == id && whom == recipient)
    }

    /// When the next one need not wait any more.
    pub(super) fn next(&self) -> Option<Tick> {
        self.held.first().map(|(until, ..)| *until)
    }

    /// Forgets pairs that have long been silent.
    pub(super) fn forget_old(&mut self, now: Tick) {
        self.exchanges.retain(|_, exchange| now - exchange.last < LOOP_FORGOTTEN_AFTER);
    }

    /// Somebody else has a word in what this agent does, or there is a task: its exchanges begin
    /// anew, and what waits in them waits no longer.
    fn end_with(&mut self, agent: &str) {
        let mut parties = BTreeSet::from([agent.to_string()]);
        let is_other = |(one, other): &Pair| one != agent && other != agent;
        for (pair, _) in self.exchanges.extract_if(|pair, _| !is_other(pair)) {
            parties.extend([pair.0, pair.1]);
        }
        let freed: Vec<_> =
            self.held.iter().filter(|(.., whom)| parties.contains(whom)).cloned().collect();
        for held in freed {
            self.held.remove(&held);
            self.held.insert((Tick(0), held.1, held.2));
        }
    }

    /// One of a pair writes to the other. How long that waits, and whether the loop was noticed by
    /// it.
    fn take(&mut self, from: &str, to: &str, now: Tick) -> Option<(Tick, bool)> {
        let pair = match from < to {
            true => (from.to_string(), to.to_string()),
            false => (to.to_string(), from.to_string()),
        };
        if self.exchanges.len() >= LOOP_PAIRS_MAX && !self.exchanges.contains_key(&pair) {
            return None;
        }
        let fresh = || Exchange {
            speaker: String::new(),
            turns: VecDeque::new(),
            last: now,
            delay: None,
            until: now,
        };
        let exchange = self.exchanges.entry(pair).or_insert_with(fresh);
        if now - exchange.last >= LOOP_FORGOTTEN_AFTER {
            *exchange = fresh();
        }
        exchange.last = now;
        if exchange.speaker != from {
            exchange.speaker = from.to_string();
            exchange.turns.push_back(now);
            while exchange.turns.len() > LOOP_TURNS {
                exchange.turns.pop_front();
            }
        }
        let first = exchange.turns.front().copied().unwrap_or(now);
        let is_fast = exchange.turns.len() == LOOP_TURNS && now - first < LOOP_WINDOW;
        let (delay, noticed) = match exchange.delay {
            None if !is_fast => return None,
            None => (LOOP_DELAY_FIRST, true),
            Some(delay) => ((delay * 2).min(LOOP_DELAY_MAX), false),
        };
        exchange.delay = Some(delay);
        // In order: none overtakes the one before it.
        exchange.until = exchange.until.max(now + delay);
        Some((exchange.until, noticed))
    }
}

impl Hub {
    /// A message is about to be put into queues: looks whether it belongs to a loop.
    pub(super) fn look_for_loop(&mut self, sent: &AcceptedMessage) {
        let message = &sent.message;
        if matches!(message.kind, MessageKind::System | MessageKind::Session) {
            return;
        }
        let is_agent = |name: &String| self.agents.contains_key(name);
        let between_agents = is_agent(&message.from) && sent.recipients.iter().all(is_agent);
        if !between_agents || message.claimable || message.task_id().is_some() {
            for agent in sent.recipients.iter().filter(|name| *name != USER) {
                self.loops.end_with(agent);
            }
            return;
        }
        let [recipient] = sent.recipients.as_slice() else { return };
        if *recipient == message.from {
            return;
        }
        let (from, to) = (message.from.clone(), recipient.clone());
        let Some((until, noticed)) = self.loops.take(&from, &to, self.now.tick) else { return };
        self.loops.held.insert((until, message.id, to.clone()));
        if noticed {
            self.tell_of_loop(&from, &to);
        }
    }

    /// What has waited long enough is delivered.
    pub(super) fn release_held(&mut self) {
        while let Some((until, _, recipient)) = self.loops.held.first().cloned()
            && until <= self.now.tick
        {
            self.loops.held.pop_first();
            self.deliver(&recipient, None);
        }
    }

    fn tell_of_loop(&mut self, one: &str, other: &str) {
        let minutes = LOOP_WINDOW.as_secs() / 60;
        let text = format!(
            "{one} and {other} have answered each other {LOOP_TURNS} times within {minutes} minutes, without a person or a task. What they \
             write to each other is delivered later from now on, each message twice as late as the one before, at most {} minutes. \
             Nothing is lost.",
            LOOP_DELAY_MAX.as_secs() / 60
        );
        self.log(LogLevel::Warn, text.clone());
        let now = "If nothing is left to be done, do not answer any more.";
        let lift = format!("A message of yours to {one} or {other} ends the delay.");
        for (to, what) in [(one, now), (other, now), (USER, &*lift)] {
            self.notify(to, format!("{text} {what}"));
        }
    }

    /// A notice of the hub itself.
    fn notify(&mut self, to: &str, body: String) {
        let actor = TokenRecord {
            profile_id: "root".into(),
            scopes: vec![ADMIN.into()],
            ..Default::default()
        };
        let notice = NewMessage {
            from: Some(SYSTEM.into()),
            to: to.into(),
            kind: MessageKind::System,
            body,
            reply_expected: Some(false),
            ..Default::default()
        };
        match self.prepare(&actor, notice) {
            Ok(sent) => self.commits.defer(After::Route { sent }),
            Err((_, _, why)) => self.log(LogLevel::Warn, format!("no notice to {to}: {why}")),
        }
    }
}

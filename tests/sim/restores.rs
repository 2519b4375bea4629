//! Copies of the hub's data that are put back in the middle of traffic, in every way that people do
//! it.

use std::collections::BTreeSet;

use agent_relay::core::commit::Commit;
use agent_relay::core::hub::event::HubOp;
use agent_relay::core::hub::generations::{Mark, OrderlyEnd};
use agent_relay::core::ids::{MessageId, TaskId};
use agent_relay::core::rng::Rng;
use agent_relay::hub::store::{Committed, HubStore};
use agent_relay::wire::api::Message;
use serde_json::Value;

use crate::world::World;

/// How an answer begins whose message its relay may no longer have.
const OLD_ANSWER: &str = "[agent-relay] This answers message";

/// What stands beside the hub's store, the copies that were made of it, and what was lost with the
/// data that they replaced.
#[derive(Default)]
pub struct Restores {
    pub mark: Option<Mark>,
    /// It happened at all.
    pub happened: bool,
    /// Chances in percent, per opportunity.
    backup: u64,
    restore: u64,
    left: u64,
    /// Backups: so much of the trace.
    backups: Vec<usize>,
    /// Copies of a stopped hub's file.
    stopped: Vec<usize>,
    /// Messages that were accepted and are not in the data any more: generation and id.
    pub lost: BTreeSet<(String, u64)>,
    /// Answers that were lost: who gave them, to which message.
    pub lost_answers: Vec<(String, u64)>,
}

impl Restores {
    pub fn draw(rng: &mut Rng) -> Restores {
        if !rng.percent(40) {
            return Restores::default();
        }
        Restores {
            backup: 5 + rng.below(20),
            restore: 2 + rng.below(10),
            left: 1 + rng.below(3),
            ..Default::default()
        }
    }
}

/// The messages that an answer hangs on.
pub fn attached_to(message: &Message) -> BTreeSet<u64> {
    let more = message
        .payload
        .get("answers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_u64);
    message.reply_to.map(|id| id.0).into_iter().chain(more).collect()
}

/// The messages that an answer only names, since its relay no longer has them.
pub fn named_in(message: &Message) -> BTreeSet<u64> {
    let mut ids = BTreeSet::new();
    if let Some(rest) = message.body.lines().next().and_then(|line| line.strip_prefix(OLD_ANSWER)) {
        ids.extend(rest.split(',').filter_map(|part| {
            part.trim().strip_prefix('#')?.split(' ').next()?.parse::<u64>().ok()
        }));
    }
    ids
}

/// All that it answers in one way or the other.
pub fn answered_by(message: &Message) -> BTreeSet<u64> {
    attached_to(message).union(&named_in(message)).copied().collect()
}

impl World {
    /// Makes changes of the hub durable as the real store does: the end of a block in the store,
    /// then in the mark, then the rest.
    pub fn hub_persist(&mut self, commits: &[Commit<HubOp>], marked: bool) -> Committed {
        self.hub_trace.extend(commits.iter().map(|commit| commit.ops.clone()));
        let committed = self.hub_store.commit(commits).expect("memory");
        let mark = self.restores.mark.get_or_insert_default();
        for op in commits.iter().flat_map(|commit| &commit.ops) {
            if marked {
                mark.note(op);
            }
        }
        committed
    }

    /// A hub has stopped: somebody may copy its file now.
    pub fn note_stopped_copy(&mut self) {
        if self.restores.backup > 0 && self.rng.percent(50) {
            self.restores.stopped.push(self.hub_trace.len());
        }
    }

    pub fn trouble_with_copies(&mut self) {
        let Restores { backup, restore, left, .. } = self.restores;
        if backup > 0 && self.hub.is_some() && self.rng.percent(backup) {
            self.restores.backups.push(self.hub_trace.len());
        }
        if restore > 0 && left > 0 && self.rng.percent(restore) {
            self.restores.left -= 1;
            self.put_back();
        }
    }

    fn put_back(&mut self) {
        let way = self.rng.below(4);
        let from =
            if way == 0 { self.restores.backups.clone() } else { self.restores.stopped.clone() };
        if from.is_empty() && way != 2 {
            return;
        }
        self.crash_hub();
        self.restores.happened = true;
        // An orderly end notes what was given last.
        if self.rng.percent(50) {
            let (last_message_id, last_task_id) = self.hub_store.highest_ids().expect("memory");
            if let Some(mark) = self.restores.mark.as_mut() {
                mark.orderly_end = Some(OrderlyEnd { last_message_id, last_task_id });
            }
        }
        let first = self.hub_trace[0].clone();
        let kept = match way {
            2 => vec![first],
            _ => self.hub_trace[..from[self.rng.below(from.len() as u64) as usize]].to_vec(),
        };
        let name = [
            "a backup is restored",
            "a copy is put back by hand",
            "the store is emptied",
            "a copy stands beside another mark",
        ][way as usize];
        self.say(format!("{name}: {} of {} commits are left", kept.len(), self.hub_trace.len()));
        let dropped: Vec<HubOp> = self.hub_trace[kept.len()..].iter().flatten().cloned().collect();
        for op in dropped {
            if let HubOp::MessagePut { message, .. } = op {
                self.restores
                    .lost
                    .insert((message.generation.clone().unwrap_or_default(), message.id.0));
                let from = message.from.clone();
                self.restores
                    .lost_answers
                    .extend(answered_by(&message).into_iter().map(|id| (from.clone(), id)));
            }
        }
        let mut store = HubStore::in_memory().expect("memory");
        for ops in &kept {
            store.commit_ops(ops).expect("memory");
        }
        match way {
            0 => store.set_copied().expect("memory"),
            3 => {
                // That machine knows nothing of the ids that were given here since: they may be
                // given again, in another generation.
                let ends = 40 + self.rng.below(60);
                self.restores.mark = Some(Mark {
                    generation: "another".into(),
                    message_block_end: MessageId(ends),
                    task_block_end: TaskId(ends),
                    starts: 1,
                    ..Default::default()
                });
            }
            _ => {}
        }
        self.hub_store = store;
        self.hub_trace = kept;
        self.restores.backups.retain(|at| *at <= self.hub_trace.len());
        self.restores.stopped.retain(|at| *at <= self.hub_trace.len());
    }
}

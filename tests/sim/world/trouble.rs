//! Faults at random moments, and the end of them.

use serde_json::json;

use crate::faults::Faults;

use super::schedule::Action;
use super::senders::Sending;
use super::{World, agent_name};

impl World {
    pub(super) fn heal(&mut self) {
        self.healed = true;
        self.say("everything heals".into());
        self.faults = Faults::none();
        self.partition.clear();
        self.hub_stalled = false;
        for runner in 0..self.runners.len() {
            self.runners[runner].stalled = false;
        }
        let dead: Vec<u64> = self.conns.iter().filter(|(_, c)| c.dead).map(|(n, _)| *n).collect();
        for conn in dead {
            self.cut(conn, true, true);
        }
        // Agents that were given up are asked to try again, as a person would.
        for runner in 0..self.runners.len() {
            let body = json!({"type": "agent.restart", "target": agent_name(runner)});
            self.sendings.push(Sending {
                body: json!({"command": body}),
                task: false,
                id: None,
                generation: String::new(),
            });
        }
    }

    pub(super) fn trouble(&mut self) {
        if self.healed {
            return;
        }
        let next = 200 + self.rng.below(2500);
        self.after_ms(next, Action::Trouble);
        let faults = self.faults.clone();
        self.trouble_with_copies();
        let runner = self.rng.below(self.runners.len() as u64) as usize;
        if self.rng.percent(faults.crash_runner) {
            self.crash_runner(runner);
        }
        if self.rng.percent(faults.crash_hub) {
            self.crash_hub();
        }
        if self.rng.percent(faults.crash_provider) {
            self.crash_provider(runner);
        }
        if self.rng.percent(faults.cut)
            && let Some(conn) = self.runners[runner].conn
        {
            self.cut(conn, true, true);
        }
        if self.rng.percent(faults.half_open) {
            let tick = self.now.tick;
            if let Some(conn) = self.runners[runner].conn.and_then(|n| self.conns.get_mut(&n)) {
                conn.dead = true;
                conn.silent_since = Some(tick);
            }
        }
        if self.rng.percent(faults.stall_disk) {
            let whose = if self.rng.percent(30) { None } else { Some(runner) };
            self.say(format!("disk of {whose:?} fills up"));
            match whose {
                Some(runner) => self.runners[runner].stalled = true,
                None => self.hub_stalled = true,
            }
            let later = 500 + self.rng.below(8000);
            self.after_ms(later, Action::HealDisk { runner: whose });
        }
        if self.rng.percent(faults.partition) {
            self.say(format!("runner {runner} is cut off"));
            self.partition.insert(runner);
            if let Some(conn) = self.runners[runner].conn {
                self.cut(conn, true, true);
            }
            let later = 1000 + self.rng.below(30_000);
            self.after_ms(later, Action::EndPartition);
        }
        if self.rng.percent(faults.jump_clock) {
            let jump = self.rng.below(240_000) as i64 - 120_000;
            self.say(format!("wall clock jumps by {jump} ms"));
            self.now.wall.0 += jump;
        }
    }
}

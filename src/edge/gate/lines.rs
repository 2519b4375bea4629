//! Token lines at the gate: who pays for what comes, how much each has taken, and what it holds
//! (part of the gate, not a thread).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::http::{Greedy, LineClass};
use crate::core::turns::LineId;

/// How a gate knows whose a connection is.
pub enum Identify {
    /// By the hash of the token that a request carries; the state thread tells which are valid.
    ByToken(fn(&str) -> String),
    /// Each connection is on its own: they all have the same token.
    ByConnection,
}

/// Accounts of lines without connections are forgotten after that long, when their buckets are full
/// again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);
/// Accounts are looked through whenever so many more were opened.
const LOOK_EVERY: usize = 1024;
/// The least time that a line waits.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// What may still be taken.
#[derive(Debug)]
struct Bucket {
    left: f64,
    per_second: f64,
    most: f64,
    at: Instant,
}

impl Bucket {
    fn new((per_second, most): (u64, u64), now: Instant) -> Bucket {
        Bucket { left: most as f64, per_second: per_second as f64, most: most as f64, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * self.per_second).min(self.most);
        self.at = now;
    }

    /// How long until something may be taken again.
    fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        if self.left > 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(-self.left / self.per_second).max(PAUSE_MIN)
    }
}

/// One line.
#[derive(Debug)]
struct Account {
    name: Arc<str>,
    class: LineClass,
    /// Valid tokens of it.
    tokens: usize,
    connections: usize,
    peers: usize,
    held: usize,
    bytes: Bucket,
    members: Bucket,
    met: u64,
}

impl Account {
    fn new(name: Arc<str>, class: LineClass) -> Account {
        let (limits, now) = (class.limits(), Instant::now());
        Account {
            name,
            class,
            tokens: 0,
            connections: 0,
            peers: 0,
            held: 0,
            bytes: Bucket::new(limits.bytes_rate, now),
            members: Bucket::new(limits.members_rate, now),
            met: 0,
        }
    }
}

/// All lines.
pub(super) struct Lines {
    identify: Identify,
    tokens: HashMap<String, LineId>,
    names: HashMap<Arc<str>, LineId>,
    accounts: HashMap<LineId, Account>,
    next: u64,
    look_at: usize,
    /// What the gate tells of them.
    pub limited: u64,
    pub greedy: Option<Greedy>,
    pub held_max: usize,
}

impl Lines {
    pub fn new(identify: Identify) -> Lines {
        Lines {
            identify,
            tokens: HashMap::new(),
            names: HashMap::new(),
            accounts: HashMap::new(),
            next: 1,
            look_at: LOOK_EVERY,
            limited: 0,
            greedy: None,
            held_max: 0,
        }
    }

    /// A token is valid from now on.
    pub fn token_known(&mut self, hash: String, name: Arc<str>, class: LineClass) {
        let next = &mut self.next;
        let line = *self.names.entry(name.clone()).or_insert_with(|| {
            *next += 1;
            LineId(*next)
        });
        let account = self.accounts.entry(line).or_insert_with(|| Account::new(name, class));
        if self.tokens.insert(hash, line).is_none() {
            account.tokens += 1;
        }
    }

    /// It is not valid any more. What its line has taken stays on its account for a while.
    pub fn token_gone(&mut self, hash: &str) {
        let Some(line) = self.tokens.remove(hash) else { return };
        if let Some(account) = self.accounts.get_mut(&line) {
            account.tokens -= 1;
            if account.tokens == 0 {
                self.names.remove(&account.name);
            }
        }
    }

    /// Whose a request is. `conn`: number of its connection.
    pub fn line_of(&mut self, token: &str, conn: u64) -> LineId {
        let line = match self.identify {
            Identify::ByToken(hash) if !token.is_empty() && token.len() <= 512 => {
                self.tokens.get(&hash(token)).copied().unwrap_or(LineId::STRANGERS)
            }
            Identify::ByToken(_) => LineId::STRANGERS,
            // Numbers of connections and of lines are never compared.
            Identify::ByConnection => LineId(conn),
        };
        let class = match self.identify {
            Identify::ByToken(_) => LineClass::Stranger,
            Identify::ByConnection => LineClass::Control,
        };
        self.accounts.entry(line).or_insert_with(|| Account::new("".into(), class));
        line
    }

    pub fn class(&self, line: LineId) -> LineClass {
        self.accounts.get(&line).map_or(LineClass::Stranger, |account| account.class)
    }

    /// Takes a place for a connection; the refusal names the limit.
    pub fn connect(&mut self, line: LineId) -> Result<(), String> {
        let Some(account) = self.accounts.get_mut(&line) else { return Ok(()) };
        let most = account.class.limits().connections_max;
        if account.connections >= most && !crate::planted::is("endless-connections") {
            self.note_met(line, "connections");
            return Err(format!("one token and its renewals may have {most} connections"));
        }
        account.connections += 1;
        Ok(())
    }

    pub fn disconnect(&mut self, line: LineId) {
        if let Some(account) = self.accounts.get_mut(&line) {
            account.connections = account.connections.saturating_sub(1);
            if account.class == LineClass::Control {
                self.accounts.remove(&line);
            }
        }
        self.forget_idle();
    }

    /// Takes a place for a connection that stays.
    pub fn add_peer(&mut self, line: LineId) -> Result<(), String> {
        let Some(account) = self.accounts.get_mut(&line) else { return Ok(()) };
        let most = account.class.limits().peers_max;
        if account.peers >= most && !crate::planted::is("endless-peers") {
            self.note_met(line, "peers");
            let text = "connections to the bus and readers of events together";
            return Err(format!("one token and its renewals may have {most} {text}"));
        }
        account.peers += 1;
        Ok(())
    }

    pub fn remove_peer(&mut self, line: LineId) {
        if let Some(account) = self.accounts.get_mut(&line) {
            account.peers = account.peers.saturating_sub(1);
        }
    }

    /// What a line holds has changed; true: it is more than it may.
    pub fn note_held(&mut self, line: LineId, before: usize, after: usize) -> bool {
        let Some(account) = self.accounts.get_mut(&line) else { return false };
        account.held = account.held + after - before;
        if account.class == LineClass::Agent {
            self.held_max = self.held_max.max(account.held);
        }
        after > before
            && account.held > account.class.limits().held_bytes_max
            && !crate::planted::is("endless-holding")
    }

    /// The line that holds most.
    pub fn greediest(&self) -> Option<LineId> {
        self.accounts.iter().max_by_key(|(_, account)| account.held).map(|(line, _)| *line)
    }

    /// Charges what has come.
    pub fn charge(&mut self, line: LineId, bytes: usize, members: usize) {
        let Some(account) = self.accounts.get_mut(&line) else { return };
        account.bytes.left -= bytes as f64;
        account.members.left -= members as f64;
    }

    /// How long a line has to wait until it may send again, and for which limit.
    pub fn wait(&mut self, line: LineId, now: Instant) -> Option<(Duration, &'static str)> {
        if crate::planted::is("endless-rate") {
            return None;
        }
        let account = self.accounts.get_mut(&line)?;
        let (bytes, members) = (account.bytes.wait(now), account.members.wait(now));
        let longest = [(bytes, "bytes"), (members, "values")].into_iter().max()?;
        Some(longest).filter(|(wait, _)| !wait.is_zero())
    }

    /// A line has met a limit.
    pub fn note_met(&mut self, line: LineId, limit: &'static str) {
        self.limited += 1;
        let Some(account) = self.accounts.get_mut(&line) else { return };
        account.met += 1;
        if self.greedy.as_ref().is_none_or(|greedy| account.met >= greedy.met) {
            let name =
                if line == LineId::STRANGERS { "strangers".into() } else { account.name.clone() };
            self.greedy = Some(Greedy { line: name, met: account.met, limit });
        }
    }

    fn forget_idle(&mut self) {
        if self.accounts.len() < self.look_at {
            return;
        }
        let now = Instant::now();
        self.accounts.retain(|_, account| {
            let is_idle = account.connections == 0 && account.tokens == 0 && account.held == 0;
            !is_idle || now.saturating_duration_since(account.bytes.at) < FORGOTTEN_AFTER
        });
        self.look_at = self.accounts.len() + LOOK_EVERY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(lines: &mut Lines, token: &str, line: &str, class: LineClass) -> LineId {
        lines.token_known(format!("#{token}"), line.into(), class);
        lines.line_of(token, 9)
    }

    fn lines() -> Lines {
        Lines::new(Identify::ByToken(|token| format!("#{token}")))
    }

    #[test]
    fn renewals_are_one_line_and_whoever_has_no_token_is_a_stranger() {
        let mut lines = lines();
        let first = known(&mut lines, "a", "line", LineClass::Agent);
        assert_eq!(known(&mut lines, "b", "line", LineClass::Agent), first);
        lines.token_gone("#a");
        assert_eq!(lines.line_of("a", 9), LineId::STRANGERS);
        assert_eq!(lines.line_of("b", 9), first);
        lines.token_gone("#b");
        assert_eq!(lines.line_of("b", 9), LineId::STRANGERS);
        assert_eq!(lines.line_of("", 9), LineId::STRANGERS);
        let mut control = Lines::new(Identify::ByConnection);
        assert_ne!(control.line_of("same", 5), control.line_of("same", 6));
    }

    #[test]
    fn places_are_counted_and_the_line_that_wants_more_is_named() {
        let mut lines = lines();
        let line = known(&mut lines, "a", "line", LineClass::Agent);
        let limits = LineClass::Agent.limits();
        let taken = (0..100).take_while(|_| lines.connect(line).is_ok()).count();
        assert_eq!(taken, limits.connections_max);
        assert!(lines.connect(line).is_err_and(|text| text.contains("64 connections")));
        lines.disconnect(line);
        assert!(lines.connect(line).is_ok());
        assert_eq!((0..100).take_while(|_| lines.add_peer(line).is_ok()).count(), limits.peers_max);
        let greedy = lines.greedy.clone().expect("somebody");
        assert_eq!((&*greedy.line, greedy.met, greedy.limit), ("line", 3, "peers"));
        let people = known(&mut lines, "p", "people", LineClass::People);
        assert_eq!((0..9999).take_while(|_| lines.connect(people).is_ok()).count(), 1024);
        assert!(!lines.note_held(line, 0, limits.held_bytes_max));
        assert!(lines.note_held(line, 0, 1));
        assert_eq!(lines.greediest(), Some(line));
    }

    #[test]
    fn a_line_that_has_taken_too_much_waits_until_that_is_paid() {
        let mut lines = lines();
        let line = known(&mut lines, "a", "line", LineClass::Agent);
        let other = known(&mut lines, "b", "other", LineClass::Agent);
        let now = Instant::now();
        let ((rate, burst), second) =
            (LineClass::Agent.limits().bytes_rate, Duration::from_secs(1));
        assert_eq!(lines.wait(line, now), None);
        lines.charge(line, (burst + rate) as usize, 1);
        let (wait, limit) = lines.wait(line, now).expect("it waits");
        assert!(limit == "bytes" && wait <= second, "{wait:?}");
        assert_eq!(lines.wait(other, now), None);
        assert_eq!(lines.wait(line, now + second * 2), None);
        lines.charge(line, 1, 1_000_000);
        assert!(lines.wait(line, now + second * 2).is_some_and(|(_, limit)| limit == "values"));
    }
}

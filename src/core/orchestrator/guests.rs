//! Terminals for guests: what a runner says about how a person attaches, checked before anything of
//! it is run; and the terminals that are open, each with its end.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::names::clean;
use super::options::is_variable;
use crate::core::limits::{
    ATTACH_ENV_MAX, ATTACH_SPEC_BYTES_MAX, ATTACH_WORDS_MAX, GUEST_LIFE, GUEST_LIFE_MAX,
    GUEST_LIFE_MIN, GUESTS_MAX,
};
use crate::core::time::{Now, Tick};

/// Characters of an agent's id within a guest's name.
const AGENT_CHARS: usize = 48;
/// What stands behind the prefix in the names of guests.
const MARK: &str = "-guest-";

/// How a guest attaches, as far as it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachSpec {
    /// Name of the provider.
    pub provider: String,
    /// Where the command starts.
    pub cwd: String,
    /// Program and arguments, at least one word.
    pub command: Vec<String>,
    /// Variables of the command; never words of a command line, which other users can read.
    pub env: BTreeMap<String, String>,
    /// Variables whose values stand in files that only this user reads.
    pub env_files: BTreeMap<String, String>,
    /// How long the terminal stays open.
    pub lifetime: Duration,
}

impl AttachSpec {
    /// Checks what a runner has answered. `is_within`: whether a folder may be worked in. The error
    /// says what is wrong with it.
    pub fn parse(spec: &Value, is_within: impl Fn(&str) -> bool) -> Result<AttachSpec, String> {
        let wrong = |what: &str| Err(format!("runner attach-spec {what}"));
        let Some(fields) = spec.as_object() else {
            return wrong("response must be an object");
        };
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        if text("mode") != Some("guest") {
            return wrong("mode must be guest");
        }
        let Some(provider) = text("provider").filter(|name| !name.trim().is_empty()) else {
            return wrong("provider required");
        };
        let Some(cwd) = text("cwd").filter(|cwd| !has_nul(cwd) && is_within(cwd)) else {
            return wrong("cwd must be within base directory");
        };
        let Some(command) = fields.get("command").and_then(command) else {
            return wrong("command must be a non-empty string array");
        };
        let Some(env) = variables(fields.get("env")) else {
            return wrong("env must be a string record");
        };
        let Some(env_files) = variables(fields.get("envFiles")) else {
            return wrong("envFiles must be a string record");
        };
        let variables = env.iter().chain(&env_files).flat_map(|(name, value)| [name, value]);
        let words = command.iter().chain(variables);
        let bytes: usize = words.map(|word| word.len() + 1).sum();
        if bytes > ATTACH_SPEC_BYTES_MAX
            || command.len() > ATTACH_WORDS_MAX
            || env.len() + env_files.len() > ATTACH_ENV_MAX
        {
            return wrong("is too large");
        }
        let lifetime = lifetime(fields.get("ttlMs"));
        let (provider, cwd) = (provider.into(), cwd.into());
        Ok(AttachSpec { provider, cwd, command, env, env_files, lifetime })
    }
}

/// No word of a command, path or environment can hold it.
fn has_nul(text: &str) -> bool {
    text.contains('\0')
}

fn command(value: &Value) -> Option<Vec<String>> {
    let word = |value: &Value| {
        let word = value.as_str().filter(|word| !word.is_empty() && !has_nul(word));
        word.map(str::to_string)
    };
    let words: Vec<String> = value.as_array()?.iter().map(word).collect::<Option<_>>()?;
    (!words.is_empty()).then_some(words)
}

/// The variables whose names a shell takes; the others are left out. `None`: it is no record of
/// texts.
fn variables(value: Option<&Value>) -> Option<BTreeMap<String, String>> {
    let Some(value) = value else { return Some(BTreeMap::new()) };
    let mut all = BTreeMap::new();
    for (name, value) in value.as_object()? {
        let value = value.as_str()?;
        if is_variable(name) && !has_nul(value) {
            all.insert(name.clone(), value.to_string());
        }
    }
    Some(all)
}

fn lifetime(ms: Option<&Value>) -> Duration {
    let asked = ms.and_then(Value::as_f64).filter(|ms| ms.is_finite());
    let asked = asked.map(|ms| Duration::from_millis(ms.clamp(0.0, 1e12) as u64));
    asked.unwrap_or(GUEST_LIFE).clamp(GUEST_LIFE_MIN, GUEST_LIFE_MAX)
}

/// The name of a guest's terminal; `random`: eight hex digits.
pub fn guest_name(prefix: &str, provider: &str, agent_id: &str, random: &str) -> String {
    let part = |text: String, other: &str| if text.is_empty() { other.into() } else { text };
    let provider = part(clean(provider), "provider");
    let agent = part(clean(agent_id).chars().take(AGENT_CHARS).collect(), "agent");
    format!("{prefix}{MARK}{provider}-{agent}-{random}")
}

/// Whether this is the name of a guest's terminal.
pub fn is_guest(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(MARK))
}

/// What a guest is told when asked for something that only guests have.
pub const NO_GUEST: &str = "terminal session is not a guest session";

/// What a guest is told where so many are there that no more are opened.
pub fn no_room() -> String {
    format!("{GUESTS_MAX} guest terminals are open; stop one of them first")
}

/// The terminals of guests that are open. They live as long as the orchestrator: each ends at its
/// time, whether or not another one is asked for.
#[derive(Debug, Default)]
pub struct Guests {
    /// When each ends, and the socket of its server.
    open: BTreeMap<String, (Tick, String)>,
}

impl Guests {
    /// Notes a terminal that was opened; what its guest is answered.
    pub fn opened(&mut self, now: Now, name: &str, spec: &AttachSpec, socket: String) -> Value {
        self.open.insert(name.into(), (now.tick + spec.lifetime, socket));
        json!({
            "session": name, "mode": "guest", "provider": spec.provider, "running": true,
            "interactive": true, "expiresAt": now.wall.0 + spec.lifetime.as_millis() as i64,
        })
    }

    /// Forgets one; whether it was open.
    pub fn closed(&mut self, name: &str) -> bool {
        self.open.remove(name).is_some()
    }

    /// The socket of its server; none: it is not open.
    pub fn socket(&self, name: &str) -> Option<&str> {
        self.open.get(name).map(|(_, socket)| socket.as_str())
    }

    /// Takes out those whose time is over: they are to be ended.
    pub fn expired(&mut self, now: Tick) -> Vec<String> {
        let over = self.open.iter().filter(|(_, (end, _))| *end <= now);
        let names: Vec<String> = over.map(|(name, _)| name.clone()).collect();
        self.open.retain(|_, (end, _)| *end > now);
        names
    }

    /// When the next one ends.
    pub fn next_deadline(&self) -> Option<Tick> {
        let end = self.open.values().map(|(end, _)| *end).min();
        end.filter(|_| !crate::planted::is("late-guests"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::time::Wall;

    fn spec() -> Value {
        json!({
            "mode": "guest", "provider": "demo", "cwd": "/base/work", "command": ["tmux", "attach"],
            "env": {"TERM": "xterm", "1BAD": "x", "BAD-NAME": "x", "": "x", "_ok1": ""},
            "envFiles": {"SECRET": "/f"}, "title": "agent", "ttlMs": 120_000,
        })
    }

    fn parse(spec: &Value) -> Result<AttachSpec, String> {
        AttachSpec::parse(spec, |cwd| cwd.starts_with("/base"))
    }

    #[test]
    fn a_spec_is_what_remains_of_it_after_the_checks() {
        let parsed = parse(&spec()).expect("it is fine");
        assert_eq!(parsed.command, ["tmux", "attach"]);
        let env: Vec<&String> = parsed.env.keys().collect();
        assert_eq!(env, ["TERM", "_ok1"], "names that a shell does not take are left out");
        assert_eq!(parsed.env_files["SECRET"], "/f");
        assert_eq!(parsed.lifetime, Duration::from_secs(120));
        let mut bare = spec();
        bare.as_object_mut().expect("a record").remove("env");
        assert!(parse(&bare).expect("it is fine").env.is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_spec_is_said_in_this_order() {
        let mut wrong = vec![(json!([]), "response must be an object")];
        let mut broken = json!({"mode": "host", "env": 5});
        let steps = [
            ("mode", json!("guest"), "mode must be guest"),
            ("provider", json!("  "), "provider required"),
            ("provider", json!("demo"), "provider required"),
            ("cwd", json!("/elsewhere"), "cwd must be within base directory"),
            ("cwd", json!("/base/\0"), "cwd must be within base directory"),
            ("cwd", json!("/base"), "cwd must be within base directory"),
            ("command", json!("tmux"), "command must be a non-empty string array"),
            ("command", json!([]), "command must be a non-empty string array"),
            ("command", json!(["tmux", ""]), "command must be a non-empty string array"),
            ("command", json!(["tmux", 5]), "command must be a non-empty string array"),
            ("command", json!(["a\0b"]), "command must be a non-empty string array"),
            ("command", json!(["tmux"]), "command must be a non-empty string array"),
            ("env", json!({"A": 5}), "env must be a string record"),
            ("env", json!(null), "env must be a string record"),
            ("env", json!({"A": "x".repeat(ATTACH_SPEC_BYTES_MAX)}), "env must be a string record"),
            ("env", json!({}), "is too large"),
            ("envFiles", json!(["/f"]), ""),
            ("envFiles", json!({"A": "/f"}), "envFiles must be a string record"),
            ("command", json!(vec!["x"; ATTACH_WORDS_MAX + 1]), ""),
            ("command", json!(["x"]), "is too large"),
        ];
        // Each row mends what the row before complained of.
        for (field, value, complaint) in steps {
            wrong.push((broken.clone(), complaint));
            broken[field] = value;
        }
        for (spec, complaint) in wrong {
            let error = parse(&spec).map(|_| ()).err().unwrap_or_default();
            let want = format!("runner attach-spec {complaint}");
            assert_eq!(error, if complaint.is_empty() { "" } else { &want }, "{spec}");
        }
        assert!(parse(&broken).is_ok());
    }

    #[test]
    fn a_life_has_bounds_whatever_is_asked() {
        for (asked, seconds) in [
            (json!(null), 3600),
            (json!("soon"), 3600),
            (json!(0), 60),
            (json!(-1e300), 60),
            (json!(1e300), 14_400),
            (json!(61_000), 61),
        ] {
            let mut spec = spec();
            spec["ttlMs"] = asked.clone();
            let lifetime = parse(&spec).expect("it is fine").lifetime;
            assert_eq!(lifetime, Duration::from_secs(seconds), "{asked}");
        }
    }

    #[test]
    fn guests_have_names_of_their_own() {
        let long = "a/".repeat(60);
        for (provider, agent, want) in [
            ("Demo", "Me@Host", "ar-guest-demo-me-host-0a1b2c3d"),
            ("", "", "ar-guest-provider-agent-0a1b2c3d"),
            ("p", long.as_str(), &format!("ar-guest-p-{}-0a1b2c3d", "a-".repeat(24))),
        ] {
            let name = guest_name("ar", provider, agent, "0a1b2c3d");
            assert_eq!(name, want);
            assert!(is_guest("ar", &name) && !is_guest("x", &name));
        }
        assert!(!is_guest("ar", "ar-p-guest-x"));
    }

    #[test]
    fn guests_end_in_time() {
        let spec = parse(&spec()).expect("it is fine");
        let at = |s: u64| Now { tick: Tick(s * 1_000_000), wall: Wall(s as i64 * 1000 - 50_000) };
        let mut guests = Guests::default();
        assert_eq!(guests.next_deadline(), None);
        let answer = guests.opened(at(10), "one", &spec, "/g/1".into());
        assert_eq!(answer["expiresAt"], json!(80_000), "by the clock of people");
        guests.opened(at(20), "two", &spec, "/g/2".into());
        assert_eq!(guests.next_deadline(), Some(at(130).tick));
        assert_eq!(guests.expired(at(129).tick), [""; 0]);
        assert_eq!(guests.expired(at(130).tick), ["one"]);
        assert_eq!((guests.socket("one"), guests.socket("two")), (None, Some("/g/2")));
        assert!(guests.closed("two") && !guests.closed("two"));
        assert_eq!(guests.next_deadline(), None);
    }
}

//! The relay's tools in the hands of real programs: each starts them itself, and its model calls
//! them.

use serde_json::{Value, json};

use super::claude::{Hooks, Session as Claude};
use super::codex::Session as Codex;
use super::support::{Machine, Running, wait_for};
use super::{Agent, LONG};

/// A program with its relay.
trait Caller {
    fn machine(&self) -> &Machine;
    fn hub(&mut self) -> &mut Option<Running>;
    /// What the model was told by tools, all of it.
    fn told(&self) -> String;
}

impl Caller for Claude {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn hub(&mut self) -> &mut Option<Running> {
        &mut self.hub
    }

    fn told(&self) -> String {
        self.model.asked().last().map(|asked| asked.body.to_string()).unwrap_or_default()
    }
}

impl Caller for Codex {
    fn machine(&self) -> &Machine {
        super::long::Subject::machine(self)
    }

    fn hub(&mut self) -> &mut Option<Running> {
        super::long::Subject::hub(self)
    }

    fn told(&self) -> String {
        Codex::outputs(self)
    }
}

impl Caller for Agent {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn hub(&mut self) -> &mut Option<Running> {
        &mut self.hub
    }

    fn told(&self) -> String {
        self.model.asked().last().map(|asked| asked.body.to_string()).unwrap_or_default()
    }
}

/// All mail of the user.
fn mail(machine: &Machine) -> Vec<Value> {
    let text = machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn count(machine: &Machine, body: &str) -> usize {
    mail(machine).iter().filter(|message| message["body"] == body).count()
}

#[track_caller]
fn waits(caller: &impl Caller, what: &str, look: impl FnMut() -> Option<()>) {
    let found =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(what, LONG, look)));
    if found.is_err() {
        let machine = caller.machine();
        let (told, status) = (caller.told(), machine.status("a"));
        panic!("{what} does not come: {status}\n{told}\n{:#?}\n{}", mail(machine), machine.logs());
    }
}

fn say(to: &str, body: &str) -> String {
    format!("CALL relay_send_message {}", json!({"to": to, "body": body}))
}

/// Tools are called, without a person, while the relay is there and while it is away; what they say
/// arrives once each.
fn calls(name: &str, caller: &mut impl Caller) {
    let arrives = |caller: &_, body: &str| {
        waits(caller, body, || (count(Caller::machine(caller), body) > 0).then_some(()));
    };
    caller.machine().send("a", &format!("one {}", say("user", "by-a-tool")));
    arrives(caller, "by-a-tool");
    let input = json!({"messageId": "SELF", "body": "answered-by-a-tool"});
    let asked = caller.machine().send("a", &format!("two CALL relay_reply {input}"));
    arrives(caller, "answered-by-a-tool");
    caller.machine().wait_status("a", "idle");
    let all = mail(caller.machine());
    let answers: Vec<&Value> = all.iter().filter(|message| message["replyTo"] == asked).collect();
    assert_eq!(answers.len(), 1, "{name}: the runner adds none: {answers:#?}");
    assert_eq!(answers[0]["body"], "answered-by-a-tool");

    // The second waits at the runner while the first is at work and the relay goes away.
    let slow = caller.machine().send("a", "SLOW three");
    caller.machine().wait_status("a", "busy");
    let away = caller.machine().send("a", &format!("four {}", say("user", "while-away")));
    wait_for("the message at the runner", LONG, || {
        (caller.machine().status("a")["queues"]["inboxWaiting"] == 1).then_some(())
    });
    *caller.hub() = None;
    waits(caller, "a queued call", || {
        caller.told().contains("Queued: the relay is away").then_some(())
    });
    let hub = caller.machine().hub();
    *caller.hub() = Some(hub);
    arrives(caller, "while-away");
    for id in [slow, away] {
        waits(caller, "an answer", || {
            let all = mail(caller.machine());
            all.iter().any(|message| message["replyTo"] == id).then_some(())
        });
    }
    let open = caller.machine().ok(&["approvals", "--json"]);
    assert_eq!(open.trim(), "", "{name}: nobody is asked");
    let counts =
        ["by-a-tool", "answered-by-a-tool", "while-away"].map(|body| count(caller.machine(), body));
    println!("interop: {name}: calls arrived {counts:?} times, 0 failed");
    assert_eq!(counts, [1, 1, 1], "{name}");
}

#[test]
#[ignore = "make interop runs it"]
fn claude_calls_the_relays_tools() {
    for transport in ["stream", "tmux"] {
        let mut session = Claude::start(transport, Hooks::All, json!({}));
        calls(&format!("claude {transport}"), &mut session);
        session.end();
    }
}

#[test]
#[ignore = "make interop runs it"]
fn codex_calls_the_relays_tools() {
    for approval in ["guarded", "read-only", "open"] {
        let mut session = Codex::start("codex-tools", approval);
        calls(&format!("codex {approval}"), &mut session);
    }
}

#[test]
#[ignore = "make interop runs it"]
fn acp_agents_call_the_relays_tools() {
    for preset in ["opencode", "claude-agent"] {
        let mut agent = Agent::start(preset);
        calls(preset, &mut agent);
    }
}

//! The relay's tools on standard streams, as the program of an agent calls them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};

use super::*;

/// A server of tools inside a session, with its client's end.
struct Tools {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    ids: u64,
}

impl Tools {
    fn of(session: &Session) -> Tools {
        let mut command = session.command(&["mcp"]);
        // Whatever bears it is ended with its runner; this one is to see the next.
        command.env_remove("AGENT_RELAY_PROVIDER_SESSION_ID");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Tools { child, input, output, ids: 0 }
    }

    fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("it reads");
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).expect("one frame on a line")
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.ids += 1;
        let frame = json!({"jsonrpc": "2.0", "id": self.ids, "method": method, "params": params});
        self.say(&frame.to_string());
        let answer = self.read();
        assert_eq!(answer["id"], self.ids, "{answer}");
        answer
    }

    /// What a tool says; false: it has failed.
    fn call(&mut self, name: &str, arguments: Value) -> (bool, String) {
        let answer = self.ask("tools/call", json!({"name": name, "arguments": arguments}));
        let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_default();
        (answer["result"]["isError"] == false, text.to_string())
    }

    #[track_caller]
    fn ok(&mut self, name: &str, arguments: Value, begin: &str) {
        let (done, text) = self.call(name, arguments);
        assert!(done && text.starts_with(begin), "{name}: {text}");
    }

    #[track_caller]
    fn fails(&mut self, name: &str, arguments: Value, part: &str) {
        let (done, text) = self.call(name, arguments);
        assert!(!done && text.contains(part), "{name}: {text}");
    }

    fn names(&mut self) -> usize {
        self.ask("tools/list", json!({}))["result"]["tools"].as_array().map_or(0, Vec::len)
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn to_user(body: &str) -> Value {
    json!({"to": "user", "body": body})
}

#[test]
fn tools_on_streams_outlive_relay_and_runner_and_say_everything_once() {
    let machine = Machine::new("mcp-away");
    let mut hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    let mut tools = Tools::of(&session);
    let opened = tools.ask("initialize", json!({"protocolVersion": "2025-06-18"}));
    assert_eq!(opened["result"]["protocolVersion"], "2025-06-18");
    tools.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    // An agent's rights.
    assert_eq!(tools.names(), 8);
    tools.ok("relay_whoami", json!({}), "You are a: ");
    tools.ok("relay_send_message", to_user("one"), "Sent as message #");
    tools.fails("relay_send_message", json!({"to": "nobody", "body": "x"}), "relay_find_agents");

    hub.kill();
    tools.ok("relay_send_message", to_user("two"), "Queued: the relay is away");
    tools.fails("relay_find_agents", json!({}), "the relay cannot take it now");
    assert_eq!(tools.names(), 8, "those that were told last");
    let hub_again = machine.hub();
    wait_mail(&machine, "two");
    tools.ok("relay_send_message", to_user("three"), "Sent as message #");

    // Its runner goes too, and comes back at another port with another token.
    runner.kill();
    tools.ok("relay_send_message", to_user("four"), "Sent as message #");
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    drop(hub_again);
    tools.ok("relay_send_message", to_user("five"), "Queued: the relay is away");
    let _hub = machine.hub();
    wait_mail(&machine, "five");
    let words = ["one", "two", "three", "four", "five"];
    let all: Vec<Value> = mail(&machine);
    for word in words {
        let found = all.iter().filter(|message| message["body"] == word);
        assert_eq!(found.count(), 1, "{word}: {all:?}");
    }
    // It ends with its input.
    tools.input = None;
    assert_eq!(tools.child.wait().expect("ends").code(), Some(0));
}

#[test]
fn an_answer_by_a_tool_is_the_answer() {
    let machine = Machine::new("mcp-reply");
    let mut hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    let mut tools = Tools::of(&session);
    let slow = machine.send("a", "slow 6");
    wait_for("the turn", 60, || machine.delivered().contains_key(&slow).then_some(()));
    tools.ok("relay_get_message", json!({"messageId": slow}), "To a\n[relay message #");
    tools.ok("relay_reply", json!({"messageId": slow, "body": "at once"}), "Sent as message #");
    let answer = wait_mail(&machine, "at once");
    assert_eq!((answer["replyTo"].as_u64(), answer["from"].as_str()), (Some(slow), Some("a")));
    wait_for("the end of the turn", 60, || (machine.status("a")["status"] == "idle").then_some(()));

    let next = machine.send("a", "slow 12");
    wait_for("the turn", 60, || machine.delivered().contains_key(&next).then_some(()));
    hub.kill();
    let arguments = json!({"messageId": next.to_string(), "body": "meanwhile"});
    tools.ok("relay_reply", arguments, "Queued: ");
    tools.ok("relay_react", json!({"messageId": next, "emoji": "ok"}), "Queued: ");
    tools.fails(
        "relay_reply",
        json!({"messageId": 999, "body": "x"}),
        "the relay cannot take it now",
    );
    wait_for("the end of the turn", 60, || (machine.status("a")["status"] == "idle").then_some(()));
    let _hub = machine.hub();
    wait_mail(&machine, "meanwhile");
    let last = machine.send("a", "hello");
    machine.settle(&[last], 60);
    let answered = machine.answered();
    assert_eq!((answered.get(&slow), answered.get(&next)), (Some(&1), Some(&1)), "{answered:?}");
}

#[test]
fn foreign_frames_do_not_end_the_tools() {
    let machine = Machine::new("mcp-frames");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    let mut tools = Tools::of(&session);
    for (line, code) in [("{", -32700), ("[]", -32600), (r#"{"id":1}"#, -32600)] {
        tools.say(line);
        assert_eq!(tools.read()["error"]["code"], code, "{line}");
    }
    // Longer than a frame may be, and nothing at all.
    tools.say(&format!("{{\"id\":1,\"method\":\"{}\"}}", "x".repeat(3 << 20)));
    assert!(tools.read()["error"].is_object());
    tools.say("");
    assert_eq!(tools.ask("subscriptions/listen", json!({}))["error"]["code"], -32601);
    // Many at once are all answered, each under its id.
    for id in 100..140 {
        let params = json!({"name": "relay_whoami", "arguments": {}});
        let frame = json!({"id": id, "method": "tools/call", "params": params});
        tools.say(&frame.to_string());
    }
    let mut ids: Vec<u64> = (0..40).filter_map(|_| tools.read()["id"].as_u64()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (100..140).collect::<Vec<u64>>());
}

//! What others have written or damaged: files of editors, foreign bytes in a pipe, an agent that
//! cuts characters in half.

use std::io::Write;
use std::process::{Output, Stdio};

use crate::support::{BIN, Machine, wait_for};

fn piped(machine: &Machine, arguments: &[&str], bytes: &[u8]) -> Output {
    let mut command = machine.command(BIN);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    // A program that has read enough closes its end.
    let _ = child.stdin.take().expect("piped").write_all(bytes);
    child.wait_with_output().expect("ends")
}

#[test]
fn foreign_bytes_in_a_pipe_are_replaced_and_told() {
    let machine = Machine::new("foreign");
    let _hub = machine.hub();
    let path = machine.home.join("config.json");
    let config = std::fs::read_to_string(&path).expect("reads");
    std::fs::write(&path, format!("\u{feff}{config}")).expect("writes");
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let send = ["send", "a", "--stdin", "--wait", "60"];
    let sent = piped(&machine, &send, b"\xef\xbb\xbfsay caf\xe9 \xff!\n");
    let (out, error) =
        (String::from_utf8_lossy(&sent.stdout), String::from_utf8_lossy(&sent.stderr));
    assert!(sent.status.success(), "{error}");
    assert!(out.contains("caf\u{fffd} \u{fffd}!"), "{out}");
    assert!(error.contains("2 bytes of standard input are no UTF-8 text"), "{error}");
    // The last character lies on the limit: that is too long, and not another kind of text.
    let long = "ä".repeat(1 << 19) + "ä";
    let sent = piped(&machine, &send, long.as_bytes());
    let error = String::from_utf8_lossy(&sent.stderr);
    assert_eq!(sent.status.code(), Some(2), "{error}");
    assert!(error.contains("longer than") && error.lines().count() == 1, "{error}");
}

/// Says half a character, asks with one, and ends its turn with one.
const AGENT: &str = r#"
while read -r line; do
  case $line in
  *'"method":"initialize"'*) echo '{"id":0,"result":{"protocolVersion":1}}' ;;
  *'"method":"session/new"'*) echo '{"id":1,"result":{"sessionId":"s"}}' ;;
  *'"method":"session/prompt"'*)
    printf '%s\n' '{"method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"half \ud83d and done"}}}}'
    printf '%s\n' '{"id":77,"method":"session/request_permission","params":{"sessionId":"s","toolCall":{"toolCallId":"t","title":"echo \ud83d\u2026"},"options":[{"optionId":"y","name":"Allow","kind":"allow_once"},{"optionId":"n","name":"No","kind":"reject_once"}]}}' ;;
  *'"id":77'*) printf '%s\n' '{"id":2,"result":{"stopReason":"end_turn","_meta":{"title":"cut \ud83d"}}}' ;;
  esac
done
"#;

#[test]
fn an_agent_that_cuts_characters_in_half_is_heard_asked_and_answered() {
    let machine = Machine::new("halves");
    let _hub = machine.hub();
    let script = machine.home.join("agent.sh");
    std::fs::write(&script, AGENT).expect("writes");
    let script = script.to_string_lossy().into_owned();
    let _runner = machine.start(&["run", "acp", "--agent-id", "a", "--", "/bin/sh", &script]);
    machine.wait_status("a", "idle");
    machine.ok(&["send", "a", "go"]);
    let asked = wait_for("the question", 60, || {
        let asked = machine.ok(&["approvals"]);
        asked.contains("unreadable in part: echo").then_some(asked)
    });
    let approval = asked.split_whitespace().find(|word| word.starts_with("1-")).expect("its id");
    machine.ok(&["approvals", "approve", approval.trim_matches([':', ',', '(', ')'])]);
    machine.wait_status("a", "idle");
    wait_for("the answer", 60, || {
        machine.ok(&["inbox", "--all"]).contains("half \u{fffd} and done").then_some(())
    });
}

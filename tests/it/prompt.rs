//! The first prompt: delivered once per start that asks for it, judged by the demo agent's own log.

use serde_json::Value;

use crate::support::{BIN, Machine, Running, skip, wait_for};

/// How often the agent got exactly this text.
fn times(machine: &Machine, prompt: &str) -> usize {
    let log = std::fs::read_to_string(machine.home.join("demo/log.jsonl")).unwrap_or_default();
    let texts = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    texts.filter(|entry| entry["text"].as_str().is_some_and(|text| text.trim() == prompt)).count()
}

fn start(machine: &Machine, prompt: &str, more: &[&str]) -> Running {
    let options: Vec<&str> = ["--prompt", prompt].iter().chain(more).copied().collect();
    machine.runner_with("a", &options, &[])
}

/// The runner has said how the prompt stands and has nothing more to do for it.
fn decided(machine: &Machine) -> Value {
    wait_for("the prompt to be decided and over", 60, || {
        let truth = machine.status("a");
        (truth["prompt"]["state"] == "delivered" && truth["status"] == "idle")
            .then(|| truth["prompt"].clone())
    })
}

/// Ends it in order; what it said.
fn stop(mut runner: Running) -> String {
    runner.terminate();
    let (code, said) = runner.wait(60);
    assert_eq!(code, 0, "{said}");
    said
}

/// The store as a version wrote it that noted nothing but one word.
fn as_an_older_version_left_it(machine: &Machine) {
    let db = rusqlite::Connection::open(machine.home.join("agents/a/store.sqlite")).expect("opens");
    let gone = db
        .execute("DELETE FROM notes WHERE key IN ('promptStarts', 'lastEnd')", [])
        .expect("deletes");
    assert_eq!(gone, 2, "both notes were there");
}

/// A unit, a container, a script: the same text is not repeated, a changed one is new, and the
/// start says so.
#[test]
fn a_unit_repeats_nothing_but_a_changed_text() {
    let machine = Machine::new("prompt-unit");
    let _hub = machine.hub();
    let runner = start(&machine, "hello one", &[]);
    decided(&machine);
    assert_eq!(times(&machine, "hello one"), 1);
    let said = stop(runner);
    assert!(!said.contains("was delivered"), "{said}");

    let runner = start(&machine, "hello one", &[]);
    let told = decided(&machine);
    let sentence = told["decision"].as_str().expect("a sentence").to_string();
    assert!(
        sentence.starts_with("the prompt was delivered on 20")
            && sentence.contains("--prompt-again repeats it"),
        "{sentence}"
    );
    assert!(machine.ok(&["status", "a", "--why"]).contains(&sentence));
    assert!(machine.logs().contains("first prompt: the prompt was delivered on"));
    assert!(stop(runner).contains(&sentence), "the start says it too");
    assert_eq!(times(&machine, "hello one"), 1);

    let runner = start(&machine, "hello two", &[]);
    decided(&machine);
    stop(runner);
    assert_eq!((times(&machine, "hello one"), times(&machine, "hello two")), (1, 1));

    let runner = start(&machine, "hello one", &["--prompt-again"]);
    decided(&machine);
    stop(runner);
    assert_eq!((times(&machine, "hello one"), times(&machine, "hello two")), (2, 1));
    let text = machine.fails(2, &["run", "acp", "--prompt-again", "--", BIN, "demo-agent"]);
    assert!(text.contains("--prompt TEXT"), "{text}");
}

/// Killed in the middle of its turn: the record of the conversation decides, and the text is not
/// said a second time.
#[test]
fn a_killed_runner_goes_on_with_its_prompt() {
    let machine = Machine::new("prompt-killed");
    let _hub = machine.hub();
    let mut runner = start(&machine, "hang", &[]);
    wait_for("the agent to have the prompt", 60, || {
        (times(&machine, "hang") == 1 && machine.status("a")["status"] == "busy").then_some(())
    });
    runner.kill();
    let runner = start(&machine, "hang", &[]);
    decided(&machine);
    stop(runner);
    assert_eq!(times(&machine, "hang"), 1);
    let log = std::fs::read_to_string(machine.home.join("demo/log.jsonl")).expect("a log");
    assert!(log.contains("while you worked on your first prompt"), "{log}");
}

/// An orchestrator keeps its request's id through recovery and restart: it never repeats the
/// prompt; a new one does.
#[test]
fn a_request_of_an_orchestrator_is_one_prompt() {
    let mut machine = Machine::new("prompt-request");
    let _hub = machine.hub();
    for (request, prompt, want) in
        [("r1", "hello", 1), ("r1", "hello", 1), ("r2", "hello", 2), ("r1", "hello", 2)]
    {
        machine.set("AGENT_RELAY_SPAWN_REQUEST_ID", request);
        let runner = start(&machine, prompt, &[]);
        decided(&machine);
        stop(runner);
        assert_eq!(times(&machine, prompt), want, "after the start for {request}");
    }
}

/// A person at a terminal: every start after an orderly end is a wish of its own.
#[test]
fn a_person_is_heard_at_every_start() {
    let has_tool = std::process::Command::new("script")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !has_tool {
        return skip("script is missing; install it with: sudo apt-get install bsdutils");
    }
    let machine = Machine::new("prompt-person");
    let _hub = machine.hub();
    let state = machine.home.join("demo").to_string_lossy().into_owned();
    // `script` gives the runner a terminal as all three streams.
    let at_terminal = || {
        let line = format!(
            "exec {BIN} run acp --agent-id a --approval open --prompt hello -- {BIN} demo-agent --state {state}"
        );
        let mut command = machine.command("script");
        command.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh");
        let pipes = (std::process::Stdio::piped(), std::process::Stdio::piped());
        Running { child: command.stdin(pipes.0).stdout(pipes.1).spawn().expect("starts") }
    };
    let pid_of_runner = || {
        let info: Value = serde_json::from_str(
            &std::fs::read_to_string(machine.home.join("agents/a/runner.json")).ok()?,
        )
        .ok()?;
        info["pid"].as_u64().map(|pid| pid as u32)
    };
    let end = |signal: rustix::process::Signal| {
        let pid = wait_for("the runner's pid", 60, pid_of_runner);
        let process = agent_relay::os::process(pid);
        agent_relay::os::kill(process, signal);
        wait_for("the runner's end", 60, || (!agent_relay::os::is_alive(process)).then_some(()));
    };
    for want in 1..=2 {
        let terminal = at_terminal();
        wait_for("the prompt", 60, || (times(&machine, "hello") == want).then_some(()));
        decided(&machine);
        end(rustix::process::Signal::TERM);
        drop(terminal);
    }
    // After a kill the evidence counts: it was delivered.
    let terminal = at_terminal();
    wait_for("the prompt", 60, || (times(&machine, "hello") == 3).then_some(()));
    decided(&machine);
    end(rustix::process::Signal::KILL);
    drop(terminal);
    let terminal = at_terminal();
    // The kill may have come before the note that it was delivered: then the record says so.
    let words = ["was delivered", "the record of the conversation decides"];
    let told = wait_for("the next runner", 60, || {
        let status = machine.status("a");
        let decision = status["prompt"]["decision"].as_str().unwrap_or_default().to_string();
        let is_told = words.iter().any(|word| decision.contains(word));
        (is_told && status["prompt"]["state"] == "delivered" && status["status"] == "idle")
            .then_some(decision)
    });
    assert_eq!(times(&machine, "hello"), 3, "{told}");
    end(rustix::process::Signal::TERM);
    drop(terminal);
}

/// An update repeats no prompt of a unit; from then on a changed text is new.
#[test]
fn an_update_repeats_no_prompt() {
    let machine = Machine::new("prompt-update");
    let _hub = machine.hub();
    let runner = start(&machine, "hello one", &[]);
    decided(&machine);
    stop(runner);
    as_an_older_version_left_it(&machine);
    for (prompt, one, two) in [("hello one", 1, 0), ("hello one", 1, 0), ("hello two", 1, 1)] {
        let runner = start(&machine, prompt, &[]);
        decided(&machine);
        stop(runner);
        assert_eq!(
            (times(&machine, "hello one"), times(&machine, "hello two")),
            (one, two),
            "after a start with {prompt:?}"
        );
    }
}

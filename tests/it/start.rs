//! Starts: what the system refuses, in any order with the hub, on a fresh home.

use std::process::{Output, Stdio};

use agent_relay::core::rng::Rng;

use crate::support::{BIN, Machine, own_port, wait_for};

/// Runs the program behind a line of shell that takes something away from it.
fn deprived(machine: &Machine, before: &str, arguments: &[&str]) -> Output {
    let line = format!("{before}; exec \"$0\" \"$@\"");
    machine
        .command("/bin/sh")
        .args(["-c", &line, BIN])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

/// One sentence and 71.
#[track_caller]
fn refused_by_the_system(output: &Output, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
    assert_eq!(output.status.code(), Some(71), "{what}: {text}");
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("agent-relay: ")).collect();
    assert_eq!(said.len(), 1, "{what}: one sentence: {text}");
}

fn runner(agent: &str) -> Vec<&str> {
    vec!["run", "acp", "--quiet", "--agent-id", agent, "--", BIN, "demo-agent"]
}

#[test]
fn a_start_that_the_system_refuses_ends_with_71_and_may_be_tried_again() {
    let machine = Machine::new("refused");
    let hub: &[&str] = &["hub", "--port", "0"];
    for (what, before) in [
        ("a full disk", "trap '' XFSZ; ulimit -f 0"),
        ("hardly any descriptors", "ulimit -n 4"),
        ("few descriptors", "ulimit -n 9"),
        ("a home that nobody may make", "export AGENT_RELAY_HOME=/sys/agent-relay"),
        ("a home below a file", "export AGENT_RELAY_HOME=/proc/version/x"),
    ] {
        refused_by_the_system(&deprived(&machine, before, &runner("a")), &format!("run, {what}"));
        refused_by_the_system(&deprived(&machine, before, hub), &format!("hub, {what}"));
    }
    assert!(machine.left_over().is_empty(), "nothing goes on");
    // Nothing of that stands in the way of the next start.
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
}

#[test]
fn a_store_and_a_lock_that_cannot_be_written_end_the_start_with_71() {
    let machine = Machine::new("unwritable");
    for (place, arguments) in [
        ("agents/a/store.sqlite", runner("a")),
        ("agents/b/lock", runner("b")),
        ("hub/hub.sqlite", vec!["hub", "--port", "0"]),
        ("hub/lock", vec!["hub", "--port", "0"]),
    ] {
        // A folder stands where the file should be: that refuses root as well.
        let path = machine.home.join(place);
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir_all(&path).expect("a folder in the way");
        refused_by_the_system(&machine.run(&arguments), place);
        std::fs::remove_dir_all(&path).expect("removes");
    }
}

#[test]
fn wrong_settings_stay_2_for_every_command() {
    let machine = Machine::new("wrong-settings");
    std::fs::create_dir_all(&machine.home).expect("home");
    std::fs::write(machine.home.join("config.json"), "{\n  \"token\": oops\n}").expect("config");
    for arguments in
        [runner("a"), vec!["hub", "--port", "0"], vec!["agents"], vec!["send", "a", "hello"]]
    {
        let text = machine.fails(2, &arguments);
        assert!(text.contains("config.json:2:"), "{arguments:?}: {text}");
    }
}

/// Orders and delays of starts; the seed is printed, and START_SEED repeats it.
pub fn start_rng() -> Rng {
    let seed = std::env::var("START_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 =
        seed.unwrap_or_else(|| u64::from_le_bytes(agent_relay::os::random_bytes::<8>()));
    println!("START_SEED={seed}");
    Rng::new(seed)
}

pub fn shuffle<T>(rng: &mut Rng, all: &mut [T]) {
    for at in (1..all.len()).rev() {
        all.swap(at, rng.below(at as u64 + 1) as usize);
    }
}

#[test]
fn hub_and_runners_in_any_order_all_end_up_registered() {
    let mut rng = start_rng();
    for round in 0..30 {
        let machine = Machine::new("any-order");
        let port = own_port();
        let mut order: Vec<usize> = (0..6).collect();
        shuffle(&mut rng, &mut order);
        // A shell starts them all at once, each with a small delay of its own; 0 is the hub.
        let mut line = String::new();
        for who in &order {
            let ms = rng.below(60);
            let what = match who {
                0 => format!("hub --port {port}"),
                n => format!(
                    "run acp --agent-id a{n} --approval open -- $0 demo-agent --state $HOME/demo"
                ),
            };
            line.push_str(&format!("(sleep 0.{ms:03}; exec $0 {what} >>out-{who} 2>&1) &\n"));
        }
        let status = machine
            .command("/bin/sh")
            .args(["-c", &line, BIN])
            .stdin(Stdio::null())
            .status()
            .expect("a shell");
        assert!(status.success());
        wait_for(
            &format!("five agents (round {round}, order {order:?}){}", machine.logs()),
            60,
            || (machine.connected() == 5).then_some(()),
        );
        for process in machine.left_over() {
            agent_relay::os::kill(process, rustix::process::Signal::TERM);
        }
        wait_for(&format!("nothing left behind (round {round})"), 60, || {
            machine.left_over().is_empty().then_some(())
        });
    }
}

#[test]
fn runners_wait_for_the_first_hub_on_another_port_and_say_so_once() {
    let machine = Machine::new("hub-comes-later");
    let mut runner = machine.runner("a");
    wait_for("the provider without a relay", 60, || {
        (machine.status("a")["providerProcess"]["state"] == "ready").then_some(())
    });
    // Its first hub listens elsewhere than a runner looks by itself, and writes that down.
    let _hub = machine.hub();
    machine.wait_status("a", "idle");
    let id = machine.send("a", "hello");
    machine.settle(&[id], 60);
    runner.terminate();
    let (code, text) = runner.wait(60);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_stale_token_in_the_file_is_waited_out_until_it_is_mended() {
    let machine = Machine::new("stale-token");
    let hub = machine.hub();
    let right = machine.config();
    let mut wrong = right.clone();
    wrong["token"] = "stale".into();
    std::fs::write(machine.home.join("config.json"), wrong.to_string()).expect("config");
    let mut runner = machine.runner("a");
    let log = || {
        std::fs::read_to_string(machine.home.join("logs/session-mirror-a.log")).unwrap_or_default()
    };
    wait_for("the word about it", 60, || {
        log().contains("config.json is looked at again").then_some(())
    });
    std::fs::write(machine.home.join("config.json"), right.to_string()).expect("config");
    machine.wait_status("a", "idle");
    runner.terminate();
    let (code, text) = runner.wait(60);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text.matches("config.json is looked at again").count(), 1, "said once: {text}");
    drop(hub);
}

#[test]
fn a_command_that_is_nowhere_is_wrong_use_and_one_in_a_usual_place_is_found() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let machine = Machine::new("usual-places");
    let text =
        machine.fails(2, &["run", "acp", "--quiet", "--agent-id", "a", "--", "no-such-agent"]);
    assert!(
        text.contains("no-such-agent")
            && text.contains("PATH is \"/usr/bin:/bin\"")
            && text.contains("~/.local/bin"),
        "{text}"
    );
    // HOME of a test machine is its home.
    let folder = machine.home.join(".local/bin");
    std::fs::create_dir_all(&folder).expect("folder");
    std::fs::write(folder.join("not-a-program"), "").expect("file");
    std::fs::set_permissions(folder.join("not-a-program"), std::fs::Permissions::from_mode(0o600))
        .expect("mode");
    machine.fails(2, &["run", "acp", "--quiet", "--agent-id", "a", "--", "not-a-program"]);
    symlink(BIN, folder.join("my-agent")).expect("link");
    let _hub = machine.hub();
    let _runner = machine.start(&["run", "acp", "--agent-id", "a", "--", "my-agent", "demo-agent"]);
    machine.wait_status("a", "idle");
}

/// `config.json` of the test's machine with only the URL of another hub.
fn look_at(machine: &Machine, other: &Machine) -> String {
    let url = other.config()["relayUrl"].as_str().expect("a hub was started").to_string();
    std::fs::create_dir_all(&machine.home).expect("folder");
    std::fs::write(
        machine.home.join("config.json"),
        serde_json::json!({ "relayUrl": &url }).to_string(),
    )
    .expect("config");
    url
}

#[test]
fn up_beside_the_hub_of_somebody_else_leaves_no_address_behind() {
    let (machine, other) = (Machine::new("up-beside"), Machine::new("somebody-else"));
    let strange = other.hub();
    let url = look_at(&machine, &other);
    let text = machine.ok(&["up", "--say", "hello"]);
    assert!(text.contains("is taken") && text.contains("You wrote: hello"), "{text}");
    assert_eq!(machine.left_over(), [], "{}", machine.logs());
    assert_eq!(machine.config()["relayUrl"], url.as_str(), "what stood there before");
    // Its token is of no use there, and the sentence says whose hub that is.
    let text = machine.fails(2, &["agents"]);
    let whose = format!(
        "process {} listens there (the hub of {})",
        strange.child.id(),
        other.home.display()
    );
    assert!(text.contains(&whose), "{text}");
    assert!(text.contains(&format!("not the hub of {}", machine.home.display())), "{text}");
    // With a hub of its own elsewhere, the way there is told.
    let mut own = machine.start(&["hub", "--port", "0", "--temporary"]);
    let info = machine.wait_for_hub(&mut own);
    let own_url = info["url"].as_str().expect("url");
    let text = machine.fails(2, &["agents"]);
    assert!(
        text.contains(&format!("the hub of this home listens on {own_url}: set AGENT_RELAY_URL")),
        "{text}"
    );
    let output = machine
        .command(BIN)
        .env("AGENT_RELAY_URL", own_url)
        .args(["agents", "--json"])
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn up_needs_no_settings_of_another_relay() {
    let machine = Machine::new("up-foreign-token");
    let port = own_port();
    std::fs::create_dir_all(&machine.home).expect("folder");
    let config = serde_json::json!({"relayUrl": format!("http://127.0.0.1:{port}"), "token": "of-somewhere-else"});
    std::fs::write(machine.home.join("config.json"), config.to_string()).expect("config");
    let text = machine.ok(&["up", "--say", "hello"]);
    assert!(text.contains("You wrote: hello"), "{text}");
    assert_eq!(machine.left_over(), [], "{}", machine.logs());
}

#[test]
fn a_hub_that_hangs_is_named_soon() {
    let machine = Machine::new("hangs");
    let hub = machine.hub();
    let pid = rustix::process::Pid::from_child(&hub.child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stops");
    let asked = std::time::Instant::now();
    let text = machine.fails(3, &["agents"]);
    let took = asked.elapsed();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("goes on");
    assert!(
        text.contains("gave no answer in time")
            && text.contains(&format!("process {} listens there", hub.child.id())),
        "{text}"
    );
    // The longest call has 15 s; this is no measurement, but which of the two limits it was.
    assert!(took.as_secs() < 12, "{took:?}");
    assert!(machine.ok(&["agents"]).contains("no agents"));
}

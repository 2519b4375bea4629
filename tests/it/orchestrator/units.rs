//! Sessions as units of a real systemd user manager.

use agent_relay::core::ids::ProcessRef;
use agent_relay::os;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Host, process_of};
use crate::claude::{has_tmux, program};
use crate::manager::{Manager, systemctl};
use crate::support::{Machine, wait_for};

fn show(host: &Host, unit: &str, what: &str) -> String {
    systemctl(&host.machine, &["show", &format!("{unit}.service"), "-p", what, "--value"])
}

#[test]
fn a_session_is_a_unit_with_its_ceilings_and_outlives_the_orchestrator() {
    let mut machine = Machine::new("units");
    let Some(_manager) = Manager::start(&mut machine) else { return };
    let mut host = Host::on(machine);
    let bounds = [
        "--memory-max",
        "512M",
        "--cpu-weight",
        "50",
        "--cpu-quota",
        "150",
        "--tasks-max",
        "300",
        "--runtime-max",
        "3600",
    ];
    let report = host.spawn("web", &bounds);
    assert_eq!((&report["supervisor"], &report["state"]), (&json!("systemd"), &json!("running")));
    assert!(report["note"].is_null(), "{report}");
    let unit = report["systemdUnit"].as_str().expect("a unit").to_string();
    assert_eq!(
        unit,
        format!("agent-relay-managed-{}", report["sessionName"].as_str().expect("a name"))
    );
    for (what, want) in [
        ("ActiveState", "active"),
        ("Slice", "agent-relay.slice"),
        ("Type", "notify"),
        ("KillMode", "control-group"),
        ("MemoryMax", "536870912"),
        ("CPUWeight", "50"),
        ("CPUQuotaPerSecUSec", "1.500000s"),
        ("TasksMax", "300"),
        ("RuntimeMaxUSec", "1h"),
    ] {
        let told = show(&host, &unit, what);
        let same = told == want || (what == "CPUQuotaPerSecUSec" && told == "1.5s");
        assert!(same, "{what}: {told}, not {want}");
    }
    assert_eq!(show(&host, &unit, "MainPID"), report["pid"].to_string());
    assert!(show(&host, &unit, "StatusText").contains("agent web"));
    let id = host.machine.send("web", "hello");
    host.machine.settle(&[id], 60);
    host.kill();
    host.start();
    let again = host.wait_state("web", "running");
    assert_eq!(again["pid"], report["pid"], "it is adopted");
    // Everything that it has started is in its unit, and ends with it.
    let launch = host.record("web")["launchId"].as_str().expect("an id").to_string();
    let all = host.of_launch(&launch);
    assert!(all.len() >= 2, "runner and provider: {all:?}");
    for process in &all {
        let groups =
            std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).expect("lives");
        assert!(groups.contains(&unit), "{groups}");
    }
    host.machine.ok(&["stop", "web"]);
    assert_eq!(host.of_launch(&launch), []);
    assert_eq!(show(&host, &unit, "LoadState"), "not-found");
    assert_eq!((host.files(), host.records()), (vec![], vec![]));
}

#[test]
fn how_a_unit_ended_is_told_and_it_is_started_again() {
    let mut machine = Machine::new("unit-ends");
    let Some(_manager) = Manager::start(&mut machine) else { return };
    let mut host = Host::on(machine);
    host.spawn("once", &["--restart", "never"]);
    os::kill(process_of(&host.session("once")), Signal::KILL);
    let parked = host.wait_state("once", "parked");
    assert!(parked["reason"].as_str().is_some_and(|why| why.contains("signal 9")), "{parked}");
    let page = host.machine.ok(&["diagnose", "once"]);
    assert!(page.contains("why         it was ended by signal 9\n"), "{page}");
    host.machine.ok(&["stop", "once"]);
    host.spawn("web", &[]);
    let first = host.session("web");
    let page = host.machine.ok(&["diagnose", "web"]);
    assert!(page.contains(".service is active (running), result success, it said: "), "{page}");
    os::kill(process_of(&first), Signal::KILL);
    let second = wait_for("another start", 60, || {
        Some(host.session("web"))
            .filter(|row| row["state"] == "running" && row["pid"] != first["pid"])
    });
    assert_eq!(second["supervisor"], "systemd");
    // Killed while nobody looks: its unit still says how.
    host.kill();
    os::kill(process_of(&second), Signal::KILL);
    host.start();
    wait_for("another start", 60, || {
        Some(host.session("web"))
            .filter(|row| row["state"] == "running" && row["pid"] != second["pid"])
    });
    let log =
        std::fs::read_to_string(host.machine.home.join("logs/orchestrator.log")).expect("a log");
    assert_eq!(log.matches("it was ended by signal 9; it is started again").count(), 2, "{log}");
    // A runner that ends in order is not started again.
    let last = host.session("web");
    os::kill(process_of(&last), Signal::TERM);
    wait_for("it to be over", 60, || host.session("web").is_null().then_some(()));
    let ended = host.machine.ok(&["sessions", "--ended"]);
    assert!(ended.contains("it ended in order"), "{ended}");
    // A start that fails says why, and leaves no unit behind.
    let said = host.machine.fails(1, &["spawn", "--label", "bad", "acp", "--", "/no/such/agent"]);
    assert!(said.contains("exit code 2") && said.contains("/no/such/agent"), "{said}");
    let left = systemctl(
        &host.machine,
        &["list-units", "--all", "--plain", "--no-legend", "agent-relay-managed-*"],
    );
    assert_eq!(left, "", "{left}");
}

/// The terminal's server of a session.
fn terminal_of(host: &Host, agent: &str) -> Option<ProcessRef> {
    let launch = host.record(agent)["launchId"].as_str()?.to_string();
    let is_server = |process: &ProcessRef| {
        let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into())
            .collect();
        words[0].ends_with("tmux") && words.iter().any(|word| word == "-D")
    };
    host.of_launch(&launch).into_iter().find(is_server)
}

#[test]
fn each_session_has_a_terminal_of_its_own_in_its_unit() {
    if !has_tmux() {
        return;
    }
    let mut machine = Machine::new("unit-tmux");
    let config = json!({"command": program().to_string_lossy(), "isolated": true});
    std::fs::create_dir_all(machine.home.join("providers")).expect("folder");
    std::fs::write(machine.home.join("providers/claude.json"), config.to_string()).expect("config");
    machine.set("LANG", "C.UTF-8");
    let Some(_manager) = Manager::start(&mut machine) else { return };
    let mut host = Host::on(machine);
    let servers: Vec<ProcessRef> = ["c1", "c2"]
        .into_iter()
        .map(|agent| {
            let state = host.machine.home.join(format!("fake-{agent}"));
            let env = format!("FAKE_STATE={}", state.display());
            let words =
                ["spawn", "--json", "--agent-id", agent, "--label", agent, "--env", &env, "claude"];
            let report: Value = serde_json::from_str(&host.machine.ok(&words)).expect("JSON");
            let server = wait_for("its terminal", 60, || terminal_of(&host, agent));
            let groups =
                std::fs::read_to_string(format!("/proc/{}/cgroup", server.pid)).expect("lives");
            let unit = report["systemdUnit"].as_str().expect("a unit");
            assert!(groups.contains(unit), "{groups}");
            server
        })
        .collect();
    assert_ne!(servers[0], servers[1]);
    // Neither the end of the orchestrator nor that of another terminal or session touches it.
    host.kill();
    host.start();
    os::kill(servers[0], Signal::KILL);
    wait_for("another terminal for the first one", 60, || {
        terminal_of(&host, "c1").filter(|server| *server != servers[0])
    });
    host.machine.ok(&["stop", "c1"]);
    assert!(os::is_alive(servers[1]), "that of the other session lives on");
    host.machine.ok(&["stop", "c2"]);
    assert!(!os::is_alive(servers[1]), "it ends with its session");
}

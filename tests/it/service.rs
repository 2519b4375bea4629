//! Services: what a service manager is told, and units under a real user manager.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use agent_relay::core::ids::ProcessRef;
use agent_relay::os;

use crate::manager::{Manager, systemctl};
use crate::start::{shuffle, start_rng};
use crate::support::{BIN, Machine, own_port, wait_for};

/// What is told on the socket until a line comes that begins so.
fn told(socket: &UnixDatagram, wanted: &str) -> String {
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let mut buffer = [0u8; 4096];
    loop {
        let size = socket
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("{wanted} was not told: {error}"));
        let text = String::from_utf8_lossy(&buffer[..size]).into_owned();
        if text.lines().any(|line| line == wanted) {
            return text;
        }
    }
}

/// Processes of an agent of this machine: tests beside this one have agents of the same name.
fn of_agent(machine: &Machine, agent: &str) -> Vec<ProcessRef> {
    let mut all = os::processes_with_env("AGENT_RELAY_ID", agent);
    let place = format!("{}/", machine.work.parent().expect("a folder").display());
    all.retain(|process| {
        String::from_utf8_lossy(
            &std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default(),
        )
        .contains(&place)
    });
    all
}

#[test]
fn a_manager_is_told_when_hub_and_runner_are_ready_and_stop() {
    let mut machine = Machine::new("notify");
    let path = machine.work.join("notify");
    let socket = UnixDatagram::bind(&path).expect("binds");
    machine.set("NOTIFY_SOCKET", &path.to_string_lossy());
    // The relay is away: a runner is ready all the same.
    let mut runner = machine.runner("a");
    let text = told(&socket, "READY=1");
    assert!(text.contains("STATUS=agent a"), "{text}");
    let demo = wait_for("the provider", 60, || {
        let status = machine.status("a");
        (status["providerProcess"]["state"] == "ready").then(|| of_agent(&machine, "a"))
    });
    assert!(!demo.is_empty(), "a provider runs");
    for ProcessRef { pid, .. } in demo {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET="),
            "no provider speaks as the runner"
        );
    }
    runner.terminate();
    told(&socket, "STOPPING=1");
    assert_eq!(runner.wait(60).0, 0);
    let mut hub = machine.start(&["hub", "--port", "0"]);
    let text = told(&socket, "READY=1");
    assert!(text.contains("http://127.0.0.1:"), "{text}");
    assert!(machine.config()["token"].is_string(), "ready means that others can use it");
    hub.terminate();
    told(&socket, "STOPPING=1");
    assert_eq!(hub.wait(60).0, 0);
}

#[test]
fn services_start_in_any_order_under_a_real_user_manager() {
    let mut machine = Machine::new("services");
    let Some(_manager) = Manager::start(&mut machine) else { return };
    let port = own_port().to_string();
    let agents = ["a1", "a2", "a3", "a4", "a5"];
    // An agent first: its relay is away, and it becomes active all the same.
    for agent in agents {
        machine.ok(&[
            "service",
            "install",
            agent,
            "--",
            "acp",
            "--approval",
            "open",
            "--",
            BIN,
            "demo-agent",
        ]);
        let unit = format!("agent-relay-agent-{agent}.service");
        assert_eq!(systemctl(&machine, &["show", &unit, "-p", "ActiveState", "--value"]), "active");
    }
    machine.ok(&["service", "install", "hub", "--", "--port", &port]);
    wait_for("five agents", 60, || (machine.connected() == 5).then_some(()));
    assert_eq!(
        machine
            .ok(&["service", "list", "--json"])
            .lines()
            .filter(|line| line.contains("\"active\""))
            .count(),
        6
    );
    let orders = start_in_many_orders(&machine, &agents);
    for agent in agents {
        wait_for("its provider", 60, || (!of_agent(&machine, agent).is_empty()).then_some(()));
        machine.ok(&["service", "remove", agent]);
        assert_eq!(of_agent(&machine, agent), [], "a stop ends everything in the unit of {agent}");
    }
    machine.ok(&["service", "remove", "hub"]);
    assert_eq!(machine.ok(&["service", "list", "--json"]), "");
    // Wrong use is not tried again, a refusal of the system is, until the limit is reached.
    let broken = machine.fails(1, &["service", "install", "bad", "--", "acp", "--nonsense"]);
    assert!(broken.contains("failed"), "{broken}");
    let show = |what: &str| {
        systemctl(&machine, &["show", "agent-relay-agent-bad.service", "-p", what, "--value"])
    };
    assert_eq!((show("NRestarts").as_str(), show("ExecMainStatus").as_str()), ("0", "2"));
    println!("start orders under a real user manager: {orders}");
}

/// Thirty starts from nothing, each in another order; how many there were.
fn start_in_many_orders(machine: &Machine, agents: &[&str]) -> u32 {
    let mut units: Vec<String> =
        agents.iter().map(|agent| format!("agent-relay-agent-{agent}.service")).collect();
    units.push("agent-relay-hub.service".into());
    let mut orders = 0;
    let mut rng = start_rng();
    for _ in 0..30 {
        let mut all: Vec<&str> = vec!["stop"];
        all.extend(units.iter().map(String::as_str));
        systemctl(machine, &all);
        for what in ["config.json", "hub", "hub-mark.json", "agents"] {
            let path = machine.home.join(what);
            let _ = std::fs::remove_dir_all(&path);
            let _ = std::fs::remove_file(&path);
        }
        shuffle(&mut rng, &mut units);
        // So many starts in so short a time are not what a unit's limit is for.
        let mut all: Vec<&str> = vec!["reset-failed"];
        all.extend(units.iter().map(String::as_str));
        systemctl(machine, &all);
        all[0] = "start";
        systemctl(machine, &all);
        wait_for(&format!("five agents in the order {units:?}"), 60, || {
            (machine.connected() == 5).then_some(())
        });
        orders += 1;
    }
    orders
}

/// The commands in the head of a printed unit.
fn commands_in(unit: &str) -> String {
    let head = unit.lines().skip(1).take_while(|line| line.starts_with('#'));
    let commands: Vec<&str> = head
        .filter_map(|line| line.strip_prefix("#   "))
        .filter(|line| !line.starts_with("loginctl"))
        .collect();
    assert!(commands.len() >= 4, "{unit}");
    commands.join("\n")
}

#[test]
fn printed_units_are_installed_by_the_commands_in_their_heads() {
    let mut machine = Machine::new("printed");
    let home = machine.home.join(".agent-relay");
    machine.set("AGENT_RELAY_HOME", &home.to_string_lossy());
    let bin = machine.home.join(".local/bin");
    std::fs::create_dir_all(&bin).expect("folder");
    std::os::unix::fs::symlink(BIN, bin.join("agent-relay")).expect("link");
    machine.set("PATH", &format!("{}:/usr/bin:/bin", bin.display()));
    let Some(_manager) = Manager::start(&mut machine) else { return };
    let shell = |line: &str| {
        let output = machine
            .command("/bin/sh")
            .env_remove("AGENT_RELAY_HOME")
            .args(["-ec", line])
            .output()
            .expect("a shell");
        assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    };
    // As printed, but for the port, which others on this machine may have, and the agent.
    let port = own_port();
    let hub = commands_in(&machine.ok(&["generate", "unit", "hub"]));
    shell(
        &hub.replace("unit hub >", &format!("unit hub | sed '/^ExecStart/s/$/ --port {port}/' >")),
    );
    let agent = commands_in(&machine.ok(&["generate", "unit", "agent"]));
    let arguments = "acp --preset opencode --cwd /home/me/project";
    assert!(agent.contains(arguments), "{agent}");
    shell(&agent.replace(arguments, &format!("acp --approval open -- {BIN} demo-agent")));
    wait_for("the agent", 60, || (machine.connected() == 1).then_some(()));
    for unit in ["agent-relay-hub.service", "agent-relay@my-agent.service"] {
        let show = |what: &str| systemctl(&machine, &["show", unit, "-p", what, "--value"]);
        assert_eq!(
            (show("ActiveState"), show("UnitFileState")),
            ("active".into(), "enabled".into()),
            "{unit}"
        );
    }
    let id = machine.send("my-agent", "hello");
    wait_for("the answer", 60, || (machine.answered().get(&id) == Some(&1)).then_some(()));
    gives_up(&machine, &home, &shell);
}

/// An agent that fails each time is given up after the burst: what the unit says of it is reached
/// in its interval.
fn gives_up(machine: &Machine, home: &Path, shell: &dyn Fn(&str)) {
    let unit = machine.ok(&["generate", "unit", "agent"]);
    let number = |name: &str| -> u64 {
        unit.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .and_then(|value| value.parse().ok())
            .expect(name)
    };
    assert!(
        number("StartLimitBurst") * (number("RestartSec") + 5) < number("StartLimitIntervalSec"),
        "{unit}"
    );
    let config = r#"{"restart": {"firstMs": 1, "mostMs": 1, "exitsMax": 1}}"#;
    std::fs::create_dir_all(home.join("providers")).expect("folder");
    std::fs::write(home.join("providers/acp.json"), config).expect("writes");
    shell(
        "d=~/.config/systemd/user/agent-relay@fails.service.d; mkdir -p $d; printf '[Service]\\nRestartSec=100ms\\n' >$d/soon.conf
         echo 'AGENT_RELAY_ARGUMENTS=acp -- /bin/false' >~/.agent-relay/units/fails.env
         systemctl --user daemon-reload; systemctl --user start agent-relay@fails.service || :",
    );
    let show = |what: &str| {
        systemctl(machine, &["show", "agent-relay@fails.service", "-p", what, "--value"])
    };
    wait_for("the unit to be given up", 60, || (show("ActiveState") == "failed").then_some(()));
    assert_eq!(
        (show("NRestarts"), show("ExecMainStatus")),
        (number("StartLimitBurst").to_string(), "1".into())
    );
    // Its agent fails whoever starts it: that the limit holds is seen by the process that is not
    // started.
    let begun = || show("ExecMainStartTimestampMonotonic");
    let last = begun();
    systemctl(machine, &["start", "agent-relay@fails.service"]);
    assert_eq!((begun(), show("ActiveState")), (last.clone(), "failed".into()), "the limit holds");
    systemctl(machine, &["reset-failed", "agent-relay@fails.service"]);
    systemctl(machine, &["start", "--no-block", "agent-relay@fails.service"]);
    wait_for("a start after `systemctl reset-failed`", 60, || (begun() != last).then_some(()));
}

//! Orchestrators: sessions that outlive them, as process groups and as units of a real systemd.

mod chaos;
mod keeping;
mod looking;
mod spawning;
mod units;

use std::path::PathBuf;

use agent_relay::core::ids::ProcessRef;
use agent_relay::os;
use serde_json::Value;

use crate::support::{BIN, Machine, Running, wait_for};

/// A machine with a hub and a folder that sessions may work in.
struct Host {
    machine: Machine,
    hub: Running,
    orchestrator: Option<Running>,
}

impl Host {
    /// With process groups, whatever this machine has.
    fn new(name: &str) -> Host {
        let mut machine = Machine::new(name);
        machine.set("AGENT_RELAY_DISABLE_SYSTEMD_SUPERVISOR", "1");
        Host::on(machine)
    }

    fn on(machine: Machine) -> Host {
        let hub = machine.hub();
        let mut host = Host { machine, hub, orchestrator: None };
        host.start();
        host
    }

    /// Starts the orchestrator; waits until it answers.
    #[track_caller]
    fn start(&mut self) {
        let base = self.machine.work.to_string_lossy().into_owned();
        let mut running = self.machine.start(&["orchestrator", "--base-dir", &base]);
        let pid = running.child.id();
        wait_for("the orchestrator to answer", 60, || {
            if let Some(status) = running.child.try_wait().expect("waits") {
                panic!("the orchestrator ended: {status} {:?}", running.wait(1));
            }
            let info =
                std::fs::read_to_string(self.machine.home.join("orchestrator/orchestrator.json"))
                    .ok()?;
            let info: Value = serde_json::from_str(&info).ok()?;
            (info["pid"] == pid && self.machine.run(&["sessions"]).status.success()).then_some(())
        });
        self.orchestrator = Some(running);
    }

    fn kill(&mut self) {
        self.orchestrator.take().expect("it runs").kill();
    }

    /// Spawns a demo agent under that id, which is its label too; the report.
    #[track_caller]
    fn spawn(&self, agent: &str, options: &[&str]) -> Value {
        let state = self.machine.home.join("demo").to_string_lossy().into_owned();
        let mut all =
            vec!["spawn", "--json", "--agent-id", agent, "--label", agent, "--approval", "open"];
        all.extend(options);
        all.extend(["acp", "--", BIN, "demo-agent", "--state", &state]);
        serde_json::from_str(&self.machine.ok(&all)).expect("JSON")
    }

    /// All sessions, by the name of their agents.
    fn sessions(&self) -> Vec<Value> {
        let told = self.machine.ok(&["sessions", "--json"]);
        told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn session(&self, agent: &str) -> Value {
        self.sessions().into_iter().find(|row| row["agentId"] == agent).unwrap_or_default()
    }

    #[track_caller]
    fn wait_state(&self, agent: &str, state: &str) -> Value {
        wait_for(&format!("{agent} to be {state}"), 60, || {
            Some(self.session(agent)).filter(|row| row["state"] == state)
        })
    }

    /// Everything of the sessions' files that is there.
    fn files(&self) -> Vec<PathBuf> {
        let folders = ["sessions", "runners"].map(|folder| self.machine.home.join(folder));
        let entries = folders.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect()
    }

    fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.machine.home.join("orchestrator-sessions.json"));
        serde_json::from_str(&text.unwrap_or_else(|_| "[]".into())).expect("a list")
    }

    /// The processes of a start.
    fn of_launch(&self, launch: &str) -> Vec<ProcessRef> {
        os::processes_with_env("AGENT_RELAY_SESSION_LAUNCH", launch)
    }

    fn record(&self, agent: &str) -> Value {
        self.records().into_iter().find(|record| record["agentId"] == agent).unwrap_or_default()
    }
}

/// The process of a session.
fn process_of(row: &Value) -> ProcessRef {
    os::process(row["pid"].as_u64().expect("a pid") as u32)
}

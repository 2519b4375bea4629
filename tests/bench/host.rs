//! What an orchestrator costs and how fast it is; its sessions are process groups.

use super::*;

/// Sessions whose orchestrator is started anew.
const SESSIONS: usize = 50;
/// Spawns one after the other.
const SPAWNS: usize = 20;
/// How long idle processes are looked at.
const IDLE: Duration = Duration::from_secs(30);

struct Host {
    folder: Folder,
    hub: Child,
    orchestrator: Child,
}

impl Host {
    fn start() -> Host {
        let folder = Folder::new("host");
        std::fs::create_dir_all(folder.0.join("work")).expect("a folder");
        let settings = json!({"maxSessions": 200, "startsMax": 1000});
        std::fs::write(folder.0.join("orchestrator.json"), settings.to_string()).expect("writes");
        let mut hub = command(&folder.0);
        let hub = hub.args(["hub", "--port", "0"]).stdout(Stdio::null()).spawn().expect("starts");
        while !folder.0.join("hub/hub.json").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let orchestrator = Host::orchestrator(&folder);
        Host { folder, hub, orchestrator }
    }

    /// Starts an orchestrator; returns when it answers.
    fn orchestrator(folder: &Folder) -> Child {
        let started = command(&folder.0)
            .env("AGENT_RELAY_DISABLE_SYSTEMD_SUPERVISOR", "1")
            .args(["orchestrator", "--base-dir"])
            .arg(folder.0.join("work"))
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        let answers =
            || command(&folder.0).arg("sessions").output().expect("runs").status.success();
        while !answers() {
            std::thread::sleep(Duration::from_millis(2));
        }
        started
    }

    /// How long it takes until a session of that agent runs.
    fn spawn(&self, agent: &str) -> Duration {
        let mut spawn = command(&self.folder.0);
        spawn.args(["spawn", "--agent-id", agent, "--label", agent, "--approval", "open", "--cwd"]);
        spawn.arg(self.folder.0.join("work")).args(["acp", "--", bin(), "demo-agent"]);
        spawn.stderr(Stdio::piped());
        let begin = Instant::now();
        let output = spawn.output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        begin.elapsed()
    }

    fn sessions(&self) -> Vec<Value> {
        let mut list = command(&self.folder.0);
        list.args(["sessions", "--json"]).stdout(Stdio::piped());
        let output = list.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for session in self.sessions() {
            let name = session["name"].as_str().unwrap_or_default().to_string();
            let _ = command(&self.folder.0).args(["stop", "--now", &name]).output();
        }
        for child in [&mut self.orchestrator, &mut self.hub] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn host() {
    let mut host = Host::start();
    let mut times: Vec<Duration> = (0..SPAWNS).map(|at| host.spawn(&format!("one-{at}"))).collect();
    row("spawn to running, one after the other, p50", "≤ 100 ms", ms(percentile(&mut times, 0.5)));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let host = &host;
        (0..SPAWNS).for_each(|at| drop(scope.spawn(move || host.spawn(&format!("many-{at}")))));
    });
    row(&format!("{SPAWNS} spawns at once, until all run"), "–", ms(begin.elapsed()));
    for at in 2 * SPAWNS..SESSIONS {
        host.spawn(&format!("more-{at}"));
    }
    std::thread::sleep(Duration::from_secs(3));
    let before = idle::switches(host.orchestrator.id());
    std::thread::sleep(IDLE);
    let wakes = idle::switches(host.orchestrator.id()) - before;
    row(
        &format!("idle orchestrator of {SESSIONS} sessions: PSS; wake-ups in {} s", IDLE.as_secs()),
        "–",
        format!("{:.1} MB; {wakes}", idle::pss(host.orchestrator.id())),
    );
    let pids: Vec<u32> =
        host.sessions().iter().filter_map(|row| Some(row["pid"].as_u64()? as u32)).collect();
    let all: f64 = pids.iter().map(|pid| idle::pss(*pid)).sum();
    row(
        &format!("{} idle runners: PSS of all", pids.len()),
        "≤ 1 GB for 100",
        format!("{all:.0} MB"),
    );
    let _ = host.orchestrator.kill();
    let _ = host.orchestrator.wait();
    let begin = Instant::now();
    host.orchestrator = Host::orchestrator(&host.folder);
    while host.sessions().iter().filter(|row| row["state"] == "running").count() < SESSIONS {
        std::thread::sleep(Duration::from_millis(2));
    }
    row(
        &format!("restart of an orchestrator until {SESSIONS} sessions are adopted"),
        "≤ 1 s",
        ms(begin.elapsed()),
    );
}

//! A real systemd user manager, which the test starts by itself.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agent_relay::os;

use crate::support::{Machine, ran, skip, wait_for};

/// A systemd user manager of this test alone.
pub struct Manager {
    process: Child,
    groups: Vec<PathBuf>,
    runtime: PathBuf,
}

impl Manager {
    /// `None`: this machine cannot; said, and a failure where `CI` is set.
    pub fn start(machine: &mut Machine) -> Option<Manager> {
        let program = Path::new("/lib/systemd/systemd");
        if !program.exists() || !rustix::process::geteuid().is_root() {
            skip(
                "a user manager needs root and systemd; install it with: sudo apt-get install systemd",
            );
            return None;
        }
        let name = machine
            .work
            .parent()
            .and_then(Path::file_name)
            .expect("a folder")
            .to_string_lossy()
            .into_owned();
        let mut groups: Vec<PathBuf> =
            ["systemd", "unified"].map(|kind| Path::new("/sys/fs/cgroup").join(kind)).into();
        groups.retain(|group| group.is_dir());
        if groups.is_empty() {
            groups.push("/sys/fs/cgroup".into());
        }
        let groups: Vec<PathBuf> = groups.into_iter().map(|group| group.join(&name)).collect();
        let runtime = machine.work.join("run");
        os::make_private_dir(&runtime).expect("a runtime folder");
        std::fs::create_dir_all("/run/systemd/system").expect("the sign of systemd");
        let mut line = String::new();
        for group in &groups {
            std::fs::create_dir_all(group).expect("a group of its own");
            line.push_str(&format!("echo $$ >{}/cgroup.procs; ", group.display()));
        }
        line.push_str("exec /lib/systemd/systemd --user --log-target=null");
        machine.set("XDG_RUNTIME_DIR", &runtime.to_string_lossy());
        let mut command = machine.command("/bin/sh");
        command.env_remove("AGENT_RELAY_HOME").env("LANG", "C.UTF-8").args(["-c", &line]);
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let manager = Manager { process, groups, runtime };
        wait_for("the user manager", 60, || {
            let said =
                machine.command("systemctl").args(["--user", "is-system-running"]).output().ok()?;
            matches!(String::from_utf8_lossy(&said.stdout).trim(), "running" | "degraded")
                .then_some(())
        });
        ran("systemd");
        Some(manager)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = Command::new("systemctl")
            .args(["--user", "exit"])
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .output();
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while !matches!(self.process.try_wait(), Ok(Some(_))) && std::time::Instant::now() < until {
            crate::support::pause(20);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        for group in &self.groups {
            let _ = Command::new("find")
                .arg(group)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                .output();
        }
    }
}

/// What systemd says to one order.
pub fn systemctl(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.command("systemctl").arg("--user").args(arguments).output().expect("runs");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

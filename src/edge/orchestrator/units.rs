//! Units of the user's systemd: one order to `systemctl` or `systemd-run` at a time.

use std::process::{Command, Stdio};

use crate::config::env;
use crate::core::orchestrator::systemd::{SHOWN, UnitOrder, UnitState, run_arguments};
use crate::os;

/// Whether sessions are started as units: the user has a systemd, and nobody wants it otherwise.
pub fn are_used() -> bool {
    let is_set = |name: &str| env(name).as_deref() == Some("1");
    if is_set("AGENT_RELAY_DISABLE_SYSTEMD_SUPERVISOR") {
        return false;
    }
    is_set("AGENT_RELAY_FORCE_SYSTEMD_SUPERVISOR") || systemctl(&["show-environment"]).is_ok()
}

/// One order; the error is what systemd said.
fn systemctl(arguments: &[&str]) -> Result<String, String> {
    run(Command::new("systemctl").arg("--user").args(arguments), "systemctl")
}

fn run(command: &mut Command, name: &str) -> Result<String, String> {
    // What was asked for by an orchestrator that is gone is not to come true later.
    os::prepare_child(command, false);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run {name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    let code = output.status.code().unwrap_or(-1);
    Err(if said.is_empty() { format!("{name} failed with exit code {code}") } else { said })
}

fn service(unit: &str) -> String {
    format!("{unit}.service")
}

/// How a unit is; an error where systemd does not answer.
pub fn show(unit: &str) -> Result<UnitState, String> {
    systemctl(&["show", &service(unit), "-p", SHOWN]).map(|text| UnitState::read(&text))
}

/// Starts a unit; returns when its runner has told that it is ready.
pub fn start(order: &UnitOrder) -> Result<(), String> {
    run(Command::new("systemd-run").args(run_arguments(order)), "systemd-run").map(drop)
}

/// Ends a unit; returns when nothing of it is left. One that has ended is forgotten by systemd,
/// which then does not know what to stop.
pub fn stop(unit: &str) -> Result<(), String> {
    let Err(said) = systemctl(&["stop", &service(unit)]) else { return Ok(()) };
    if show(unit).is_ok_and(|state| !state.is_up()) { Ok(()) } else { Err(said) }
}

/// Kills everything in a unit.
pub fn kill(unit: &str) {
    let _ = systemctl(&["kill", "--kill-whom=all", "--signal=SIGKILL", &service(unit)]);
}

/// Forgets a unit that has failed.
pub fn forget(unit: &str) {
    let _ = systemctl(&["reset-failed", &service(unit)]);
}

//! `service`: hub and agents as units of the user's systemd, and the texts of those units.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::args::Service;
use super::exit::{Failure, OK, Outcome, path_failure};
use super::options::example_arguments;
use super::print;
use crate::config::{Global, env};
use crate::edge::http::Base;
use crate::os;
use crate::wire::api::{AGENT_ID_RULE, is_agent_id};

/// The hub's unit; agents have names with another beginning, so none can clash with it.
const HUB_UNIT: &str = "agent-relay-hub.service";
/// What stands before an agent's name.
const AGENT_PREFIX: &str = "agent-relay-agent-";
/// What all units have: try again on everything but invalid arguments (2), and give up when that is
/// in vain.
const COMMON: &str = "Type=notify
NotifyAccess=main
Restart=on-failure
RestartSec=2
# 2: invalid arguments or configuration; starting again would not help.
RestartPreventExitStatus=2
KillMode=mixed
TimeoutStopSec=90
LimitNOFILE=65536
";
/// Ten failed starts within five minutes are enough: that limit is reached, since two seconds lie
/// between them.
const LIMIT: &str = "StartLimitIntervalSec=300\nStartLimitBurst=10\n";
const INSTALL: &str = "\n[Install]\nWantedBy=default.target\n";

/// PATH of a service: what a login shell of the user would have.
fn path() -> String {
    let usual =
        crate::provider::registry::USUAL_PLACES.map(|place| place.replace('~', "%h")).join(":");
    format!("Environment=PATH={usual}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin\n")
}

/// One word of a command line in a unit: quoted, and nothing in it means anything to systemd.
fn unit_word(text: &str) -> String {
    let text =
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{}\"", text.replace('\n', "\\n"))
}

fn program() -> Result<String, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::system(format!("cannot find my own program file: {error}")))?;
    Ok(own.to_string_lossy().into_owned())
}

fn hub_text(program: &str, rest: &[&str], settings: &str) -> String {
    let path = path();
    let words = [program, "hub"].into_iter().chain(rest.iter().copied());
    let start = words.map(unit_word).collect::<Vec<_>>().join(" ");
    format!(
        "[Unit]\nDescription=agent-relay hub\n{LIMIT}\n[Service]\nExecStart={start}\n{COMMON}{path}{settings}{INSTALL}"
    )
}

fn agent_text(about: &str, near: bool, start: &str, settings: &str) -> String {
    let path = path();
    let hub = if near { format!("Wants={HUB_UNIT}\nAfter={HUB_UNIT}\n") } else { String::new() };
    format!(
        "[Unit]\nDescription=agent-relay agent {about}\n{hub}{LIMIT}\n[Service]\nExecStart={start}\n{COMMON}{path}{settings}{INSTALL}"
    )
}

/// `generate unit hub|agent`; without an argument the error lists both.
pub(super) fn generate(which: Option<&str>) -> Result<String, Failure> {
    let program = program()?;
    match which {
        Some("hub") => Ok(format!(
            "# The hub of this machine as a service of your user. Install it with:\n\
             #   mkdir -p ~/.config/systemd/user\n\
             #   agent-relay generate unit hub >~/.config/systemd/user/{HUB_UNIT}\n\
             #   systemctl --user daemon-reload\n\
             #   systemctl --user enable --now {HUB_UNIT}\n\
             #   loginctl enable-linger    # so that it lives on after you log out\n{}",
            hub_text(&program, &[], "")
        )),
        Some("agent") => Ok(format!(
            "# One agent for each instance of this unit. Install it with (`agent-relay service install` does all of it):\n\
             #   mkdir -p ~/.config/systemd/user ~/.agent-relay/units\n\
             #   agent-relay generate unit agent >~/.config/systemd/user/agent-relay@.service\n\
             #   echo 'AGENT_RELAY_ARGUMENTS={example} --cwd /home/me/project' >~/.agent-relay/units/my-agent.env\n\
             #   systemctl --user daemon-reload\n\
             #   systemctl --user enable --now agent-relay@my-agent.service\n\
             #   loginctl enable-linger    # so that it lives on after you log out\n{}",
            agent_text(
                "%i",
                true,
                &format!(
                    "{} run --agent-id %i --quiet $AGENT_RELAY_ARGUMENTS",
                    unit_word(&program)
                ),
                "EnvironmentFile=%h/.agent-relay/units/%i.env\n"
            ),
            example = example_arguments(),
        )),
        _ => Err(Failure::usage(
            "say which unit: `agent-relay generate unit hub` or `agent-relay generate unit agent`",
        )),
    }
}

/// `service`
pub fn service(options: &Service) -> Outcome {
    let words: Vec<&str> = options.action.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["install", "hub", rest @ ..] => install_hub(rest),
        ["install", name, rest @ ..] if !rest.is_empty() => install_agent(name, rest),
        ["install", ..] => Err(Failure::usage(format!(
            "say the name and what it runs: `agent-relay service install my-agent -- {}`, or `agent-relay service install hub`",
            example_arguments()
        ))),
        ["list"] | [] => list(options.json),
        ["remove", name] => remove(name),
        [word, ..] => Err(Failure::usage(format!(
            "there is no service action {word:?}; use install, list or remove NAME"
        ))),
    }
}

fn unit_of(name: &str) -> String {
    if name == "hub" { HUB_UNIT.into() } else { format!("{AGENT_PREFIX}{name}.service") }
}

fn folder() -> Result<PathBuf, Failure> {
    let home = || crate::os::user_home().map(|home| home.join(".config"));
    let config = env("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
    let config = config.ok_or_else(|| {
        Failure::usage("neither XDG_CONFIG_HOME nor HOME is set; set one of them")
    })?;
    Ok(config.join("systemd").join("user"))
}

fn checked(name: &str) -> Result<(), Failure> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if is_agent_id(name) && plain && !name.starts_with(['-', '.']) {
        Ok(())
    } else {
        Err(Failure::usage(format!(
            "{name:?} cannot be the name of a service: letters, digits, - _ . only; {AGENT_ID_RULE}"
        )))
    }
}

/// One order to the user's systemd.
fn systemctl(arguments: &[&str]) -> Result<String, Failure> {
    let output = Command::new("systemctl").arg("--user").args(arguments).output();
    let output = output.map_err(|error| {
        path_failure(&error, format!("cannot run systemctl: {error}; services need systemd"))
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("it does not say why").trim();
    let cure = "`agent-relay doctor` tells whether this user has a systemd; `journalctl --user -e` tells why a service did not start";
    Err(Failure::no(format!("systemctl --user {} failed: {said}; {cure}", arguments.join(" "))))
}

/// Settings of the shell that installs which the unit must know. What is secret goes into a file
/// that only its owner reads.
fn settings(name: &str, home: &Path) -> Result<String, Failure> {
    let mut lines = String::new();
    for variable in ["AGENT_RELAY_HOME", "AGENT_RELAY_URL"] {
        if let Some(value) = env(variable) {
            lines.push_str(&format!(
                "Environment={}\n",
                unit_word(&format!("{variable}={value}")).replace("$$", "$")
            ));
        }
    }
    let Some(token) = env("AGENT_RELAY_TOKEN").filter(|_| name != "hub") else { return Ok(lines) };
    let file = home.join("units").join(format!("{name}.secret.env"));
    os::write_private_file(&file, &format!("AGENT_RELAY_TOKEN={token}\n"))
        .map_err(|error| Failure::system(format!("cannot write {}: {error}", file.display())))?;
    lines.push_str(&format!("EnvironmentFile={}\n", file.display().to_string().replace('%', "%%")));
    Ok(lines)
}

fn put(name: &str, text: &str) -> Outcome {
    let (folder, unit) = (folder()?, unit_of(name));
    let refused = |error: std::io::Error| {
        Failure::system(format!("cannot write {}: {error}", folder.join(&unit).display()))
    };
    std::fs::create_dir_all(&folder).map_err(refused)?;
    os::write_private_file(&folder.join(&unit), text).map_err(refused)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", &unit])?;
    // One that runs already gets its new text; one that gave up is tried again.
    let _ = systemctl(&["reset-failed", &unit]);
    systemctl(&["restart", &unit])?;
    print::line(&format!("{unit} runs; `loginctl enable-linger` keeps it after you log out"));
    Ok(OK)
}

fn install_hub(rest: &[&str]) -> Outcome {
    let home = crate::config::home()?;
    put("hub", &hub_text(&program()?, rest, &settings("hub", &home)?))
}

fn install_agent(name: &str, rest: &[&str]) -> Outcome {
    checked(name)?;
    let global = Global::load(None, None)?;
    let near = Base::parse(&global.relay_url).map_err(Failure::usage)?.is_loopback();
    let split = rest.iter().position(|one| *one == "--").unwrap_or(rest.len());
    let said = |option: &str| rest[..split].contains(&option);
    let mut words = vec![program()?, "run".into(), "--quiet".into()];
    if !said("--agent-id") {
        words.extend(["--agent-id".into(), name.into()]);
    }
    if !said("--cwd") {
        let here = std::env::current_dir().map_err(|error| {
            path_failure(
                &error,
                format!("the current folder cannot be used: {error}; give --cwd PATH"),
            )
        })?;
        words.extend(["--cwd".into(), here.to_string_lossy().into_owned()]);
    }
    words.extend(rest.iter().map(|one| one.to_string()));
    let start = words.iter().map(|one| unit_word(one)).collect::<Vec<_>>().join(" ");
    put(name, &agent_text(name, near, &start, &settings(name, &global.home)?))
}

/// Names of the installed services.
fn names() -> Result<Vec<String>, Failure> {
    let entries = std::fs::read_dir(folder()?).into_iter().flatten().flatten();
    let mut all: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|file| match file.as_str() {
            HUB_UNIT => Some("hub".to_string()),
            file => file.strip_prefix(AGENT_PREFIX)?.strip_suffix(".service").map(str::to_string),
        })
        .collect();
    all.sort();
    Ok(all)
}

fn list(as_json: bool) -> Outcome {
    let mut rows = vec![["NAME", "UNIT", "STATE"].map(String::from).to_vec()];
    for name in names()? {
        let unit = unit_of(&name);
        let state = systemctl(&["show", &unit, "-p", "ActiveState", "--value"])
            .unwrap_or_else(|_| "unknown".into());
        if as_json {
            print::json(&json!({"name": name, "unit": unit, "state": state}))
        } else {
            rows.push(vec![name, unit, state])
        }
    }
    if !as_json {
        print::table(&rows);
    }
    Ok(OK)
}

fn remove(name: &str) -> Outcome {
    checked(name)?;
    let (path, unit) = (folder()?.join(unit_of(name)), unit_of(name));
    if !path.is_file() {
        return Err(Failure::no(format!(
            "there is no service {name}; `agent-relay service list` shows them"
        )));
    }
    systemctl(&["disable", "--now", &unit])?;
    std::fs::remove_file(&path)
        .map_err(|error| Failure::system(format!("cannot remove {}: {error}", path.display())))?;
    let _ = std::fs::remove_file(
        crate::config::home()?.join("units").join(format!("{name}.secret.env")),
    );
    let _ = systemctl(&["reset-failed", &unit]);
    systemctl(&["daemon-reload"])?;
    print::line(&format!(
        "{unit} is stopped and removed; its agent's store and conversations stay"
    ));
    Ok(OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_units_mean_nothing_to_systemd() {
        assert_eq!(unit_word("a b"), "\"a b\"");
        assert_eq!(unit_word("50% of $HOME \"x\" \\"), "\"50%% of $$HOME \\\"x\\\" \\\\\"");
        for name in ["a/b", "-x", ".a", "a b", "%i"] {
            assert!(checked(name).is_err(), "{name}");
        }
        assert_eq!(
            (unit_of("hub"), unit_of("web")),
            (HUB_UNIT.to_string(), "agent-relay-agent-web.service".to_string())
        );
    }
}

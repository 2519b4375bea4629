//! `up`: a hub if none runs, a runner, and this terminal as chat.

mod chat;
mod lines;

use std::io::{BufReader, IsTerminal};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use rustix::process::Signal;
use serde_json::Value;

use self::chat::{Chat, ChatEvent};
use self::lines::next_line;
use super::args::Up;
use super::client::Client;
use super::exit::{Failure, Kind, Outcome};
use super::print;
use crate::config::Global;
use crate::edge::signals;
use crate::hub::place;
use crate::os;
use crate::provider::registry;
use crate::secret::Secret;
use crate::wire::api::path;

/// The hub must listen and the agent be ready in that time.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Patience with a process at the end.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A process that `up` started; ended when dropped.
struct StartedProcess {
    child: Child,
    what: &'static str,
}

impl StartedProcess {
    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        os::kill(os::process(self.child.id()), Signal::TERM);
        let until = Instant::now() + STOP_LIMIT;
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10)); // a wait with a limit
        }
        print::notice(&format!("the {} did not stop in time; ending it", self.what));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for StartedProcess {
    fn drop(&mut self) {
        self.end();
    }
}

/// `up`
pub fn up(options: Up) -> Outcome {
    let program = std::env::current_exe()
        .map_err(|error| Failure::system(format!("cannot find my own program file: {error}")))?;
    let (heard, events) = bounded(256);
    let on_signal = heard.clone();
    signals::watch(move |_| on_signal.send(ChatEvent::Signal).is_ok())
        .map_err(|error| Failure::system(format!("cannot watch signals: {error}")))?;

    print::keep_running_on_epipe();
    let hub = start_hub(&program)?;
    let global = if hub.is_some() { of_our_hub()? } else { Global::load(None, None)? };
    let client = Client::new(&global)?;
    let demo = options.command.is_empty();
    let command = if demo {
        vec![program.to_string_lossy().into_owned(), "demo-agent".into()]
    } else {
        options.command.clone()
    };
    let mut runner = start_runner(&program, &options, demo, &command, &global)?;
    let agent = runner.agent.clone();
    let own = agent.clone();
    let tty = std::io::stdin().is_terminal();
    let chat = Chat::new(client, global.clone(), agent, options, tty);
    let outcome = chat.run(&mut runner.process, heard, &events);
    drop(runner);
    if let Some(mut hub) = hub {
        // Others may have come to rely on it.
        let others =
            Client::new(&global).and_then(|client| client.call("GET", path::AGENTS, None)).ok();
        let other = |card: &Value| card["id"] != own.as_str() && super::cards::is_there(card);
        let used = others
            .is_some_and(|answer| answer["agents"].as_array().into_iter().flatten().any(other));
        if used {
            print::line(
                "other agents are connected: the hub stays up (stop it with SIGTERM to the pid in hub/hub.json)",
            );
            std::mem::forget(hub);
        } else {
            hub.end();
        }
    }
    outcome
}

/// Starts a hub unless a relay answers already.
fn start_hub(program: &Path) -> Result<Option<StartedProcess>, Failure> {
    let global = Global::load(None, None)?;
    let client = Client::new(&global)?;
    let is_loopback = client.base.is_loopback();
    match client.health() {
        Ok(_) if global.token.is_some() => return Ok(None),
        // A relay that takes no token of ours is somebody else's: our hub takes another port.
        Ok(_) if is_loopback => {}
        Ok(_) => {
            let text = format!(
                "a relay answers at {}, but there is no token for it; set \"token\" in config.json or AGENT_RELAY_TOKEN",
                global.relay_url
            );
            return Err(Failure::usage(text));
        }
        Err(failure)
            if !client.base.url.contains("127.0.0.1") && !client.base.url.contains("localhost") =>
        {
            return Err(failure);
        }
        Err(_) => {}
    }
    let mut command = Command::new(program);
    command.args(["hub", "--any-port", "--temporary", "--port", &client.base.port.to_string()]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group_of_its_own()
        .env_remove(crate::notify::NOTIFY_SOCKET)
        .spawn()
        .map_err(|error| Failure::system(format!("cannot start the hub: {error}")))?;
    let stdout = child.stdout.take();
    let mut started = StartedProcess { child, what: "hub" };
    let line = stdout.and_then(|stdout| next_line(&mut BufReader::new(stdout)));
    let Some(line) = line else {
        // It has said why on standard error.
        let code = started.child.wait().ok().and_then(|status| status.code()).unwrap_or(1);
        let text = "the hub did not start; its log is in logs/hub.log of the home directory";
        return Err(Failure::new(Kind::of(code.clamp(0, 255) as u8), text));
    };
    if !line.contains(&format!(":{} ", client.base.port)) {
        print::line(&format!("port {} is taken; {}", client.base.port, line.trim()));
    }
    Ok(Some(started))
}

/// The settings with the hub that we have started, wherever it listens: `config.json` is for the
/// one that comes after us.
fn of_our_hub() -> Result<Global, Failure> {
    let mut global = Global::load(None, None)?;
    let url = place::read_info(&global.home)
        .and_then(|info| Some(info.get("url")?.as_str()?.to_string()));
    global.relay_url = url.ok_or_else(|| {
        Failure::system("the hub has started and its hub/hub.json cannot be read")
    })?;
    // A token of another relay in config.json stays there, and is none here.
    if !matches!(Client::new(&global)?.raw("GET", path::AGENTS, None), Ok((200, _))) {
        let file = place::directory(&global.home).join("root-token");
        let root = std::fs::read_to_string(&file)
            .map_err(|error| Failure::system(format!("cannot read {}: {error}", file.display())))?;
        global.token = Some(Secret::new(root.trim().to_string()));
    }
    Ok(global)
}

trait OwnGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    /// Ctrl-C in the terminal is for `up`, which ends its processes in order.
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

struct Runner {
    process: StartedProcess,
    agent: String,
}

fn start_runner(
    program: &Path,
    options: &Up,
    demo: bool,
    agent_command: &[String],
    global: &Global,
) -> Result<Runner, Failure> {
    let mut command = Command::new(program);
    command.args(["run", registry::any_command().name]);
    if let Some(id) = &options.agent_id {
        command.args(["--agent-id", id]);
    }
    if demo {
        command.args(["--label", "demo"]);
    }
    if let Some(mode) = &options.approval {
        command.args(["--approval", mode]);
    }
    command.env("AGENT_RELAY_URL", &global.relay_url);
    if let Some(token) = &global.token {
        command.env("AGENT_RELAY_TOKEN", token.expose());
    }
    command
        .arg("--")
        .args(agent_command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // The runner goes with this process, also after a SIGKILL; its work goes on at the next start.
    os::prepare_child(&mut command, true);
    let mut child = command
        .spawn()
        .map_err(|error| Failure::system(format!("cannot start the runner: {error}")))?;
    let stderr = child.stderr.take();
    let mut process = StartedProcess { child, what: "runner" };
    // The first line names the agent, or says why there is none.
    let mut reader = BufReader::new(stderr.expect("piped above"));
    let first = next_line(&mut reader).unwrap_or_default();
    let agent = first
        .strip_prefix("agent-relay: agent ")
        .and_then(|rest| rest.split(' ').next())
        .map(str::to_string);
    std::thread::spawn(move || {
        while let Some(line) = next_line(&mut reader) {
            print::forward(&line);
        }
    });
    match agent {
        Some(agent) => Ok(Runner { process, agent }),
        None => {
            let code =
                process.child.wait().ok().and_then(|status| status.code()).unwrap_or(1) as u8;
            let text = match first.trim() {
                "" => "the runner ended before it had started",
                text => text.strip_prefix("agent-relay: ").unwrap_or(text),
            };
            let text = text.to_string();
            Err(Failure::new(Kind::of(code), text))
        }
    }
}

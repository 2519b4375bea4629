//! Commands that look after this machine: hub, runners, services, tokens.

use std::net::{IpAddr, SocketAddr};

use argh::{ArgsInfo, FromArgs};

/// Start everything for one agent and chat with it: a hub if none runs, a runner, and this terminal
/// as chat.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "up",
    example = "Chat with the demo agent:\n    agent-relay up",
    example = "Chat with a real agent in the current folder:\n    agent-relay up -- <agent command>",
    example = "One question from a script:\n    agent-relay up --say \"Hello\" </dev/null"
)]
pub struct Up {
    /// send this and exit after the answer; may be given several times
    #[argh(option)]
    pub say: Vec<String>,
    /// agent id (default: made of host, provider and folder)
    #[argh(option)]
    pub agent_id: Option<String>,
    /// approval mode: open, guarded or read-only (default guarded)
    #[argh(option)]
    pub approval: Option<String>,
    /// seconds to wait for an answer without a terminal (default 120)
    #[argh(option, default = "120")]
    pub wait: u64,
    /// command of an ACP agent, after `--` (default: the demo agent)
    #[argh(positional, greedy)]
    pub command: Vec<String>,
}

/// Show the settings files of this machine without their secrets, or change those of a provider.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "config",
    example = "agent-relay config get PROVIDER env",
    example = "agent-relay config set PROVIDER env.HTTPS_PROXY http://proxy:8080",
    example = "A secret from a pipe:\n    agent-relay config set PROVIDER env.API_KEY --stdin <key.txt",
    note = "Without a provider it is about config.json. A value is JSON or else a text; null takes a field away."
)]
pub struct Config {
    /// get (default), set or path; then the provider, a field (env.NAME for one of its variables),
    /// and the value
    #[argh(positional)]
    pub words: Vec<String>,
    /// read the value from standard input
    #[argh(switch)]
    pub stdin: bool,
}

/// Port of a hub, where none is given.
pub const DEFAULT_PORT: u16 = 4850;

/// Where a hub listens: an address, or an address with a port.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Listen {
    /// The address.
    pub address: IpAddr,
    /// The port, if it was given with the address.
    pub port: Option<u16>,
}

impl Default for Listen {
    fn default() -> Listen {
        Listen { address: IpAddr::from([127, 0, 0, 1]), port: None }
    }
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        // The name that every machine has for itself; all others would have to be asked for.
        let text = match text.strip_prefix("localhost") {
            Some(rest) if rest.is_empty() || rest.starts_with(':') => format!("127.0.0.1{rest}"),
            _ => text.to_string(),
        };
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(&text).parse() {
            return Ok(Listen { address, port: None });
        }
        let socket: SocketAddr = text.parse().map_err(|_| {
            "that is no address; give one like 127.0.0.1, 0.0.0.0:4850 or [::1]:4850".to_string()
        })?;
        Ok(Listen { address: socket.ip(), port: Some(socket.port()) })
    }
}

/// Run the relay of this machine in the foreground, or look after it: status, backup FILE, restore
/// FILE, vacuum.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "hub",
    example = "As a service of the user manager:\n    systemd-run --user --unit agent-relay-hub agent-relay hub",
    example = "Its status, and a copy of its data while it runs:\n    agent-relay hub status\n    agent-relay hub backup /backup/hub.sqlite",
    example = "Restore a backup, while no hub runs:\n    agent-relay hub restore /backup/hub.sqlite",
    example = "For other machines, with a certificate of its own:\n    agent-relay hub --listen 0.0.0.0 --tls-cert chain.pem --tls-key key.pem --url https://relay.example:4850",
    note = "Anything but a loopback address needs --tls-cert and --tls-key, or --behind-tls-proxy."
)]
pub struct Hub {
    /// nothing = run; status, backup FILE, restore FILE or vacuum
    #[argh(positional)]
    pub action: Vec<String>,
    /// port (default 4850; 0 = any free one)
    #[argh(option)]
    pub port: Option<u16>,
    /// take any free port when the wanted one is taken
    #[argh(switch)]
    pub any_port: bool,
    /// leave the URL in config.json as it is
    #[argh(switch)]
    pub temporary: bool,
    /// address to listen on, or ADDRESS:PORT (default 127.0.0.1)
    #[argh(option, default = "Listen::default()")]
    pub listen: Listen,
    /// a proxy in front of it handles TLS
    #[argh(switch)]
    pub behind_tls_proxy: bool,
    /// certificate chain, PEM
    #[argh(option)]
    pub tls_cert: Option<String>,
    /// private key of the certificate, PEM
    #[argh(option)]
    pub tls_key: Option<String>,
    /// how clients reach it, for config.json (default: made of address and port)
    #[argh(option)]
    pub url: Option<String>,
    /// print JSON (status)
    #[argh(switch)]
    pub json: bool,
}

/// Supervise one agent. Try `agent-relay run --help`.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "run")]
pub struct Run {
    /// see `agent-relay run --help`
    #[argh(positional, greedy)]
    pub rest: Vec<String>,
}

/// Run the hub or an agent as a service of your user's systemd.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "service",
    example = "agent-relay service install hub",
    example = "A hub with options:\n    agent-relay service install hub -- --port 4860",
    example = "An agent that works in a folder:\n    agent-relay service install web -- <agent> --cwd ~/project",
    example = "agent-relay service remove web",
    note = "The name is the agent id. What follows -- goes to `agent-relay run`. A service is started again after failures, but not after invalid arguments or settings (exit code 2)."
)]
pub struct Service {
    /// install NAME -- what to run, install hub, list, or remove NAME
    #[argh(positional)]
    pub action: Vec<String>,
    /// print JSON, one service a line (list)
    #[argh(switch)]
    pub json: bool,
}

/// Make, list or revoke tokens.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "token",
    example = "For an agent on another machine, for a week:\n    agent-relay token create --agent web-agent --ttl 604800",
    example = "For an agent that gets what is sent to policy:deploy:\n    agent-relay token create --agent deployer --policy deploy",
    example = "agent-relay token list",
    example = "agent-relay token revoke JTI",
    note = "On the hub's own machine its root token is used; elsewhere the token of the settings."
)]
pub struct Token {
    /// create, list, or revoke and an id
    #[argh(positional)]
    pub action: Vec<String>,
    /// create: the agent that the token acts as
    #[argh(option)]
    pub agent: Option<String>,
    /// create: provider-agent (default with --agent), provider-interactive, operator (default) or
    /// orchestrator
    #[argh(option)]
    pub profile: Option<String>,
    /// create: life in seconds (default a day for agents, a year for others)
    #[argh(option)]
    pub ttl: Option<u64>,
    /// create: fewer scopes than the profile has, separated by commas; or further ones: admin
    /// (operator), approve:spawned (agents)
    #[argh(option)]
    pub scopes: Option<String>,
    /// create: a name for it, shown to people
    #[argh(option)]
    pub name: Option<String>,
    /// create: the policy that its agent serves; messages to policy:P go to agents whose token says
    /// so
    #[argh(option)]
    pub policy: Option<String>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Check everything that an agent here needs, and say how to fix what is wrong.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "doctor",
    example = "agent-relay doctor",
    error_code(1, "something is broken")
)]
pub struct Doctor {
    /// print JSON, one check a line
    #[argh(switch)]
    pub json: bool,
}

/// Print shell completions, the manual page or a systemd unit.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "generate",
    example = "agent-relay generate bash >~/.local/share/bash-completion/completions/agent-relay",
    example = "agent-relay generate man | man -l -",
    example = "agent-relay generate unit hub >~/.config/systemd/user/agent-relay-hub.service"
)]
pub struct Generate {
    /// bash, zsh, fish, man or unit
    #[argh(positional)]
    pub what: String,
    /// unit: hub or agent
    #[argh(positional)]
    pub which: Option<String>,
}

/// The built-in demo agent, an ACP agent without a model, on standard input and output.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "demo-agent",
    note = "A message that begins with one of these words makes it do that: work [s], ask, slow [s], flood [MB], garbage, hang, crash, error, child, forget."
)]
pub struct DemoAgent {
    /// where conversations are kept (default <AGENT_RELAY_HOME>/demo)
    #[argh(option)]
    pub state: Option<String>,
    /// offer no session/load
    #[argh(switch)]
    pub no_load: bool,
    /// offer no session/resume
    #[argh(switch)]
    pub no_resume: bool,
}

/// Show the version.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "version")]
pub struct Version {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_a_port() {
        for (text, want) in [
            ("127.0.0.1", Some(("127.0.0.1", None))),
            ("127.0.0.1:4851", Some(("127.0.0.1", Some(4851)))),
            ("0.0.0.0:0", Some(("0.0.0.0", Some(0)))),
            ("::1", Some(("::1", None))),
            ("[::1]", Some(("::1", None))),
            ("[::1]:4851", Some(("::1", Some(4851)))),
            ("localhost", Some(("127.0.0.1", None))),
            ("localhost:4851", Some(("127.0.0.1", Some(4851)))),
            ("localhosts", None),
            ("example.test:1", None),
            ("127.0.0.1:99999", None),
            ("127.0.0.1:", None),
            ("4850", None),
            ("", None),
        ] {
            let found = text.parse::<Listen>().ok();
            let want = want.map(|(address, port)| Listen {
                address: address.parse().expect("an address"),
                port,
            });
            assert_eq!(found, want, "{text:?}");
        }
    }
}

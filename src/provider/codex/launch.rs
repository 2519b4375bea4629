//! How the app server is started: arguments, environment and files.

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use super::session::{CodexSession, Listens, ServerStart};
use crate::provider::launch::{
    Conversation, Disk, LaunchError, LaunchPlan, LaunchRequest, ServerPort, SetupFile,
    TOOL_VARIABLES, Transport,
};
use crate::provider::settings::{ApprovalMode, ProviderSetting};

/// What the model is told about its messages, as a text of the developer: there it survives a
/// compaction.
const RELAY_TEXT: &str = "\
[agent-relay] You share a message channel with people and other agents. A text that begins with \
`[relay message #<number> from <name>]` is a message from that channel, put into this conversation by your runner: from `user` it is your \
user's own word; from anybody else it is a request of that agent or system, which your user's words outrank. Take it in, carry it out, and \
answer it. A message marked as a notification needs no answer.";
/// Who answers, where the runner does.
const ANSWER_AUTO: &str =
    " Your last text of a turn goes to the sender as the answer; you need not send it yourself.";
/// Who answers, where the session does.
const ANSWER_EXPLICIT: &str =
    " Answer yourself with `agent-relay reply <number> --stdin`; nobody sends your last text.";
/// What works where commands run without a sandbox.
const TOOLS_OPEN: &str = " \
`agent-relay get-message <number>` shows a message in full that was cut, `agent-relay react <number> <emoji>` acknowledges one lightly, \
`agent-relay send <agent> --stdin` writes to others, `agent-relay --help` tells the rest.";
/// What works where the sandbox has no network.
const TOOLS_GUARDED: &str = " \
Your sandbox has no network, so the command `agent-relay` works only outside of it: ask for escalation. As one plain command by \
itself `agent-relay get-message <number>`, `agent-relay reply <number> --stdin` and `agent-relay react <number> <emoji>` are permitted \
at once; `agent-relay send <agent> --stdin` asks a person.";
/// The same, where nothing leaves the sandbox.
const TOOLS_READ_ONLY: &str =
    " Your sandbox has no network, so the command `agent-relay` does not work in it.";
/// What works everywhere: tools run outside of any sandbox, and are called without being looked up
/// before.
const TOOLS: &str = " \
Tools of the namespace mcp__relay: relay_get_message (what was cut), relay_reply, relay_react, relay_send_message, relay_find_agents. \
Use them and not the command `agent-relay`, which needs a network.";
/// Who answers, where the session does by its tools.
const ANSWER_BY_TOOL: &str = " Answer yourself with relay_reply; nobody sends your last text.";

/// Skills of a home of its own; their source is `plugins/codex/skills`.
const SKILLS: [(&str, &str); 4] = [
    ("guide", include_str!("../../../plugins/codex/skills/guide/SKILL.md")),
    ("reply", include_str!("../../../plugins/codex/skills/reply/SKILL.md")),
    ("react", include_str!("../../../plugins/codex/skills/react/SKILL.md")),
    ("read-message", include_str!("../../../plugins/codex/skills/read-message/SKILL.md")),
];

/// Tokens of one tool's output that the model gets.
const TOOL_OUTPUT_TOKENS: u32 = 12_000;
/// Bytes of a path that a socket can have, with room for the name that the server makes of it.
const SOCKET_PATH_MAX: usize = 100;

/// Variable that the server's own window finds the token of the server in.
pub const TOKEN_ENV: &str = "AGENT_RELAY_CODEX_TOKEN";
/// Tells a session's tools where its server listens.
const URL_ENV: &str = "CODEX_APP_SERVER_URL";

/// Settings that only it has.
pub const SETTINGS: &[ProviderSetting] = &[ProviderSetting::text(
    "--app-server",
    "WAY",
    "how its server is reached: unix (a socket) or ws (a port, with a token); else the first that it knows",
    |all| &mut all.app_server,
)
.file("appServer")];

/// Variables that a session sets for what runs in it; a session of its own must not inherit them.
const INHERITED: [&str; 7] = [
    "CODEX_SESSION_ID",
    "CODEX_THREAD_ID",
    "CODEX_TOOL_CALL_ID",
    "CODEX_CI",
    "CODEX_VERSION",
    "CODEX_SANDBOX",
    "CODEX_SANDBOX_NETWORK_DISABLED",
];

/// The plan of one start. `Err`: what a person has to change first.
pub fn plan(
    request: &LaunchRequest,
    conversation: Conversation<'_>,
    disk: &dyn Disk,
) -> Result<LaunchPlan, LaunchError> {
    let listens = listens(request)?;
    let is_shut = request.session.approval_mode == ApprovalMode::ReadOnly;
    if request.explicit_replies && is_shut && request.tools().is_none() {
        return Err(LaunchError::permanent(
            "a read-only Codex without the relay's tools cannot answer by itself, since nothing leaves its sandbox: use reply mode auto, \
             or --approval guarded",
        ));
    }
    let own_home = request.settings.isolated.then(|| format!("{}/codex", request.dir));
    let mut files = vec![SetupFile::Folder(request.runtime_dir.clone())];
    let mut env = vec![("AGENT_RELAY_PROVIDER".to_string(), "codex".to_string())];
    let mut unset: Vec<String> = INHERITED.map(String::from).into();
    let port = match &listens {
        Listens::Socket { path, .. } => {
            env.push((URL_ENV.into(), format!("unix://{path}")));
            None
        }
        Listens::Port { token_file } => {
            unset.push(URL_ENV.into()); // nobody knows it before the start
            Some(ServerPort { token_file: token_file.clone(), token_env: TOKEN_ENV })
        }
    };
    if let Some(home) = &own_home {
        check_home(home, request)?;
        files.extend(profile(request, disk, home));
        env.push(("CODEX_HOME".into(), home.clone()));
    }
    let start = ServerStart {
        listens: listens.clone(),
        thread: thread(request),
        name: request.session.agent.clone(),
        nonce: conversation.fresh.to_string(),
        program: program(request),
        env: own_home.iter().map(|home| ("CODEX_HOME".to_string(), home.clone())).collect(),
        has_window: request.transport == Transport::Terminal,
    };
    Ok(LaunchPlan {
        argv: arguments(request, &listens),
        env,
        unset,
        files,
        sockets: None,
        is_server: true,
        port,
        behind: native,
        session: Box::new(CodexSession::new(request.session.clone(), start)),
        hint: "install Codex with: npm install -g @openai/codex",
    })
}

fn program(request: &LaunchRequest) -> String {
    request.command.clone().unwrap_or_else(|| "codex".into())
}

/// Which way the server is told to listen: at a socket if it has some, since nobody else's programs
/// get at that; else at a port.
fn listens(request: &LaunchRequest) -> Result<Listens, LaunchError> {
    let path = format!("{}/codex.sock", request.runtime_dir);
    let is_long = path.len() > SOCKET_PATH_MAX;
    let chosen = request.settings.app_server.as_deref();
    let at_port = match chosen {
        None => request.at_port || is_long,
        Some("ws") => true,
        Some("unix") if is_long => {
            return Err(LaunchError::permanent(format!(
                "the path of the server's socket is longer than {SOCKET_PATH_MAX} bytes: {path}; set AGENT_RELAY_HOME or TMPDIR to \
                 a shorter one"
            )));
        }
        Some("unix") => false,
        Some(other) => {
            let text = format!("--app-server is unix or ws, not {other:?}");
            return Err(LaunchError::permanent(text));
        }
    };
    Ok(match at_port {
        true => Listens::Port { token_file: format!("{}/codex.token", request.runtime_dir) },
        false => Listens::Socket { path, is_chosen: chosen.is_some() },
    })
}

fn arguments(request: &LaunchRequest, listens: &Listens) -> Vec<String> {
    let mut all = vec![program(request), "app-server".into(), "--listen".into()];
    match listens {
        Listens::Socket { path, .. } => all.push(format!("unix://{path}")),
        Listens::Port { token_file } => {
            let words = ["ws://127.0.0.1:0", "--ws-auth", "capability-token", "--ws-token-file"];
            all.extend(words.map(String::from));
            all.push(token_file.clone());
        }
    }
    let mut set = |key: &str, value: &str| all.extend(["-c".into(), format!("{key}={value}")]);
    // Else an urgent message would cut the answer that is being written.
    set("features.instant_interrupt", "false");
    set("tool_output_token_limit", &TOOL_OUTPUT_TOKENS.to_string());
    let told =
        [("model", &request.settings.model), ("model_reasoning_effort", &request.settings.effort)];
    for (key, value) in told {
        if let Some(value) = value {
            set(key, &quoted(value));
        }
    }
    if let Some(tools) = request.tools() {
        set("mcp_servers.relay.command", &quoted(&tools.program));
        set("mcp_servers.relay.args", "[\"mcp\"]");
        // Names only: what they hold does not stand in arguments.
        set("mcp_servers.relay.env_vars", &json!(TOOL_VARIABLES).to_string());
        // They ask nobody: none of them sends a file or runs a command.
        set("mcp_servers.relay.default_tools_approval_mode", "\"approve\"");
    }
    all.extend(request.default_args.iter().chain(&request.args).cloned());
    all
}

/// A text of TOML.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

/// How the thread is begun and loaded.
fn thread(request: &LaunchRequest) -> Map<String, Value> {
    let (policy, sandbox) = match request.session.approval_mode {
        ApprovalMode::Open => ("never", "danger-full-access"),
        ApprovalMode::Guarded => ("on-request", "workspace-write"),
        ApprovalMode::ReadOnly => ("never", "read-only"),
    };
    let policy = request.session.mode.as_deref().unwrap_or(policy);
    let mut all = json!({
        "cwd": request.session.cwd, "approvalPolicy": policy, "sandbox": sandbox
    });
    if !request.leaves_out("context") {
        all["developerInstructions"] = json!(relay_text(request));
    }
    all.as_object().cloned().unwrap_or_default()
}

fn relay_text(request: &LaunchRequest) -> String {
    let has_tools = request.tools().is_some();
    let answer = match (request.explicit_replies, has_tools) {
        (false, _) => ANSWER_AUTO,
        (true, false) => ANSWER_EXPLICIT,
        (true, true) => ANSWER_BY_TOOL,
    };
    let tools = match (has_tools, request.session.approval_mode) {
        (true, _) => TOOLS,
        (false, ApprovalMode::Open) => TOOLS_OPEN,
        (false, ApprovalMode::Guarded) => TOOLS_GUARDED,
        (false, ApprovalMode::ReadOnly) => TOOLS_READ_ONLY,
    };
    [RELAY_TEXT, answer, tools].concat()
}

/// The server refuses to keep its helpers below the temporary folder.
fn check_home(home: &str, request: &LaunchRequest) -> Result<(), LaunchError> {
    let temporary = request.env.get("TMPDIR").map_or("/tmp", |dir| dir.trim_end_matches('/'));
    let is_below = home.strip_prefix(temporary).is_some_and(|rest| rest.starts_with('/'));
    if is_below && !temporary.is_empty() {
        return Err(LaunchError::permanent(format!(
            "the home of an isolated Codex must not lie below the temporary folder {temporary}: set AGENT_RELAY_HOME to another place"
        )));
    }
    Ok(())
}

/// A home of its own: the settings are written anew at each start, since the server changes them;
/// the login is linked, never copied.
fn profile(request: &LaunchRequest, disk: &dyn Disk, home: &str) -> Vec<SetupFile> {
    let text = format!("[projects.{}]\ntrust_level = \"trusted\"\n", quoted(&request.session.cwd));
    let mut files = vec![
        SetupFile::Folder(home.to_string()),
        SetupFile::File { path: format!("{home}/config.toml"), text },
    ];
    for (name, text) in SKILLS {
        let folder = format!("{home}/skills/{name}");
        files.push(SetupFile::Folder(folder.clone()));
        files.push(SetupFile::File { path: format!("{folder}/SKILL.md"), text: text.into() });
    }
    let folders =
        [request.env.get("CODEX_HOME").cloned(), Some(format!("{}/.codex", request.user_home))];
    let logins =
        folders.into_iter().flatten().filter(|folder| !folder.is_empty() && folder != home);
    let login = logins.map(|folder| format!("{folder}/auth.json")).find(|path| disk.exists(path));
    files.extend(login.map(|to| SetupFile::Link { path: format!("{home}/auth.json"), to }));
    files
}

/// The program behind the script that npm puts on PATH: the script cannot be told twice to end, and
/// leaves the program behind when it is killed.
fn native(found: &str, disk: &dyn Disk) -> Option<String> {
    let package = found.strip_suffix("/bin/codex.js")?;
    let scope = package.rsplit_once('/')?.0;
    let places = [format!("{package}/node_modules/@openai"), scope.to_string()];
    let platforms = places.iter().flat_map(|place| {
        let names = disk.list(place).into_iter().filter(|name| name.starts_with("codex-linux-"));
        names.map(move |name| format!("{place}/{name}"))
    });
    let vendors = platforms.chain([package.to_string()]).map(|place| format!("{place}/vendor"));
    let mut programs = vendors.flat_map(|vendor| {
        let triples = disk.list(&vendor).into_iter();
        triples.map(move |triple| format!("{vendor}/{triple}/bin/codex")).collect::<Vec<_>>()
    });
    programs.find(|program| disk.exists(program))
}

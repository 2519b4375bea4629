//! What a session is started with: the runner's arguments, its environment, and the script that
//! brings both together. Whatever may be secret stands in a file of its own, which the runner
//! removes as soon as it has read it, and neither in the script nor in an argument.

use std::collections::BTreeMap;

use serde_json::Value;

use super::options::{SpawnOptions, is_variable};
use crate::secret::Secret;
use crate::wire::control::{ENV_ENVIRONMENT_FILE, ENV_SESSION_LAUNCH, ENV_TOKEN};

/// Places of a user's programs that come before PATH.
const USERS_PLACES: [&str; 3] = [".local/bin", ".bun/bin", ".npm-global/bin"];
/// Variables of ours that mean the same for a session as for its orchestrator.
const KEPT: [&str; 2] = ["AGENT_RELAY_LOG_LEVEL", "AGENT_RELAY_CRASH_AT"];
/// Variables that tell of the orchestrator's own unit or terminal.
const OF_OURSELVES: [&str; 12] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "LISTEN_FDS",
    "LISTEN_PID",
    "TMUX",
    "TMUX_PANE",
];
/// Variables of the table below whose values may hold secrets all the same.
const MAY_BE_SECRET: [&str; 2] = ["AGENT_RELAY_AGENT_PROFILE_JSON", "AGENT_RELAY_WORKSPACE_JSON"];

/// What a session is started with that its options do not say.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Surroundings {
    /// Our program.
    pub program: String,
    /// Root of our files.
    pub home: String,
    /// Home of the user.
    pub user_home: String,
    pub hostname: String,
    pub relay_url: String,
    /// URL of our own interface.
    pub orchestrator_url: String,
    /// Our own environment.
    pub inherited: BTreeMap<String, String>,
    /// What the configuration adds to it.
    pub configured: BTreeMap<String, String>,
}

/// The names and files of one session.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SessionNames {
    pub session: String,
    pub agent_id: String,
    pub label: String,
    pub log_file: String,
    pub runner_info_file: String,
    pub environment_file: String,
    /// Random text of this start: what carries it in its environment belongs to it.
    pub launch_id: String,
    /// The folder with links resolved.
    pub cwd: String,
    pub spawn_request_id: String,
}

/// The command line of the runner, program first. The token never stands there.
pub fn command(about: &Surroundings, names: &SessionNames, options: &SpawnOptions) -> Vec<String> {
    let mut words: Vec<String> = vec![
        about.program.clone(),
        "run".into(),
        options.provider.clone(),
        "--headless".into(),
        "--cwd".into(),
        names.cwd.clone(),
        "--relay-url".into(),
        about.relay_url.clone(),
        "--approval".into(),
        options.approval_mode.clone(),
    ];
    let (tags, capabilities) = (options.tags.join(","), options.capabilities.join(","));
    for (flag, value) in [
        ("--rig", options.rig.as_deref()),
        ("--model", options.model.as_deref()),
        ("--effort", options.effort.as_deref()),
        ("--profile", options.profile.as_deref()),
        ("--label", Some(names.label.as_str())),
        ("--agent-id", Some(names.agent_id.as_str())),
        ("--prompt", options.prompt.as_deref()),
        ("--system-prompt-append", options.system_prompt_append.as_deref()),
        ("--tags", Some(tags.as_str())),
        ("--caps", Some(capabilities.as_str())),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            words.extend([flag.to_string(), value.to_string()]);
        }
    }
    if !options.provider_args.is_empty() {
        words.push("--".into());
        words.extend(options.provider_args.iter().cloned());
    }
    words
}

/// Texts without repetitions, joined by commas.
fn listed<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut all: Vec<&str> = Vec::new();
    for text in texts {
        if !text.is_empty() && !all.contains(&text) {
            all.push(text);
        }
    }
    all.join(",")
}

/// PATH of a session: the user's own places, then ours.
fn path(about: &Surroundings) -> String {
    let home = about.user_home.trim_end_matches('/');
    let own = USERS_PLACES.map(|place| format!("{home}/{place}"));
    let inherited = about.inherited.get("PATH").map(String::as_str).unwrap_or_default();
    let mut parts: Vec<&str> = Vec::new();
    for part in own.iter().map(String::as_str).chain(inherited.split(':')) {
        if !part.is_empty() && !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts.join(":")
}

/// The variables that nobody can override.
fn fixed(
    about: &Surroundings,
    names: &SessionNames,
    options: &SpawnOptions,
) -> Vec<(&'static str, Option<String>)> {
    let json = |record: &Option<serde_json::Map<String, Value>>| {
        record.clone().map(|record| Value::Object(record).to_string())
    };
    let own = ["headless", "dashboard-spawned", about.hostname.as_str()];
    let tags = listed(own.into_iter().chain(options.tags.iter().map(String::as_str)));
    let capabilities = listed(options.capabilities.iter().map(String::as_str));
    let always = |text: &str| Some(text.to_string());
    vec![
        ("PATH", Some(path(about))),
        ("AGENT_RELAY_HOME", always(&about.home)),
        ("AGENT_RELAY_URL", always(&about.relay_url)),
        ("AGENT_RELAY_ORCHESTRATOR_URL", always(&about.orchestrator_url)),
        ("AGENT_RELAY_ARTIFACT_URL", always(&about.relay_url)),
        ("AGENT_RELAY_APPROVAL", always(&options.approval_mode)),
        ("AGENT_RELAY_AGENT_PROFILE", options.profile.clone()),
        ("AGENT_RELAY_AGENT_PROFILE_JSON", json(&options.agent_profile)),
        ("AGENT_RELAY_TAGS", Some(tags)),
        ("AGENT_RELAY_CAPS", always(&capabilities)),
        ("AGENT_RELAY_CAPABILITIES", Some(capabilities)),
        ("AGENT_RELAY_HEADLESS", always("1")),
        ("AGENT_RELAY_LOG_FILE", always(&names.log_file)),
        ("AGENT_RELAY_TMUX_SESSION", always(&names.session)),
        ("AGENT_RELAY_LABEL", always(&names.label)),
        ("AGENT_RELAY_POLICY", options.policy_name.clone()),
        ("AGENT_RELAY_SPAWN_REQUEST_ID", always(&names.spawn_request_id)),
        ("AGENT_RELAY_WORKSPACE_MODE", always(options.workspace_mode())),
        ("AGENT_RELAY_WORKSPACE_JSON", json(&options.workspace)),
        ("AGENT_RELAY_AUTOMATION_ID", options.automation_id.clone()),
        ("AGENT_RELAY_AUTOMATION_RUN_ID", options.automation_run_id.clone()),
        (ENV_SESSION_LAUNCH, always(&names.launch_id)),
    ]
}

/// The environment of a session in two halves: what its script may show, and what stands in a file
/// that only its owner reads. The later layer wins, and the fixed variables over all of them.
pub fn environment(
    about: &Surroundings,
    names: &SessionNames,
    options: &SpawnOptions,
    token: Option<&Secret>,
) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let is_kept = |name: &str| KEPT.contains(&name) || crate::planted::VARIABLES.contains(&name);
    let is_ours = |name: &str| name.starts_with("AGENT_RELAY_") && !is_kept(name);
    let inherited = about.inherited.iter().filter(|(name, _)| {
        !is_ours(name) && !OF_OURSELVES.contains(&name.as_str()) && is_variable(name)
    });
    let profile = options.agent_profile.as_ref().and_then(|profile| profile.get("env"));
    let profile = profile.and_then(Value::as_object).into_iter().flatten();
    let texts = profile.filter_map(|(name, value)| Some((name, value.as_str()?.to_string())));
    let owned = |(name, value): (&String, &String)| (name.clone(), value.clone());
    let mut hidden: BTreeMap<String, String> = inherited.map(owned).collect();
    hidden.extend(token.map(|token| (ENV_TOKEN.to_string(), token.expose().to_string())));
    hidden.extend(about.configured.iter().map(owned));
    hidden.extend(texts.map(|(name, value)| (name.clone(), value)));
    hidden.extend(options.env.iter().map(owned));
    hidden.insert("AGENT_RELAY_RUNNER_INFO_FILE".into(), names.runner_info_file.clone());
    hidden.retain(|name, _| is_variable(name));
    let mut shown = BTreeMap::new();
    for (name, value) in fixed(about, names, options) {
        hidden.remove(name);
        let Some(value) = value else { continue };
        let half = if MAY_BE_SECRET.contains(&name) { &mut hidden } else { &mut shown };
        half.insert(name.to_string(), value);
    }
    shown.insert(ENV_ENVIRONMENT_FILE.into(), names.environment_file.clone());
    (shown, hidden)
}

/// One word for a shell.
pub fn escaped(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/:=@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The script that a session is started by.
pub fn script(shown: &BTreeMap<String, String>, cwd: &str, command: &[String]) -> String {
    let exports: String =
        shown.iter().map(|(name, value)| format!("export {name}={}\n", escaped(value))).collect();
    let words: Vec<String> = command.iter().map(|word| escaped(word)).collect();
    format!("#!/bin/sh\nset -eu\n{exports}cd {}\nexec {}\n", escaped(cwd), words.join(" "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn about() -> Surroundings {
        let pairs = [
            ("PATH", "/usr/bin::/h/.local/bin:/usr/bin"),
            ("AGENT_RELAY_TOKEN", "operator"),
            ("AGENT_RELAY_TOKEN_JTI", "x"),
            ("AGENT_RELAY_LOG_LEVEL", "debug"),
            ("NOTIFY_SOCKET", "/n"),
            ("LANG", "C"),
            ("BASH_FUNC_x%%", "() {}"),
        ];
        Surroundings {
            program: "/bin/agent-relay".into(),
            home: "/h/.agent-relay".into(),
            user_home: "/h".into(),
            hostname: "box".into(),
            relay_url: "http://r".into(),
            orchestrator_url: "http://127.0.0.1:1".into(),
            inherited: pairs.map(|(name, value)| (name.into(), value.into())).into(),
            configured: [("A", "configured"), ("B", "configured"), ("C", "configured")]
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
        }
    }

    fn names() -> SessionNames {
        SessionNames {
            session: "ar-p-web".into(),
            agent_id: "a1".into(),
            label: "web".into(),
            log_file: "/l".into(),
            runner_info_file: "/i".into(),
            environment_file: "/e".into(),
            launch_id: "launch".into(),
            cwd: "/w w".into(),
            spawn_request_id: "s1".into(),
        }
    }

    fn options(told: Value) -> SpawnOptions {
        serde_json::from_value(told).expect("options")
    }

    #[test]
    fn arguments_stand_in_their_order_and_only_if_they_are_set() {
        let all = options(json!({
            "provider": "p", "approvalMode": "open", "model": "m", "effort": "", "prompt": "do it",
            "tags": ["x", "y"], "providerArgs": ["--a", "b"], "systemPromptAppend": "s", "rig": "r",
        }));
        let words = command(&about(), &names(), &all);
        assert_eq!(
            words.join("|"),
            "/bin/agent-relay|run|p|--headless|--cwd|/w w|--relay-url|http://r|--approval|open|--rig|r|--model|m|\
             --label|web|--agent-id|a1|--prompt|do it|--system-prompt-append|s|--tags|x,y|--|--a|b"
        );
    }

    #[test]
    fn later_layers_win_and_fixed_variables_over_all() {
        let told = options(json!({
            "provider": "p", "approvalMode": "guarded", "tags": ["box", "x"], "policyName": "deploy",
            "agentProfile": {"env": {"B": "profile", "C": "profile", "N": 5}},
            "env": {"C": "option", "PATH": "/evil", "AGENT_RELAY_ID": "other"},
        }));
        let token = Secret::new("agent's");
        let (shown, hidden) = environment(&about(), &names(), &told, Some(&token));
        for (name, want) in [
            ("A", Some("configured")),
            ("B", Some("profile")),
            ("C", Some("option")),
            ("N", None),
            ("LANG", Some("C")),
            ("AGENT_RELAY_TOKEN", Some("agent's")),
            ("AGENT_RELAY_TOKEN_JTI", None),
            ("AGENT_RELAY_LOG_LEVEL", Some("debug")),
            ("NOTIFY_SOCKET", None),
            ("BASH_FUNC_x%%", None),
            ("PATH", None),
            ("AGENT_RELAY_RUNNER_INFO_FILE", Some("/i")),
        ] {
            assert_eq!(hidden.get(name).map(String::as_str), want, "{name}");
        }
        for (name, want) in [
            ("PATH", "/h/.local/bin:/h/.bun/bin:/h/.npm-global/bin:/usr/bin"),
            ("AGENT_RELAY_TAGS", "headless,dashboard-spawned,box,x"),
            ("AGENT_RELAY_CAPS", ""),
            ("AGENT_RELAY_POLICY", "deploy"),
            ("AGENT_RELAY_SPAWN_REQUEST_ID", "s1"),
            ("AGENT_RELAY_WORKSPACE_MODE", "inherit"),
            ("AGENT_RELAY_ENVIRONMENT_FILE", "/e"),
        ] {
            assert_eq!(shown.get(name).map(String::as_str), Some(want), "{name}");
        }
        assert!(!shown.contains_key("AGENT_RELAY_AUTOMATION_ID"));
        // A token of its own in the options replaces the one that was made.
        let own = options(json!({"provider": "p", "env": {"AGENT_RELAY_TOKEN": "own"}}));
        let (_, hidden) = environment(&about(), &names(), &own, Some(&token));
        assert_eq!(hidden["AGENT_RELAY_TOKEN"], "own");
    }

    #[test]
    fn no_secret_stands_in_the_script() {
        let told = options(json!({
            "provider": "p", "approvalMode": "open", "env": {"KEY": "s3cret-1"},
            "agentProfile": {"name": "s3cret-2", "env": {"OTHER": "s3cret-3"}},
            "workspace": {"url": "s3cret-4"},
        }));
        let mut about = about();
        about.configured.insert("CONF".into(), "s3cret-5".into());
        about.inherited.insert("VENDOR_KEY".into(), "s3cret-6".into());
        let token = Secret::new("s3cret-7");
        let (shown, hidden) = environment(&about, &names(), &told, Some(&token));
        let text = script(&shown, "/w w", &command(&about, &names(), &told));
        assert!(!text.contains("s3cret"), "{text}");
        let hidden: String = hidden.into_values().collect();
        for number in 1..=7 {
            assert!(hidden.contains(&format!("s3cret-{number}")), "{number}");
        }
        assert!(text.starts_with("#!/bin/sh\nset -eu\nexport "), "{text}");
        assert!(text.ends_with("cd '/w w'\nexec /bin/agent-relay run p --headless --cwd '/w w' --relay-url http://r --approval open --label web --agent-id a1\n"), "{text}");
    }

    #[test]
    fn words_mean_nothing_to_a_shell() {
        for (word, want) in [
            ("a-b_c./:=@9", "a-b_c./:=@9"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", "'it'\\''s'"),
            ("$(x)", "'$(x)'"),
            ("\u{fc}", "'\u{fc}'"),
            ("a\nb", "'a\nb'"),
        ] {
            assert_eq!(escaped(word), want);
        }
    }
}

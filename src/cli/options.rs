//! What can be typed behind `run`: one table for parsing, help, completions and suggestions.

use super::exit::Failure;
use crate::provider::registry;
use crate::provider::settings::{ProviderSettings, Setting, Slot};

/// What happens to an unknown option before `--`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unknown {
    /// It goes to the provider, behind what follows `--`: as under the name of a provider.
    PassOn,
    /// It is an error.
    Refuse,
}

/// What was typed; what was not is filled in from environment and file.
#[derive(Debug, Default)]
pub(super) struct RunArgs {
    pub provider: String,
    pub preset: Option<String>,
    pub cwd: Option<String>,
    pub relay_url: Option<String>,
    pub token: Option<String>,
    pub approval: Option<String>,
    pub label: Option<String>,
    pub agent_id: Option<String>,
    pub prompt: Option<String>,
    pub transport: Option<String>,
    pub profile: Option<String>,
    pub tags: Option<String>,
    pub caps: Option<String>,
    pub headless: bool,
    pub replace: bool,
    pub prompt_again: bool,
    pub quiet: bool,
    pub help: bool,
    /// Settings of the providers.
    pub own: ProviderSettings,
    /// What the provider's program gets.
    pub provider_args: Vec<String>,
}

type RunOption = Setting<RunArgs>;

/// Options that are the same for every provider.
pub(super) const OPTIONS: &[Setting<RunArgs>] = &[
    RunOption::text("--preset", "NAME", "a known agent instead of a command, from the list of presets", |all| &mut all.preset),
    RunOption::text("--cwd", "PATH", "working directory of the provider", |all| &mut all.cwd),
    RunOption::text("--relay-url", "URL", "relay (default http://127.0.0.1:4850)", |all| &mut all.relay_url),
    RunOption::text(
        "--token",
        "TOKEN",
        "relay token; better in AGENT_RELAY_TOKEN or config.json, since others can see arguments",
        |all| &mut all.token,
    ),
    RunOption::text("--approval", "MODE", "open, guarded or read-only (default guarded)", |all| &mut all.approval)
        .env("AGENT_RELAY_APPROVAL")
        .file("defaultApprovalMode"),
    RunOption::text("--label", "NAME", "label that messages can be sent to", |all| &mut all.label).env("AGENT_RELAY_LABEL"),
    RunOption::text(
        "--agent-id",
        "ID",
        "agent id (default: stable, made of host, provider, label or folder)",
        |all| &mut all.agent_id,
    )
    .env("AGENT_RELAY_AGENT_ID"),
    RunOption::text(
        "--prompt",
        "TEXT",
        "first prompt: at a terminal delivered at every start, else once; --prompt-again repeats it",
        |all| &mut all.prompt,
    ),
    RunOption::text(
        "--transport",
        "WAY",
        "how the provider is talked to: tmux, stream or terminal (default: terminal where you sit at one, else the first way of the provider)",
        |all| &mut all.transport,
    )
    .env("AGENT_RELAY_TRANSPORT")
    .file("transport"),
    RunOption::text("--profile", "NAME", "profile, for the record", |all| &mut all.profile).env("AGENT_RELAY_AGENT_PROFILE"),
    RunOption::text("--tags", "A,B", "further tags", |all| &mut all.tags),
    RunOption::text("--caps", "A,B", "further capabilities", |all| &mut all.caps),
    RunOption::switch("--headless", "no terminal of yours is used; the agent is marked as headless", |all| &mut all.headless),
    RunOption::switch("--replace", "ask a runner of the same agent on this machine to stop first", |all| &mut all.replace),
    RunOption::switch("--prompt-again", "deliver the first prompt at this start even if it was delivered before", |all| {
        &mut all.prompt_again
    }),
    RunOption::switch("--quiet", "no lines on standard error but errors", |all| &mut all.quiet),
    RunOption::switch("--help", "this text", |all| &mut all.help),
];

/// An option that is taken out before the others are read.
const AS_OPERATOR: HelpLine = HelpLine {
    flag: "--as-operator",
    value: "",
    about: "inside an agent's session: start as outside of it, with your own settings",
    provider: None,
};

/// An option as help, completions and the manual show it.
#[derive(Clone, Copy)]
pub(super) struct HelpLine {
    pub flag: &'static str,
    /// What its value is called; empty for a switch.
    pub value: &'static str,
    about: &'static str,
    /// The provider that has it alone.
    provider: Option<&'static str>,
}

impl HelpLine {
    fn of<T>(setting: &Setting<T>, provider: Option<&'static str>) -> Option<HelpLine> {
        let Setting { flag, value, about, .. } = setting;
        (!flag.is_empty()).then_some(HelpLine { flag, value, about, provider })
    }

    /// What it does, and for which provider.
    pub fn about(&self) -> String {
        let provider = self.provider.map(|name| format!(" ({name})"));
        format!("{}{}", self.about, provider.unwrap_or_default())
    }
}

/// All options, those of single providers behind the others.
pub(super) fn options() -> impl Iterator<Item = HelpLine> {
    let common = OPTIONS.iter().filter_map(|setting| HelpLine::of(setting, None));
    let own =
        registry::settings().filter_map(|(provider, setting)| HelpLine::of(setting, provider));
    common.chain([AS_OPERATOR]).chain(own)
}

/// The field of an option.
fn slot<'a>(args: &'a mut RunArgs, flag: &str) -> Option<Slot<'a>> {
    if let Some(setting) = OPTIONS.iter().find(|setting| setting.flag == flag) {
        return Some(setting.slot(args));
    }
    let (_, setting) = registry::settings().find(|(_, setting)| setting.flag == flag)?;
    Some(setting.slot(&mut args.own))
}

/// Reads what stands behind `run`; what follows `--` is the provider's.
pub(super) fn parse(
    default_provider: &str,
    arguments: &[String],
    unknown: Unknown,
) -> Result<RunArgs, Failure> {
    let mut args = RunArgs { provider: default_provider.into(), ..Default::default() };
    let split = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
    args.provider_args = arguments.get(split + 1..).unwrap_or_default().to_vec();
    let mut passed_on = Vec::new();
    let mut words = arguments[..split].iter().peekable();
    while let Some(word) = words.next() {
        let flag = match word.as_str() {
            "--approval-mode" => "--approval",
            "-h" => "--help",
            word => word,
        };
        match slot(&mut args, flag).filter(|_| flag.starts_with('-')) {
            Some(Slot::Text(field)) => match words.next_if(|value| !value.is_empty()) {
                // The next word is the value whatever it looks like; without one the option is not
                // recognised.
                Some(value) => *field = Some(value.clone()),
                None if unknown == Unknown::PassOn => passed_on.push(word.clone()),
                None => {
                    return Err(Failure::usage(format!(
                        "{word} needs a value; try `agent-relay run --help`"
                    )));
                }
            },
            Some(Slot::Switch(field)) => {
                *field = true;
                if args.help {
                    return Ok(args);
                }
            }
            Some(Slot::Folders(_)) | None if registry::is_provider(word) => {
                args.provider = word.clone()
            }
            Some(Slot::Folders(_)) | None if unknown == Unknown::PassOn => {
                passed_on.push(word.clone())
            }
            Some(Slot::Folders(_)) | None => return Err(Failure::usage(not_known(word))),
        }
    }
    args.provider_args.extend(passed_on);
    Ok(args)
}

/// Says what was probably meant.
fn not_known(word: &str) -> String {
    if let Some((flag, value)) = word.split_once('=')
        && options().any(|option| option.flag == flag && !option.value.is_empty())
    {
        return format!("write {flag} {value} instead of {word}");
    }
    let near = options()
        .map(|option| (distance(option.flag, word), option.flag))
        .min()
        .filter(|(edits, _)| *edits <= 3);
    let has = |provider: &&registry::Provider| {
        (provider.presets)().iter().any(|preset| preset.name == word)
    };
    let meant = match near {
        Some((_, flag)) => format!("did you mean {flag}?"),
        None if word.starts_with('-') => "options of the provider's command come after `--`".into(),
        None => match registry::PROVIDERS.iter().find(has) {
            Some(provider) => {
                format!("for that agent say `agent-relay run {} --preset {word}`", provider.name)
            }
            None => format!(
                "the provider must be one of: {}; its command comes after `--`",
                registry::names()
            ),
        },
    };
    format!("unknown argument {word:?} before `--`: {meant}")
}

/// Edits between two words.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let best = (corner + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

/// The help text of `run`, also under the name of a provider.
pub(super) fn help(name: &str) -> String {
    let mut text = format!(
        "Usage: {name} [options] [-- <command> [arguments]]\n\nSupervises one agent and connects it to the relay.\n\nProviders:\n"
    );
    for provider in registry::PROVIDERS {
        text.push_str(&format!("  {:<24}{}\n", provider.name, provider.about));
    }
    for provider in registry::PROVIDERS.iter().filter(|provider| !(provider.presets)().is_empty()) {
        text.push_str(&format!("\nPresets of {}:\n", provider.name));
        for preset in (provider.presets)() {
            text.push_str(&format!(
                "  {:<24}{}: {}\n",
                preset.name,
                preset.command.join(" "),
                preset.about
            ));
        }
    }
    text.push_str("\nOptions:\n");
    for option in options() {
        let shown = format!("{} {}", option.flag, option.value);
        text.push_str(&format!("  {:<31}{}\n", shown.trim_end(), option.about()));
    }
    text.push_str("\nExamples:\n");
    for line in examples() {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(
        "\nExit codes: 0 stopped as asked, 1 the provider failed for good, \
         2 invalid arguments or configuration, 3 the other side cannot be reached, 70 a bug, \
         71 the system refused something at the start (disk, descriptors, memory, permissions): trying again may help.",
    );
    text
}

/// Whole command lines, some of every provider.
pub(super) fn examples() -> impl Iterator<Item = String> {
    let of = |provider: &'static registry::Provider| {
        provider
            .examples
            .iter()
            .map(|arguments| format!("agent-relay run {} {arguments}", provider.name))
    };
    registry::PROVIDERS.iter().flat_map(of)
}

/// A short command that starts a known agent.
pub(super) fn example() -> String {
    format!("agent-relay run {}", example_arguments())
}

/// What stands behind `run` in [`example`].
pub(super) fn example_arguments() -> String {
    let provider = registry::any_command();
    let preset = (provider.presets)().first().map_or("", |preset| preset.name);
    format!("{} --preset {preset}", provider.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_string).collect()
    }

    #[test]
    fn arguments_are_split_and_passed_on() {
        let line = "--cwd /x --odd --label claude acp --headless -- a --b -- c";
        let args = parse("codex", &words(line), Unknown::PassOn).expect("parses");
        assert_eq!(args.provider, "acp");
        assert_eq!((args.label.as_deref(), args.cwd.as_deref()), (Some("claude"), Some("/x")));
        assert_eq!(args.provider_args, words("a --b -- c --odd"));
        assert!(args.headless);
        let args = parse("codex", &words("--label"), Unknown::PassOn).expect("passes on");
        assert_eq!(args.provider_args, ["--label"]);
    }

    #[test]
    fn every_option_of_every_provider_is_read() {
        for option in options().filter(|option| option.flag != AS_OPERATOR.flag) {
            let line = [option.flag.to_string(), "value".into()];
            let line = if option.value.is_empty() { &line[..1] } else { &line[..] };
            let args = parse("x", line, Unknown::Refuse)
                .unwrap_or_else(|failure| panic!("{}", failure.text));
            assert_ne!(
                format!("{args:?}"),
                format!("{:?}", parse("x", &[], Unknown::Refuse).expect("nothing")),
                "{}",
                option.flag
            );
            assert!(
                help("x").contains(option.flag) && !option.about().is_empty(),
                "{}",
                option.flag
            );
        }
        assert!(parse("x", &words("--as-operator"), Unknown::Refuse).is_err(), "taken out before");
    }

    #[test]
    fn unknown_words_are_refused_with_a_hint() {
        for (line, hint) in [
            ("acp --lable x", "did you mean --label?"),
            ("acp --label=x", "write --label x instead"),
            ("acp --dangerous", "after `--`"),
            ("opencode", "--preset opencode"),
            ("nobody", "must be one of: claude, codex, acp"),
            ("acp --cwd", "--cwd needs a value"),
        ] {
            let failure = parse("", &words(line), Unknown::Refuse).expect_err(line);
            assert!(failure.text.contains(hint), "{line}: {}", failure.text);
            assert_eq!(failure.code(), 2);
        }
    }
}

//! `generate`: shell completions, the manual page and a systemd unit, made from the table of
//! commands (`cli::args`).

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind};

use super::args::{Top, with_examples};
use super::exit::{Failure, OK, Outcome};
use super::options::{self, HelpLine};
use super::print;
use crate::provider::registry::PROVIDERS;
use crate::provider::text::shell_quoted;

/// `generate`
pub fn generate(what: &str, which: Option<&str>) -> Outcome {
    if let Some(more) = which.filter(|_| what != "unit") {
        return Err(Failure::usage(format!(
            "{more:?} is too much; see `agent-relay generate --help`"
        )));
    }
    let text = match what {
        "bash" => bash(),
        "zsh" => zsh(),
        "fish" => fish(),
        "man" => man(),
        "unit" => super::service::generate(which)?,
        other => {
            return Err(Failure::usage(format!(
                "cannot generate {other:?}; it can be bash, zsh, fish, man or unit"
            )));
        }
    };
    print::trusted(text.trim_end());
    Ok(OK)
}

struct OptionEntry {
    /// With its dashes.
    flag: String,
    /// Name of the value; empty: a switch.
    value: String,
    about: String,
}

struct Positional {
    name: String,
    about: String,
}

/// One command as completions and manual need it.
struct Entry {
    name: String,
    about: String,
    options: Vec<OptionEntry>,
    positionals: Vec<Positional>,
    examples: Vec<String>,
    notes: Vec<String>,
}

fn entries() -> Vec<Entry> {
    let top = Top::get_args_info();
    let mut all: Vec<Entry> = top.commands.iter().map(|command| entry(&command.command)).collect();
    // The options of `run` stand in its own table.
    if let Some(run) = all.iter_mut().find(|entry| entry.name == "run") {
        let shown = |option: HelpLine| OptionEntry {
            flag: option.flag.to_string(),
            value: option.value.to_string(),
            about: option.about(),
        };
        run.options = options::options().map(shown).collect();
        let providers =
            PROVIDERS.iter().map(|provider| format!("{}: {}", provider.name, provider.about));
        run.positionals = vec![
            Positional { name: "provider".into(), about: providers.collect::<Vec<_>>().join("; ") },
            Positional { name: "-- command".into(), about: "what to run".into() },
        ];
        run.examples = options::examples().collect();
    }
    all
}

fn entry(info: &CommandInfoWithArgs) -> Entry {
    let option = |flag: &FlagInfo<'_>| {
        let value = match &flag.kind {
            FlagInfoKind::Switch => String::new(),
            FlagInfoKind::Option { arg_name } => arg_name.to_string(),
        };
        let (flag, about) = (flag.long.to_string(), flag.description.to_string());
        OptionEntry { flag, value, about }
    };
    Entry {
        name: info.name.to_string(),
        about: info.description.to_string(),
        options: info
            .flags
            .iter()
            .filter(|flag| !flag.hidden && flag.long != "--help")
            .map(option)
            .collect(),
        positionals: info
            .positionals
            .iter()
            .map(|one| Positional {
                name: one.name.to_string(),
                about: one.description.to_string(),
            })
            .collect(),
        examples: info.examples.iter().map(|text| with_examples(text)).collect(),
        notes: info.notes.iter().map(|text| text.to_string()).collect(),
    }
}

/// Words that a command knows beyond its options.
fn words(command: &str) -> Vec<&'static str> {
    let words: &[&str] = match command {
        "hub" => &["status", "backup", "restore", "vacuum"],
        "run" => return PROVIDERS.iter().map(|provider| provider.name).collect(),
        "tasks" => &["show", "start", "block", "done", "fail", "cancel", "reopen"],
        "approvals" => &["approve", "approve-session", "deny", "abort"],
        "token" => &["create", "list", "revoke"],
        "hook" => return super::hook::events(),
        "generate" => &["bash", "zsh", "fish", "man", "unit", "hub", "agent"],
        "service" => &["install", "list", "remove", "hub"],
        _ => &[],
    };
    words.to_vec()
}

/// Commands whose first argument is an agent.
const OF_AGENT: [&str; 4] = ["send", "status", "command", "label"];

fn bash() -> String {
    let mut text = String::from(
        "# bash completion of agent-relay; put it into ~/.local/share/bash-completion/completions/agent-relay\n_agent_relay() {\n  \
         local cur=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} words= agents= id=\n  if [ \"$COMP_CWORD\" = 1 ]; then\n    words=\"",
    );
    let all = entries();
    text.push_str(&all.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(" "));
    text.push_str("\"\n  else\n    case $command in\n");
    for entry in &all {
        let options = entry
            .options
            .iter()
            .map(|option| option.flag.as_str())
            .filter(|flag| *flag != "--help");
        let list =
            options.chain(["--help"]).chain(words(&entry.name)).collect::<Vec<_>>().join(" ");
        let agents = if OF_AGENT.contains(&entry.name.as_str()) {
            "; [ \"$COMP_CWORD\" = 2 ] && agents=1"
        } else {
            ""
        };
        text.push_str(&format!("      {}) words=\"{list}\"{agents} ;;\n", entry.name));
    }
    // Ids are other people's texts: they are compared, never expanded.
    text.push_str(
        "    esac\n  fi\n  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n  if [ -n \"$agents\" ]; then\n    \
         while IFS= read -r id; do\n      [[ $id == \"$cur\"* ]] && COMPREPLY+=(\"$(printf '%q' \"$id\")\")\n    \
         done < <(agent-relay agents --ids 2>/dev/null)\n  fi\n}\ncomplete -o default -F _agent_relay agent-relay\n",
    );
    text
}

fn zsh() -> String {
    let mut text = String::from(
        "#compdef agent-relay\n# zsh completion of agent-relay\n_agent_relay() {\n  local -a commands\n  commands=(\n",
    );
    let all = entries();
    for entry in &all {
        let line = format!("{}:{}", entry.name, entry.about.replace(':', "\\:"));
        text.push_str(&format!("    {}\n", shell_quoted(&line)));
    }
    text.push_str("  )\n  if (( CURRENT == 2 )); then _describe command commands; return; fi\n  case $words[2] in\n");
    for entry in &all {
        text.push_str(&format!("    {}) _arguments", entry.name));
        for OptionEntry { flag, value, about } in &entry.options {
            let about = about.replace(['[', ']'], "").replace(':', " ");
            let value = if value.is_empty() { String::new() } else { format!(":{value}:_default") };
            text.push_str(&format!(" {}", shell_quoted(&format!("{flag}[{about}]{value}"))));
        }
        let words = words(&entry.name);
        let rest = if words.is_empty() {
            "*::_default".to_string()
        } else {
            format!("*:word:({})", words.join(" "))
        };
        text.push_str(&format!(" '{rest}' ;;\n"));
    }
    text.push_str("  esac\n}\n_agent_relay \"$@\"\n");
    text
}

fn fish() -> String {
    let mut text = String::from("# fish completion of agent-relay\ncomplete -c agent-relay -f\n");
    for entry in entries() {
        let name = &entry.name;
        text.push_str(&format!(
            "complete -c agent-relay -n __fish_use_subcommand -a {name} -d {}\n",
            shell_quoted(&entry.about)
        ));
        for OptionEntry { flag, value, about } in &entry.options {
            let takes = if value.is_empty() { "" } else { " -r" };
            let option = flag.trim_start_matches('-');
            text.push_str(&format!(
                "complete -c agent-relay -n '__fish_seen_subcommand_from {name}' -l {option}{takes} -d {}\n",
                shell_quoted(about)
            ));
        }
        if !words(name).is_empty() {
            text.push_str(&format!(
                "complete -c agent-relay -n '__fish_seen_subcommand_from {name}' -a '{}'\n",
                words(name).join(" ")
            ));
        }
    }
    text
}

/// For roff: no line may begin with a dot, and backslashes and minus signs are said as such.
fn roff(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            c if c.is_ascii() => escaped.push(c),
            c => escaped.push_str(&format!("\\[u{:04X}]", c as u32)),
        }
    }
    let line = |line: &str| {
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_string() }
    };
    escaped.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn man() -> String {
    let top = Top::get_args_info();
    let mut text = format!(
        ".TH AGENT\\-RELAY 1 \"\" \"agent\\-relay {}\" \"User Commands\"\n.SH NAME\nagent\\-relay \\- {}\n.SH SYNOPSIS\n.B agent\\-relay\n\
         .I command\n[options]\n.SH DESCRIPTION\n{}\n.SH COMMANDS\n",
        crate::wire::VERSION,
        roff("keeps coding agents alive and reachable"),
        roff(top.description)
    );
    for entry in entries() {
        let positionals: Vec<String> =
            entry.positionals.iter().map(|one| format!("[{}]", one.name)).collect();
        text.push_str(&format!(
            ".SS \"{} {}\"\n{}\n",
            roff(&entry.name),
            roff(&positionals.join(" ")),
            roff(&entry.about)
        ));
        for Positional { name, about } in
            entry.positionals.iter().filter(|one| !one.about.is_empty())
        {
            text.push_str(&format!(".TP\n.I {}\n{}\n", roff(name), roff(about)));
        }
        for OptionEntry { flag, value, about } in &entry.options {
            text.push_str(&format!(".TP\n.B {} {}\n{}\n", roff(flag), roff(value), roff(about)));
        }
        for note in &entry.notes {
            text.push_str(&format!(".PP\n{}\n", roff(note)));
        }
        if !entry.examples.is_empty() {
            text.push_str(&format!(
                ".PP\nExamples:\n.nf\n{}\n.fi\n",
                roff(&entry.examples.join("\n"))
            ));
        }
    }
    text.push_str(".SH EXIT STATUS\n");
    for code in top.error_codes {
        text.push_str(&format!(".TP\n.B {}\n{}\n", code.code, roff(code.description)));
    }
    text.push_str(&format!(
        ".SH ENVIRONMENT\n.TP\n.B AGENT_RELAY_HOME\n{}\n.TP\n.B AGENT_RELAY_URL\n{}\n.TP\n.B AGENT_RELAY_TOKEN\n{}\n",
        roff("folder of all data (default ~/.agent-relay)"),
        roff("the relay (default: relayUrl of config.json, else http://127.0.0.1:4850)"),
        roff("token (default: token of config.json)")
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_option_is_everywhere() {
        let all = entries();
        assert!(all.len() > 20);
        let texts = [bash(), zsh(), fish()];
        let manual = man();
        for entry in &all {
            for text in &texts {
                assert!(text.contains(&entry.name), "{}", entry.name);
            }
            assert!(
                !entry.about.is_empty()
                    && manual.contains(&format!(".SS \"{} ", roff(&entry.name))),
                "{}",
                entry.name
            );
            for provider in PROVIDERS.iter().filter(|_| entry.name == "run") {
                assert!(
                    texts.iter().all(|text| text.contains(provider.name))
                        && manual.contains(provider.name)
                );
            }
            for OptionEntry { flag, .. } in &entry.options {
                assert!(
                    texts[0].contains(flag) && manual.contains(&roff(flag)),
                    "{} {flag}",
                    entry.name
                );
            }
        }
        assert!(manual.lines().all(|line| !line.starts_with('.')
            || line.starts_with(".T")
            || line.starts_with(".S")
            || line.starts_with(".B")
            || line.starts_with(".I")
            || line.starts_with(".P")
            || line.starts_with(".nf")
            || line.starts_with(".fi")));
    }
}

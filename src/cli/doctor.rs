//! `doctor`: everything that an agent on this machine needs, one line each, with the cure.

mod relay;
mod runners;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde_json::json;

use super::args::Doctor;
use super::exit::{NO, OK, Outcome};
use super::{health, print};
use crate::config::{Global, ProviderConfig, env};
use crate::os;
use crate::provider::registry::PROVIDERS;

/// A program may take this long to tell its version.
const VERSION_TIME: Duration = Duration::from_secs(10);
/// Free space below this is a warning.
const FREE_BYTES_MIN: u64 = 200 << 20;
/// Oldest version of tmux that works.
const TMUX_MIN: (u32, u32) = (3, 2);

#[derive(Clone, Copy, PartialEq)]
enum Grade {
    Fine,
    /// Works, but not everything.
    Weak,
    Broken,
}

struct Finding {
    grade: Grade,
    check: &'static str,
    found: String,
    cure: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn fine(&mut self, check: &'static str, found: impl Into<String>) {
        self.0.push(Finding {
            grade: Grade::Fine,
            check,
            found: found.into(),
            cure: String::new(),
        });
    }

    fn weak(&mut self, check: &'static str, found: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Finding { grade: Grade::Weak, check, found: found.into(), cure: cure.into() });
    }

    fn broken(&mut self, check: &'static str, found: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Finding {
            grade: Grade::Broken,
            check,
            found: found.into(),
            cure: cure.into(),
        });
    }
}

/// `doctor`
pub fn doctor(options: &Doctor) -> Outcome {
    let mut findings = Findings::default();
    match Global::load(None, None) {
        Ok(global) => {
            files(&mut findings, &global);
            stores(&mut findings, &global);
            provider_files(&mut findings, &global);
            relay::check(&mut findings, &global);
            runners::check(&mut findings, &global);
        }
        Err(error) => findings.broken(
            "settings",
            error.to_string(),
            "fix or remove the file; see `agent-relay --help`",
        ),
    }
    providers(&mut findings);
    login(&mut findings);
    tmux(&mut findings);
    systemd(&mut findings);
    let broken = findings.0.iter().any(|finding| finding.grade == Grade::Broken);
    for finding in &findings.0 {
        let word = match finding.grade {
            Grade::Fine => "ok",
            Grade::Weak => "warn",
            Grade::Broken => "FAIL",
        };
        if options.json {
            let cure = Some(&finding.cure).filter(|cure| !cure.is_empty());
            print::json(
                &json!({"check": finding.check, "grade": word.to_lowercase(), "found": finding.found, "cure": cure}),
            );
            continue;
        }
        print::line(&format!("{word:<5} {:<10} {}", finding.check, finding.found));
        if !finding.cure.is_empty() {
            print::line(&format!("                 fix: {}", finding.cure));
        }
    }
    Ok(if broken { NO } else { OK })
}

fn files(findings: &mut Findings, global: &Global) {
    let home = &global.home;
    let shown = home.display();
    if let Err(error) = os::make_private_dir(home) {
        return findings.broken(
            "home",
            format!("{shown} cannot be made: {error}"),
            "set AGENT_RELAY_HOME to a folder that you may write",
        );
    }
    let probe = home.join(format!(".doctor-{}", std::process::id()));
    let written = std::fs::write(&probe, "x");
    let _ = std::fs::remove_file(&probe);
    match written {
        Ok(()) => findings.fine("home", shown.to_string()),
        Err(error) => findings.broken(
            "home",
            format!("{shown} cannot be written: {error}"),
            "free space there, or set AGENT_RELAY_HOME",
        ),
    }
    modes(findings, home);
    let free = os::free_bytes(home).unwrap_or(u64::MAX);
    let told = format!("{:.1} GB free", free as f64 / 1e9);
    if free >= FREE_BYTES_MIN {
        findings.fine("disk", told)
    } else {
        findings.broken(
            "disk",
            told,
            format!("free space on the disk of {shown}; stores stop taking messages without it"),
        )
    }
}

/// Who may read our secrets, and who could put other files in our place.
fn modes(findings: &mut Findings, home: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode =
        |path: &Path| std::fs::metadata(path).map(|meta| meta.permissions().mode()).unwrap_or(0);
    let secrets = ["config.json", "hub/root-token", "hub/hub.sqlite", "hub", "agents"]
        .map(|name| home.join(name));
    let wide: Vec<String> = secrets
        .iter()
        .filter(|path| mode(path) & 0o077 != 0)
        .map(|path| path.display().to_string())
        .collect();
    let shared: Vec<String> = home
        .ancestors()
        .filter(|path| mode(path) & 0o1022 == 0o020)
        .map(|path| path.display().to_string())
        .collect();
    if !wide.is_empty() {
        findings.broken(
            "modes",
            format!("others may read {}", wide.join(", ")),
            format!("chmod go-rwx {}", wide.join(" ")),
        );
    } else if !shared.is_empty() {
        let cure =
            format!("chmod g-w {}, unless you trust everybody in that group", shared.join(" "));
        findings.weak("modes", format!("a group may write {}", shared.join(", ")), cure);
    } else if let Some(folder) = os::foreign_folder(home).map(Path::display) {
        let found = format!(
            "{folder} belongs to another user, who can put other files in the place of ours"
        );
        findings.weak("modes", found, "set AGENT_RELAY_HOME to a folder below your own");
    } else {
        findings.fine("modes", "only you can read tokens and stores, or put others in their place");
    }
}

/// The stores of this home, whether or not anybody has them open.
fn stores(findings: &mut Findings, global: &Global) {
    let until = Instant::now() + health::BUDGET;
    let hub = health::hub(&global.home, until).into_iter().map(|seen| ("hub store", seen));
    let agents = health::agents(&global.home, until).into_iter().map(|seen| ("stores", seen));
    for (check, seen) in hub.chain(agents) {
        match seen.grade {
            health::Grade::Fine => findings.fine(check, seen.found),
            health::Grade::Weak => findings.weak(check, seen.found, seen.cure),
            health::Grade::Broken => findings.broken(check, seen.found, seen.cure),
        }
    }
}

/// The first file of that name in PATH that can be run.
fn find_program(name: &str) -> Option<String> {
    crate::edge::provider::find_command(name, &[])
}

/// Runs a program to its end, bounded; its first line.
fn first_line(program: &str, arguments: &[&str], limit: Duration) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    os::prepare_child(&mut command, true);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let outcome = read_first_line(&mut child, limit);
    // Whatever it started must not stay, and must not hold us: updaters like to inherit the output.
    os::kill_group(child.id(), rustix::process::Signal::KILL);
    let _ = child.wait();
    outcome
}

/// Reads until a line is there, the output ends, or the time is over.
fn read_first_line(child: &mut std::process::Child, limit: Duration) -> Result<String, String> {
    let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("its output cannot be read".into());
    };
    let until = Instant::now() + limit;
    let (mut texts, mut open) = ([Vec::new(), Vec::new()], [true, true]);
    let line = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes)
            .trim_start()
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_string()
    };
    while open[0] || (open[1] && texts[0].is_empty()) {
        let ready = {
            let mut fds =
                [PollFd::new(&stdout, PollFlags::IN), PollFd::new(&stderr, PollFlags::IN)];
            let wanted = if open[1] { &mut fds[..] } else { &mut fds[..1] };
            os::wait(wanted, Some(until.saturating_duration_since(Instant::now())));
            [open[0] && os::is_ready(&fds[0]), open[1] && os::is_ready(&fds[1])]
        };
        if !ready[0] && !ready[1] {
            return Err(format!("it did not answer within {} s", limit.as_secs_f32()));
        }
        let mut piece = [0u8; 4096];
        for (at, pipe) in [&mut stdout as &mut dyn Read, &mut stderr]
            .into_iter()
            .enumerate()
            .filter(|(at, _)| ready[*at])
        {
            let size = pipe.read(&mut piece).unwrap_or(0);
            texts[at].extend_from_slice(&piece[..size]);
            open[at] = size > 0 && texts[at].len() < 65_536;
        }
        if texts[0].contains(&b'\n') && !line(&texts[0]).is_empty() {
            break;
        }
    }
    Ok(texts.iter().map(|text| line(text)).find(|text| !text.is_empty()).unwrap_or_default())
}

fn providers(findings: &mut Findings) {
    let mut found = 0;
    let own = PROVIDERS.iter().filter_map(|provider| {
        provider.program.map(|(program, version)| (provider.name, program, version))
    });
    let presets = PROVIDERS.iter().flat_map(|provider| (provider.presets)());
    let presets =
        presets.filter_map(|preset| Some((preset.name, *preset.command.first()?, preset.version)));
    for (name, program, version) in
        own.chain(presets).filter(|(_, program, _)| *program != "agent-relay")
    {
        let Some(path) = find_program(program) else { continue };
        found += 1;
        let tested = if version.is_empty() {
            "not tested here".to_string()
        } else {
            format!("tested: {version}")
        };
        match first_line(&path, &["--version"], VERSION_TIME) {
            Ok(version) => {
                findings.fine("provider", format!("{name}: {path} {version} ({tested})"))
            }
            Err(error) => findings.weak(
                "provider",
                format!("{name}: {path}: {error}"),
                format!("run `{program} --version` by hand"),
            ),
        }
    }
    if found == 0 {
        let cure = "install one, for example `npm install -g opencode-ai`; `agent-relay run --help` lists the presets";
        findings.weak("provider", "no known agent is in PATH", cure);
    }
}

/// A provider may start without a login and look ready; only its first turn fails.
fn login(findings: &mut Findings) {
    for provider in PROVIDERS {
        let Some(login) = provider.login.as_ref().filter(|_| {
            provider.program.is_some_and(|(program, _)| find_program(program).is_some())
        }) else {
            continue;
        };
        let usual = os::user_home().map(|home| home.join(login.folder));
        let folders = [env(login.folder_env).map(PathBuf::from), usual];
        let linked = folders.iter().flatten().any(|folder| folder.join(login.file).is_file());
        match (linked, login.env.iter().find(|name| env(name).is_some())) {
            (true, _) => findings.fine("login", format!("{}: logged in", provider.name)),
            (false, Some(name)) => {
                findings.fine("login", format!("{}: {name} is set", provider.name))
            }
            (false, None) => findings.weak(
                "login",
                format!("{}: neither a login nor a key was found here", provider.name),
                login.cure,
            ),
        }
    }
}

fn provider_files(findings: &mut Findings, global: &Global) {
    for provider in PROVIDERS {
        match ProviderConfig::load(&global.home, provider.name) {
            Ok(config) => {
                for warning in config.warnings {
                    findings.weak(
                        "settings",
                        warning,
                        format!("see providers/{}.json in the README", provider.name),
                    );
                }
            }
            Err(error) => findings.broken("settings", error.to_string(), "fix or remove the file"),
        }
    }
}

fn tmux(findings: &mut Findings) {
    let cure =
        "sudo apt-get install tmux (3.2 or newer); agents on standard input and output do without";
    let Some(path) = find_program("tmux") else {
        return findings.weak("tmux", "not installed", cure);
    };
    let version = first_line(&path, &["-V"], VERSION_TIME).unwrap_or_default();
    let mut numbers = version.trim_start_matches(|c: char| !c.is_ascii_digit()).split('.');
    let mut number = || -> u32 {
        numbers
            .next()
            .map(|n| n.chars().take_while(char::is_ascii_digit).collect::<String>())
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    };
    if (number(), number()) < TMUX_MIN {
        return findings.weak("tmux", format!("{version} is too old"), cure);
    }
    let home = crate::config::home().ok().map(|home| home.to_string_lossy().into_owned());
    let folders: Vec<String> = home.into_iter().chain(super::launch::shared_folders()).collect();
    match folders.iter().find(|folder| takes_sockets(Path::new(folder))) {
        Some(folder) => {
            findings.fine("tmux", format!("{version}; sockets can be made in {folder}"))
        }
        None => findings.weak(
            "tmux",
            format!("no socket can be made in {}", folders.join(", ")),
            "name a folder of this user that is writable by TMPDIR",
        ),
    }
}

/// Whether the server of a terminal can listen there.
fn takes_sockets(folder: &Path) -> bool {
    let socket = folder.join(format!("agent-relay-try-{}", std::process::id()));
    let made = UnixListener::bind(&socket).is_ok();
    let _ = std::fs::remove_file(&socket);
    made
}

fn systemd(findings: &mut Findings) {
    let Some(path) = find_program("systemctl") else {
        return findings.weak("systemd", "not here", "start runners by another supervisor");
    };
    match first_line(&path, &["--user", "is-system-running"], VERSION_TIME) {
        Ok(word)
            if matches!(word.as_str(), "running" | "degraded" | "starting" | "initializing") =>
        {
            findings.fine("systemd", format!("the user manager is {word}"));
        }
        Ok(word) | Err(word) => {
            let cure = "log in by ssh or machinectl (not su), set XDG_RUNTIME_DIR=/run/user/$(id -u), and `loginctl enable-linger`";
            findings.weak("systemd", format!("no user manager ({word})"), cure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_bounded() {
        assert!(find_program("sh").is_some_and(|path| path.ends_with("/sh")));
        assert_eq!(find_program("no-such-program-anywhere"), None);
        assert_eq!(
            first_line("/bin/sh", &["-c", "echo one; echo two"], Duration::from_secs(5)).as_deref(),
            Ok("one")
        );
        assert!(first_line("/bin/sh", &["-c", "sleep 30"], Duration::from_millis(50)).is_err());
    }
}

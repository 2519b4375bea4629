//! What this machine says of itself, and which programs of providers it has.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::call;
use crate::core::orchestrator::host::{Disk, HostReport, Load, Memory, Program, uptime};
use crate::edge::provider::find_command;
use crate::os;
use crate::provider::registry::PROVIDERS;

/// A program tells its version in that time.
const VERSION_TIME: Duration = Duration::from_secs(5);
/// Bytes of what it says that are looked at.
const VERSION_BYTES_MAX: usize = 4 << 10;
/// Characters of a version.
const VERSION_CHARS_MAX: usize = 100;

/// What tells one state of a program's file from another.
type FileMark = (u64, u64, u64, i64);

/// Looks at the host. Programs are asked for their versions once, and again when they have changed.
#[derive(Debug, Default)]
pub struct HostLook {
    known: BTreeMap<String, (FileMark, Option<String>)>,
}

impl HostLook {
    /// The report of now, without the sessions. `home`: the folder whose disk is meant.
    pub fn look(&mut self, home: &Path) -> HostReport {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        HostReport {
            hostname: os::hostname(),
            version: crate::wire::VERSION.into(),
            providers: self.programs(),
            load: Load::read(&read("/proc/loadavg")),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: Memory::read(&read("/proc/meminfo")),
            disk: disk(home),
            uptime: uptime(&read("/proc/uptime")),
            ..HostReport::default()
        }
        .bounded()
    }

    /// Programs of providers on this host, agents that are known by name among them.
    fn programs(&mut self) -> Vec<Program> {
        let own =
            PROVIDERS.iter().filter_map(|provider| Some((provider.name, provider.program?.0)));
        let presets = PROVIDERS.iter().flat_map(|provider| (provider.presets)());
        let presets = presets.filter_map(|preset| Some((preset.name, *preset.command.first()?)));
        let found = own.chain(presets).filter_map(|(name, program)| {
            let path = find_command(program, &[]).filter(|_| program != "agent-relay")?;
            Some((name.to_string(), path))
        });
        let found: Vec<(String, String)> = found.collect();
        self.known.retain(|path, _| found.iter().any(|(_, found)| found == path));
        let program = |(provider, path): (String, String)| {
            let version = self.version(&path);
            Program { provider, path, version }
        };
        found.into_iter().map(program).collect()
    }

    fn version(&mut self, path: &str) -> Option<String> {
        let mark = mark(path)?;
        if let Some((known, version)) = self.known.get(path)
            && *known == mark
        {
            return version.clone();
        }
        let version = ask_version(path);
        self.known.insert(path.into(), (mark, version.clone()));
        version
    }
}

/// The file behind a path: links of installers lead to another one after an update.
fn mark(path: &str) -> Option<FileMark> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.len(), meta.mtime()))
}

fn ask_version(path: &str) -> Option<String> {
    let mut command = Command::new(path);
    command.arg("--version");
    let said = call::run(command, VERSION_TIME, VERSION_BYTES_MAX).ok()?;
    let text = String::from_utf8_lossy(&said.output).into_owned() + "\n" + &said.complaint;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(VERSION_CHARS_MAX).collect())
}

fn disk(folder: &Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(Disk { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linux_host_tells_all_of_it() {
        let report = HostLook::default().look(Path::new("/"));
        assert!(!report.hostname.is_empty() && report.cpus > 0);
        let memory = report.memory.expect("a table of memory");
        assert!(memory.total >= memory.available && memory.available > 0, "{memory:?}");
        let disk = report.disk.expect("a disk");
        assert!(disk.total >= disk.free && disk.total > 0, "{disk:?}");
        assert!(report.load.is_some() && report.uptime.is_some());
        assert_eq!(HostLook::default().look(Path::new("/nowhere")).disk, None);
    }

    #[test]
    fn a_program_is_asked_again_only_after_it_has_changed() {
        let dir = std::env::temp_dir().join(format!("agent-relay-host-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("folder");
        let (program, asked) = (dir.join("program"), dir.join("asked"));
        // Another process writes it: a file that is open for writing in a child of another test
        // cannot be run.
        let write = |body: &str| {
            let text = format!("#!/bin/sh\necho x >> '{}'\n{body}\n", asked.display());
            let mut writer = Command::new("/bin/sh");
            writer.args([
                "-c",
                "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\" && mv \"$2\" \"$3\"",
                "sh",
                &text,
            ]);
            let done = writer.args([dir.join("next"), program.clone()]).status();
            assert!(done.expect("a shell").success());
        };
        let mut host = HostLook::default();
        let path = program.to_string_lossy().into_owned();
        let times = || fs::read_to_string(&asked).unwrap_or_default().lines().count();
        assert_eq!(host.version(&path), None, "it is not there");
        write("echo; echo ' 1.2.3 \u{1b}[1m(x)'");
        assert_eq!(host.version(&path).as_deref(), Some("1.2.3 [1m(x)"));
        host.version(&path);
        assert_eq!(times(), 1);
        write("echo 1.2.4 >&2");
        assert_eq!(host.version(&path).as_deref(), Some("1.2.4"));
        assert_eq!(times(), 2);
        fs::remove_dir_all(&dir).expect("clean up");
    }
}

//! The demo agent as a process: standard input and output, conversations as files.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::agent::{Abilities, DemoAgent, Disk, Entry, Output, update_of};
use crate::core::time::{Now, Tick, Wall};
use crate::os::{make_private_dir, open_private};
use crate::provider::lines::Lines;

/// Conversations as one file each, and one log of everything that was received: the receiver's own
/// record, by which tests judge deliveries.
pub struct FileDisk {
    dir: PathBuf,
    log: File,
}

impl FileDisk {
    /// Opens or makes the directory.
    pub fn open(dir: PathBuf) -> std::io::Result<FileDisk> {
        make_private_dir(&dir)?;
        let log =
            open_private(&dir.join("log.jsonl"), OpenOptions::new().create(true).append(true))?;
        Ok(FileDisk { dir, log })
    }

    fn path(&self, session: &str) -> PathBuf {
        let safe: String =
            session.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        self.dir.join(format!("session-{safe}.jsonl"))
    }
}

impl Disk for FileDisk {
    fn load(&mut self, session: &str) -> Option<Vec<Entry>> {
        let text = fs::read_to_string(self.path(session)).ok()?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Some(
            lines
                .map(|v| Entry {
                    user: v["user"] == true,
                    text: v["text"].as_str().unwrap_or_default().into(),
                })
                .collect(),
        )
    }

    fn append(&mut self, session: &str, entry: &Entry) {
        let line =
            json!({"session": session, "user": entry.user, "text": entry.text}).to_string() + "\n";
        // One write each: a kill leaves whole lines.
        if entry.user {
            let _ = self.log.write_all(line.as_bytes());
        }
        if let Ok(mut file) =
            open_private(&self.path(session), OpenOptions::new().create(true).append(true))
        {
            let _ = file.write_all(line.as_bytes());
        }
    }

    fn forget(&mut self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("session-") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn new_session(&mut self) -> String {
        let session = format!("demo-{:016x}", u64::from_le_bytes(crate::os::random_bytes::<8>()));
        let _ = open_private(&self.path(&session), OpenOptions::new().create(true).write(true));
        session
    }
}

/// Serves the protocol on standard input and output until the input ends.
pub fn serve(dir: PathBuf, abilities: Abilities) -> Result<(), String> {
    let mut disk = FileDisk::open(dir.clone())
        .map_err(|error| format!("cannot open the state directory {}: {error}", dir.display()))?;
    let mut agent = DemoAgent::new(abilities);
    let started = Instant::now();
    let now = || Now { tick: Tick(started.elapsed().as_micros() as u64), wall: Wall(0) };
    let mut output = std::io::stdout().lock();
    let mut lines = Lines::default();
    let mut buffer = vec![0u8; 64 << 10];
    let mut deaf = false;
    loop {
        let left = agent.next_deadline().map(|at| at - now().tick);
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        let stdin = rustix::stdio::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        let ready = poll(&mut fds, timeout.as_ref()).unwrap_or(0) > 0;
        let mut out = agent.wake(now(), &mut disk);
        if ready {
            let size = rustix::io::read(stdin, &mut buffer[..]).unwrap_or(0);
            if size == 0 {
                return if deaf {
                    // Only a SIGKILL ends it now.
                    loop {
                        std::thread::park();
                    }
                } else {
                    Ok(())
                };
            }
            let mut whole = Vec::new();
            lines.push(&buffer[..size], |line| {
                whole.push(String::from_utf8_lossy(line).into_owned())
            });
            for line in whole {
                out.extend(agent.line(now(), &line, &mut disk));
            }
        }
        for item in out {
            if item == Output::GoDeaf {
                deaf = true;
                let heard = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
                let _ = signal_hook::flag::register(signal_hook::consts::SIGTERM, heard);
            }
            carry_out(item, &mut output)
                .map_err(|error| format!("cannot write to the client: {error}"))?;
        }
    }
}

fn carry_out(item: Output, output: &mut impl Write) -> std::io::Result<()> {
    match item {
        Output::Line(line) => writeln!(output, "{line}")?,
        Output::Flood { session, bytes } => {
            let noise = "flood ".repeat(1000);
            let update = json!({"sessionUpdate": "agent_thought_chunk", "content": {"type": "text", "text": noise}});
            let line = update_of(&session, update).to_string();
            for _ in 0..bytes / line.len() as u64 + 1 {
                writeln!(output, "{line}")?;
            }
        }
        Output::GoDeaf => {}
        Output::LeaveChild => {
            // In a process group of its own, like the shell commands of some real agents.
            use std::os::unix::process::CommandExt;
            let mut child = std::process::Command::new("sleep");
            let _ = child
                .arg("600")
                .process_group(0)
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .spawn();
        }
        Output::Crash => {
            output.flush()?;
            std::process::exit(1);
        }
    }
    output.flush()
}

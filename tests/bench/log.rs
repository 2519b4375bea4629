//! The end of a long log, by the command that people use: what it costs must not depend on the
//! length.

use super::*;

/// Bytes of the long log. It is written whole: holes would cost nothing to read.
const BYTES: u64 = 2 << 30;
/// Memory that the command may map, kB, its program included.
const MAPPED_KB: u32 = 64 << 10;
const NAME: &str = "agent-relay-acp-long";

/// Lines as a program in a terminal writes them.
fn write_log(path: &Path) {
    let mut piece = String::new();
    for n in 0.. {
        piece.push_str(&format!(
            "\u{1b}[32m{n:>6}\u{1b}[0m {}\r\n",
            "words of a long log ".repeat(4)
        ));
        if piece.len() >= 1 << 20 {
            break;
        }
    }
    let mut file = std::fs::File::create(path).expect("creates");
    let mut written = 0;
    while written < BYTES {
        file.write_all(piece.as_bytes()).expect("writes");
        written += piece.len() as u64;
    }
}

/// The time of each of some calls; the command itself may map so much and no more.
fn times(home: &Path, lines: &str) -> Vec<Duration> {
    let limited = format!("ulimit -v {MAPPED_KB}; exec \"$0\" \"$@\"");
    let call = || {
        let mut shell = Command::new("/bin/sh");
        shell.env_clear().env("HOME", home).env("AGENT_RELAY_HOME", home);
        shell.args(["-c", &limited, bin(), "logs", NAME, "--lines", lines]);
        let at = Instant::now();
        let output = shell.stdin(Stdio::null()).output().expect("runs");
        let took = at.elapsed();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert_eq!(shown.lines().count().to_string(), lines, "{output:?}");
        assert!(!shown.contains('\u{1b}'));
        took
    };
    (0..20).map(|_| call()).collect()
}

pub fn log() {
    let folder = Folder::new("log");
    let logs = folder.0.join("logs");
    std::fs::create_dir_all(&logs).expect("folder");
    let path = logs.join(format!("{NAME}.log"));
    write_log(&path);
    for (lines, goal) in [("100", "≤ 100 ms"), ("1000", "–")] {
        let mut times = times(&folder.0, lines);
        let (p50, worst) = (percentile(&mut times, 0.5), percentile(&mut times, 1.0));
        row(
            &format!("`logs` of a log of 2 GB, the last {lines} lines: p50 (worst of 20)"),
            goal,
            format!("{} ({}), in {} MB of mapped memory", ms(p50), ms(worst), MAPPED_KB >> 10),
        );
    }
}

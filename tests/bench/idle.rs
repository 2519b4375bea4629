//! What hub and runner cost while nothing happens.

use super::*;

pub fn idle() {
    let setup = setup("idle", &[bin(), "demo-agent"], &[]);
    std::thread::sleep(Duration::from_secs(3));
    for (name, pid, goal) in [
        ("runner", setup.pids.1, "≤ 8 MB PSS; ≤ 20 a minute besides heartbeats and pings"),
        ("hub", setup.pids.0, "–"),
    ] {
        let (before, after) = (switches(pid), {
            std::thread::sleep(Duration::from_secs(60));
            switches(pid)
        });
        let pss = pss(pid);
        row(
            &format!("idle {name}: PSS; wake-ups in 60 s, all included"),
            goal,
            format!("{pss:.1} MB; {}", after - before),
        );
    }
}

/// Memory of a process, MB; what several share counts in parts.
pub fn pss(pid: u32) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kilobytes = line.and_then(|told| told.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}

/// Voluntary switches of all threads.
pub fn switches(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let read = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).ok();
    let count = |text: String| {
        text.lines().find_map(|line| {
            line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok()
        })
    };
    tasks.filter_map(read).filter_map(count).sum()
}

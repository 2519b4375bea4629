//! What a hook and a start cost as whole processes.

use super::*;

/// What a hook costs as a whole process, beside a shell that posts with curl; and what starting
/// costs.
pub fn hook() {
    let setup = setup("hook", &[bin(), "demo-agent"], &[]);
    let info: Value = serde_json::from_str(
        &std::fs::read_to_string(setup.folder.0.join("agents/a/runner.json")).expect("info"),
    )
    .expect("JSON");
    let port = info["controlUrl"]
        .as_str()
        .and_then(|url| url.rsplit(':').next())
        .expect("port")
        .to_string();
    let token = info["controlToken"].as_str().expect("token").to_string();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/relay-hook.sh");
    let curl = format!(
        "set -euo pipefail; curl -s -o /dev/null -m 2 -X POST -H 'Content-Type: application/json' -H 'Authorization: Bearer {token}' \
         -d '{{\"status\":\"idle\"}}' http://127.0.0.1:{port}/status"
    );
    let payload = setup.folder.0.join("payload.json");
    std::fs::write(
        &payload,
        json!({"session_id": "s", "hook_event_name": "Stop", "stop_hook_active": false})
            .to_string(),
    )
    .expect("writes");
    let runs: [(&str, Vec<&str>); 5] = [
        ("bash and curl", vec!["/bin/bash", "-c", &curl]),
        ("hook stop, direct", vec![bin(), "hook", "stop"]),
        ("hook stop, through the shell script", vec!["/bin/sh", script, "stop"]),
        ("agent-relay version", vec![bin(), "version"]),
        ("/bin/true", vec!["/bin/true"]),
    ];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); runs.len()];
    for round in 0..210 {
        for (at, (name, words)) in runs.iter().enumerate() {
            let mut command = command(&setup.folder.0);
            command
                .env("AGENT_RELAY_RUNNER_PORT", &port)
                .env("AGENT_RELAY_RUNNER_TOKEN", &token)
                .env("AGENT_RELAY_BIN", bin());
            // As the provider's own process would: a post of another session is dropped, which
            // costs the same.
            command
                .env("AGENT_RELAY_PROVIDER_SESSION_ID", "bench")
                .stdin(std::fs::File::open(&payload).expect("payload"));
            let mut real = Command::new(words[0]);
            real.env_clear().envs(
                command
                    .get_envs()
                    .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))),
            );
            real.args(&words[1..])
                .stdin(std::fs::File::open(&payload).expect("payload"))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let begin = Instant::now();
            let status = real.status().expect("runs");
            let took = begin.elapsed();
            assert!(status.success(), "{name}");
            if round >= 10 {
                times[at].push(took);
            }
        }
    }
    report(times);
}

/// Rows of what was measured, in the order of the programs.
fn report(mut times: Vec<Vec<Duration>>) {
    let p50: Vec<Duration> = times.iter_mut().map(|times| percentile(times, 0.5)).collect();
    let share = |at: usize| {
        format!(
            "{}: {:.2} × ({} with bash and curl)",
            ms(p50[at]),
            p50[at].as_secs_f64() / p50[0].as_secs_f64(),
            ms(p50[0])
        )
    };
    row(
        "stop hook as a whole process (payload, post), direct, p50",
        "≤ 0.15 × bash and curl",
        share(1),
    );
    row("… through a shell script", "≤ 0.25 ×", share(2));
    let over = p50[3].saturating_sub(p50[4]);
    row(
        "process start: `agent-relay version`, p50",
        "≤ 1 ms over a nop",
        format!("{} ({} over /bin/true)", ms(p50[3]), us(over)),
    );
    let size = std::fs::metadata(&*BIN).map(|meta| meta.len()).unwrap_or(0) as f64 / 1e6;
    row("binary, static, TLS included", "≤ 7.4 MB", format!("{size:.2} MB"));
}

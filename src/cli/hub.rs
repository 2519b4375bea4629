//! `hub`: the relay of this machine in the foreground (D-29).

use std::io::Write;
use std::net::TcpListener;

use super::args::Hub;
use super::exit::{Failure, Outcome};
use crate::edge::gate;
use crate::hub::run;

/// Runs the hub.
pub fn hub(options: &Hub) -> Outcome {
    let home = crate::config::home()?;
    if let Some(pid) = run::live_pid(&home) {
        return Err(Failure::usage(format!(
            "a hub (pid {pid}) already runs on {}; stop it, or set another AGENT_RELAY_HOME",
            home.display()
        )));
    }
    crate::log::start(Some(home.join("logs").join("hub.log")), false);
    let listener = listen(options)?;
    let address = listener.local_addr().map_err(|error| format!("cannot listen: {error}"))?;
    let url = format!("http://{address}");
    let opened = run::open(&home, &url)?;
    std::panic::set_hook(Box::new(|info| {
        let recent = crate::runtime::turn::recent().join("; ");
        log::error!(target: "hub", "\u{1}fatal {info}; last events: {recent}");
    }));
    let said = url.clone();
    let code = run::serve(opened, listener, &url, move || {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "agent-relay hub listens on {said} (data in {})", home.display()).and_then(|_| out.flush());
    })?;
    Ok(code)
}

fn listen(options: &Hub) -> Result<TcpListener, Failure> {
    match gate::listen(&format!("127.0.0.1:{}", options.port)) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && options.any_port => {
            gate::listen("127.0.0.1:0").map_err(|error| Failure::usage(format!("cannot listen on any port: {error}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let who = holder(options.port).map(|pid| format!(" by the process {pid}")).unwrap_or_default();
            Err(Failure::usage(format!("port {} is taken{who}; stop that one, or use --port N or --any-port", options.port)))
        }
        Err(error) => Err(Failure::usage(format!("cannot listen on 127.0.0.1:{}: {error}", options.port))),
    }
}

/// The process that listens on a port, if it can be seen.
fn holder(port: u16) -> Option<u32> {
    let wanted = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == "0A").then(|| fields.get(9).map(|inode| inode.to_string()))?
    })?;
    let wanted = format!("socket:[{inode}]");
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|text| text.parse::<u32>().ok()) else {
            continue;
        };
        for fd in std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            if std::fs::read_link(fd.path()).is_ok_and(|link| link.to_string_lossy() == wanted) {
                return Some(pid);
            }
        }
    }
    None
}

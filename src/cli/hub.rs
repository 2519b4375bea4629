//! `hub`: the relay of this machine in the foreground, its status, backups and restores.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Instant;

use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};

use super::args::{DEFAULT_PORT, Hub, Listen};
use super::client::Client;
use super::exit::{Failure, NO, OK, Outcome, path_failure};
use super::{health, listener, print};
use crate::edge::certificate::{self, Flaw};
use crate::edge::database::error_of;
use crate::edge::http::Base;
use crate::edge::{gate, stream};
use crate::hub::place;
use crate::hub::run::{self, Listening};
use crate::hub::store;
use crate::wire::control::LogLevel;

/// Runs the hub, or looks after it.
pub fn hub(options: &Hub) -> Outcome {
    let action: Vec<&str> = options.action.iter().map(String::as_str).collect();
    match action.as_slice() {
        [] => serve(options),
        ["status"] => status(options.json),
        ["backup", file] => backup(Path::new(file)),
        ["backup"] => Err(Failure::usage("say where to: `agent-relay hub backup FILE`")),
        ["restore", file] => restore(Path::new(file), options.json),
        ["restore"] => Err(Failure::usage(
            "say from where: `agent-relay hub restore FILE`, a file that `hub backup` has made",
        )),
        ["vacuum"] => vacuum(),
        ["status" | "vacuum", more, ..] | ["backup" | "restore", _, more, ..] => {
            Err(Failure::usage(format!("{more:?} is too much; see `agent-relay hub --help`")))
        }
        [word, ..] => Err(Failure::usage(format!(
            "there is no hub action {word:?}; use status, backup FILE, restore FILE or vacuum, or none to run it"
        ))),
    }
}

fn serve(options: &Hub) -> Outcome {
    let home = crate::config::home()?;
    if let Some(pid) = place::live_pid(&home) {
        return Err(Failure::usage(format!(
            "a hub (pid {pid}) already runs on {}; stop it, or set another AGENT_RELAY_HOME",
            home.display()
        )));
    }
    let tls = match (&options.tls_cert, &options.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(Certificate::read(Path::new(certificate), Path::new(key))?)
        }
        (None, None) => None,
        _ => return Err(Failure::usage("--tls-cert and --tls-key belong together")),
    };
    let at = wanted(options)?;
    if !at.ip().is_loopback() && tls.is_none() && !options.behind_tls_proxy {
        return Err(Failure::usage(format!(
            "tokens would be sent unencrypted to {}; give --tls-cert and --tls-key, or --behind-tls-proxy if a proxy in front handles TLS",
            at.ip()
        )));
    }
    if let Some(url) = &options.url {
        Base::parse(url).map_err(Failure::usage)?;
    }
    let log = home.join("logs").join("hub.log");
    crate::log::start(Some(log.clone()), false)
        .map_err(|error| Failure::system(format!("cannot write {}: {error}", log.display())))?;
    let listener = listen(at, options.any_port)?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::system(format!("cannot listen: {error}")))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    // A wildcard address is no place to connect to.
    let place = if !address.ip().is_unspecified() {
        address.to_string()
    } else if tls.is_some() {
        format!("{}:{}", crate::os::hostname(), address.port())
    } else {
        format!("127.0.0.1:{}", address.port())
    };
    let url = options.url.clone().unwrap_or_else(|| format!("{scheme}://{place}"));
    let opened = run::open(&home, &url, !options.temporary)?;
    tls.iter().for_each(|certificate| certificate.look_at(&url));
    let tls = tls.map(|certificate| certificate.config);
    std::panic::set_hook(Box::new(|info| {
        let recent = crate::runtime::event_loop::recent().join("; ");
        crate::log::write(LogLevel::Fatal, "hub", &format!("{info}; last events: {recent}"));
    }));
    if let Some(said) = opened.notice() {
        print::notice(said);
    }
    let said =
        format!("agent-relay hub listens on {scheme}://{address} (data in {})", home.display());
    let code = run::serve(opened, Listening { listener, tls, url }, move || {
        print::line_or_nothing(&said)
    })?;
    Ok(code)
}

/// The certificate and its key.
struct Certificate<'a> {
    certificate: &'a Path,
    key: &'a Path,
    chain: Vec<CertificateDer<'static>>,
    config: std::sync::Arc<rustls::ServerConfig>,
}

impl<'a> Certificate<'a> {
    /// A file that cannot be opened although it is there may be readable later.
    fn read(certificate: &'a Path, key: &'a Path) -> Result<Certificate<'a>, Failure> {
        for path in [certificate, key] {
            std::fs::File::open(path).map_err(|error| {
                path_failure(&error, format!("cannot use {}: {error}", path.display()))
            })?;
        }
        let chain = certificate::chain(certificate).map_err(Failure::usage)?;
        let config = stream::server_config(chain.clone(), certificate, key);
        let config = config.map_err(Failure::usage)?;
        Ok(Certificate { certificate, key, chain, config })
    }

    /// Says what keeps clients from taking it. The hub serves all the same: others than ours may
    /// be less strict.
    fn look_at(&self, url: &str) {
        let Ok(base) = Base::parse(url) else { return };
        let path = self.certificate.display();
        let cure = certificate::command(self.certificate, self.key, &base.host);
        let flaw = certificate::flaw(&self.chain, &base.host, &stream::roots(), UnixTime::now());
        let said = match flaw {
            None => return,
            Some(Flaw::Unusable(why)) => {
                format!("no client takes the certificate {path}: {why}; make another one: {cure}")
            }
            Some(Flaw::OtherName) => format!(
                "no client takes the certificate {path} from {url}: it is not made out to {host}; \
                 give --url with a name that it has, or make another one: {cure}",
                host = base.host
            ),
            Some(Flaw::UnknownIssuer) => format!(
                "this machine does not know who signed the certificate {path}: clients take it where \
                 SSL_CERT_FILE names that certificate, or where it is installed"
            ),
        };
        log::warn!(target: "hub", "{said}");
        print::notice(&said);
    }
}

/// Where to listen.
fn wanted(options: &Hub) -> Result<SocketAddr, Failure> {
    let Listen { address, port } = options.listen;
    match (port, options.port) {
        (Some(one), Some(other)) if one != other => Err(Failure::usage(format!(
            "--listen says port {one}, --port says {other}; give the port once"
        ))),
        (one, other) => Ok(SocketAddr::new(address, one.or(other).unwrap_or(DEFAULT_PORT))),
    }
}

fn listen(at: SocketAddr, any_port: bool) -> Result<TcpListener, Failure> {
    match gate::listen(&at.to_string()) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && any_port => {
            gate::listen(&SocketAddr::new(at.ip(), 0).to_string())
                .map_err(|error| Failure::system(format!("cannot listen on any port: {error}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let who = listener::holder(at.port())
                .map(|pid| format!(" by the process {pid}"))
                .unwrap_or_default();
            Err(Failure::usage(format!(
                "port {} is taken{who}; stop that one, or use --port N or --any-port",
                at.port()
            )))
        }
        Err(error) => Err(Failure::system(format!("cannot listen on {at}: {error}"))),
    }
}

/// `hub status`
fn status(as_json: bool) -> Outcome {
    let home = crate::config::home()?;
    let client = Client::of_hub(&home)?;
    let seen = health::hub(&home, Instant::now() + health::BUDGET);
    let broken = seen.iter().any(|seen| seen.grade == health::Grade::Broken);
    let info = match client.call("GET", "/api/hub", None) {
        Ok(info) => info,
        Err(failure) => return offline_status(&home, as_json, &seen, failure),
    };
    let process =
        place::read_info(&home).filter(|_| place::live_pid(&home).is_some()).unwrap_or(Value::Null);
    if as_json {
        let mut info = info;
        info["process"] = process;
        info["files"] = health::hub_json(&home, &seen);
        print::json(&info);
        return Ok(if broken { NO } else { OK });
    }
    let number = |at: &str| info.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    let pid = process["pid"].as_u64().map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let up = print::format_duration(number("/uptimeMs") as i64);
    print::line(&format!(
        "hub {} at {}{pid}, up for {up}",
        info["version"].as_str().unwrap_or("?"),
        client.base.url
    ));
    if let Some(trouble) = info["trouble"].as_str() {
        print::line(&format!("  trouble: its store cannot be written: {trouble}"));
    }
    let line = |name: &str, value: String| print::line(&format!("  {name:<14}{value}"));
    line(
        "agents",
        format!("{} known, {} connected", number("/now/agents"), number("/now/agentsConnected")),
    );
    line(
        "messages",
        format!(
            "{} so far, {} wait for agents, {} match nobody yet",
            number("/now/lastMessageId"),
            number("/now/messagesUnacknowledged"),
            number("/now/messagesUnresolved")
        ),
    );
    line(
        "open",
        format!("{} tasks, {} commands", number("/now/tasksOpen"), number("/now/commandsOpen")),
    );
    line(
        "connections",
        format!(
            "{} ({} on the bus, {} read events)",
            number("/now/connections"),
            number("/now/peers"),
            number("/now/eventStreams")
        ),
    );
    limits_met(&info).into_iter().for_each(|limits| line("limits", limits));
    let mb = |at: &str| format!("{:.1} MB", number(at) as f64 / 1e6);
    line(
        "store",
        format!(
            "{} ({} free inside; `agent-relay hub vacuum` gives that back)",
            mb("/store/bytes"),
            mb("/store/freeBytes")
        ),
    );
    show_files(&home, &seen);
    Ok(if broken { NO } else { OK })
}

/// How often limits were met, and by whom most; `None`: never.
fn limits_met(info: &Value) -> Option<String> {
    let number = |at: &str| info.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    let text = |at: &str| info.pointer(at).and_then(Value::as_str);
    let agent = text("/greediest/agent").map(|agent| format!("the agent {agent}"));
    let who = agent.or(text("/greediest/line").map(|line| format!("the token {line}")))?;
    let (all, most) = (number("/limitsMet"), number("/greediest/met"));
    let last = text("/greediest/limit").unwrap_or_default();
    Some(format!("met {all} times, {most} of them by {who} (last: {last})"))
}

/// No hub answers: what its files tell all the same.
fn offline_status(home: &Path, as_json: bool, seen: &[health::Seen], failure: Failure) -> Outcome {
    if as_json && !seen.is_empty() {
        let files = health::hub_json(home, seen);
        print::json(&serde_json::json!({"process": null, "files": files}));
    } else if !seen.is_empty() {
        let dir = place::directory(home);
        print::line(&format!("no hub answers; its files in {}:", dir.display()));
        show_files(home, seen);
    }
    Err(failure)
}

fn show_files(home: &Path, seen: &[health::Seen]) {
    for seen in seen {
        print::line(&format!("  {:<14}{}", "file", seen.found));
        if !seen.cure.is_empty() {
            print::line(&format!("  {:<14}fix: {}", "", seen.cure));
        }
    }
    if let Some(free) = crate::os::free_bytes(&place::directory(home)).filter(|_| !seen.is_empty())
    {
        print::line(&format!("  {:<14}{:.1} GB free", "disk", free as f64 / 1e9));
    }
}

/// `hub backup FILE`: a consistent copy by SQLite itself, while the hub runs or not.
fn backup(to: &Path) -> Outcome {
    let file = place::directory(&crate::config::home()?).join("hub.sqlite");
    let bytes = store::backup(&file, to)?;
    let shown = to.display();
    print::line(&format!(
        "{shown} ({:.1} MB); `agent-relay hub restore {shown}` puts it back while no hub runs",
        bytes as f64 / 1e6
    ));
    Ok(OK)
}

/// `hub restore FILE`: a backup in the place of the store, while no hub runs.
fn restore(from: &Path, as_json: bool) -> Outcome {
    let home = crate::config::home()?;
    let restored = crate::hub::restore::restore(&home, from)?;
    let span = |missing: Option<(u64, u64)>| {
        missing.map(|(first, last)| json!({"first": first, "last": last}))
    };
    if as_json {
        let record = json!({
            "restored": from, "formerFiles": restored.aside, "newestMessageAt": restored.newest_at,
            "lastMessageId": restored.last.0, "lastTaskId": restored.last.1, "exact": restored.exact,
            "missingMessages": span(restored.missing_messages), "missingTasks": span(restored.missing_tasks),
            "agentsWithoutToken": restored.agents_without_token,
        });
        print::json(&record);
        return Ok(OK);
    }
    let until = match restored.newest_at {
        0 => "it holds no message".to_string(),
        at => format!(
            "its newest message, #{}, was accepted at {}",
            restored.last.0,
            crate::log::iso(at)
        ),
    };
    print::line(&format!("{} is the hub's store now; {until}", from.display()));
    let about = if restored.exact { "" } else { " at most" };
    let gap = |what: &str, (first, last): (u64, u64)| {
        let ids = if first == last { format!("#{first}") } else { format!("#{first} to #{last}") };
        print::line(&format!(
            "  not in it:{about} {what} {ids}, accepted after the backup was made; what an agent had of them by then it still has"
        ));
    };
    restored.missing_messages.into_iter().for_each(|missing| gap("messages", missing));
    restored.missing_tasks.into_iter().for_each(|missing| gap("tasks", missing));
    if let Some(aside) = &restored.aside {
        print::line(&format!("  the former files are in {}", aside.display()));
    }
    print::line(
        "  when a hub runs again, unfinished tasks are blocked: `agent-relay tasks --status blocked`, then `tasks reopen ID` or `--all`",
    );
    if !restored.agents_without_token.is_empty() {
        print::line(
            "  runners with an operator's token make themselves new tokens; others need one:",
        );
        for agent in &restored.agents_without_token {
            print::line(&format!("    agent-relay token create --agent {agent}"));
        }
    }
    Ok(OK)
}

/// `hub vacuum`: by the running hub, which owns the file; by us if none runs.
fn vacuum() -> Outcome {
    let home = crate::config::home()?;
    let (before, after) = if place::live_pid(&home).is_some() {
        let answer = Client::of_hub(&home)?.call("POST", "/api/hub/vacuum", None)?;
        (answer["bytesBefore"].as_u64().unwrap_or(0), answer["bytesAfter"].as_u64().unwrap_or(0))
    } else {
        let dir = place::directory(&home);
        if !dir.join("hub.sqlite").is_file() {
            return Err(Failure::usage(format!("there is no hub's store in {}", dir.display())));
        }
        let lock = crate::os::lock(&dir.join("lock"))
            .map_err(|error| Failure::system(format!("cannot lock {}: {error}", dir.display())))?;
        let Some(_lock) = lock else {
            return Err(Failure::usage("a hub is just starting or stopping; try again"));
        };
        let mut store = store::HubStore::open(&dir.join("hub.sqlite"))?;
        store.vacuum().map_err(|error| error_of("cannot vacuum the hub's store", &error))?
    };
    print::line(&format!(
        "{:.1} MB before, {:.1} MB after",
        before as f64 / 1e6,
        after as f64 / 1e6
    ));
    Ok(OK)
}

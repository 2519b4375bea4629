//! `orchestrator`: from settings to a running orchestrator.

use std::fs::File;
use std::io::{ErrorKind, Seek, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::args::Orchestrator;
use super::exit::{Failure, Kind, OK, Outcome, path_failure};
use super::{listener, print};
use crate::config::orchestrator::OrchestratorSettings;
use crate::config::{Global, env};
use crate::core::orchestrator::config::OrchestratorConfig;
use crate::core::orchestrator::launch::Surroundings;
use crate::core::orchestrator::names;
use crate::core::rng::Rng;
use crate::edge::gate;
use crate::edge::http::Base;
use crate::edge::orchestrator::calls::Asking;
use crate::edge::orchestrator::look::Places;
use crate::edge::orchestrator::records::{self, RecordsFile};
use crate::edge::orchestrator::units;
use crate::edge::orchestrator::work::Worker;
use crate::hub::place as hub_place;
use crate::orchestrator::place::{self, OrchestratorInfo};
use crate::orchestrator::run::{OrchestratorParts, serve};
use crate::os;
use crate::provider::registry;
use crate::secret::Secret;
use crate::wire::control::{ENV_TOKEN, LogLevel};

/// Hex digits of a home in the orchestrator's name: two homes of a host have two.
const HOME_DIGITS: usize = 6;

/// `orchestrator`
pub fn orchestrator(options: &Orchestrator) -> Outcome {
    let global = Global::load(None, None)?;
    let home = global.home.clone();
    let settings = OrchestratorSettings::load(&home)?;
    let log = home.join("logs").join("orchestrator.log");
    crate::log::start(Some(log.clone()), false)
        .map_err(|error| Failure::system(format!("cannot write {}: {error}", log.display())))?;
    std::panic::set_hook(Box::new(|info| {
        let recent = crate::runtime::event_loop::recent().join("; ");
        crate::log::write(
            LogLevel::Fatal,
            "orchestrator",
            &format!("{info}; last events: {recent}"),
        );
    }));
    let mut lock = take_lock(&home)?;
    let base = Base::parse(&global.relay_url).map_err(Failure::usage)?;
    let base_dir = base_dir(options, &settings)?;
    let listener = listen(options.port.or(settings.api_port), &home)?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::system(format!("cannot listen: {error}")))?;
    let url = format!("http://{address}");
    let token = Secret::new(os::secret());
    let file = RecordsFile { path: place::records(&home), prefix: settings.prefix.clone() };
    let opened = file.open().map_err(|error| {
        Failure::system(format!("cannot read {}: {error}", file.path.display()))
    })?;
    match &opened.1 {
        Some(note) => print::notice(note),
        // What a damaged file has named may still run.
        None => records::sweep(&home, &opened.0),
    }
    let worker = Worker {
        systemd: units::are_used(),
        base_dir: base_dir.to_string_lossy().into_owned(),
        boot_id: os::boot_id().unwrap_or_default(),
    };
    let kept_by = if worker.systemd { "units of systemd" } else { "process groups" };
    let said = format!("agent-relay orchestrator at {url}; sessions are {kept_by}");
    announce(&home, &mut lock, &url, &token)?;
    let places = Places { home: home.clone(), base_dir: worker.base_dir.clone().into() };
    let parts = OrchestratorParts {
        places,
        asking: asking(&global, &settings, base, &home),
        config: config(&global, settings, &worker, url)?,
        info_file: place::info_file(&home),
        records: file,
        opened,
        worker,
        listener,
        token,
    };
    let end = serve(parts, move || {
        print::line_or_nothing(&said);
        crate::notify::ready(&said);
    })
    .map_err(Failure::system)?;
    // Whoever waits for it may begin now.
    drop(lock);
    if end.code != OK {
        return Err(Failure::new(Kind::of(end.code), end.message));
    }
    Ok(OK)
}

fn take_lock(home: &Path) -> Result<File, Failure> {
    let dir = place::directory(home);
    let refused =
        |error: std::io::Error| Failure::system(format!("cannot lock {}: {error}", dir.display()));
    os::make_private_dir(&dir).map_err(refused)?;
    os::lock(&dir.join("lock")).map_err(refused)?.ok_or_else(|| {
        let pid = OrchestratorInfo::read(home).map(|info| format!(" (pid {})", info.pid));
        Failure::usage(format!(
            "an orchestrator{} already runs on {}; stop it, or set another AGENT_RELAY_HOME",
            pid.unwrap_or_default(),
            home.display()
        ))
    })
}

/// The folder that sessions work in, with links resolved.
fn base_dir(options: &Orchestrator, settings: &OrchestratorSettings) -> Result<PathBuf, Failure> {
    let told = options.base_dir.clone().map(PathBuf::from).or(settings.base_dir.clone());
    let base = told.or_else(os::user_home).ok_or_else(|| {
        Failure::usage("HOME is not set; say with --base-dir where sessions may work")
    })?;
    base.canonicalize().map_err(|error| {
        path_failure(
            &error,
            format!("the base directory {} cannot be used: {error}", base.display()),
        )
    })
}

/// Sessions know the port from their start: the one before is taken again where it is free.
fn listen(port: Option<u16>, home: &Path) -> Result<TcpListener, Failure> {
    let at = |port: u16| gate::listen(&format!("127.0.0.1:{port}"));
    let refused = |error: std::io::Error| Failure::system(format!("cannot listen: {error}"));
    let Some(port) = port else {
        let before = OrchestratorInfo::read(home)
            .and_then(|info| Base::parse(&info.url).ok())
            .and_then(|base| at(base.port).ok());
        return before.map_or_else(|| at(0).map_err(refused), Ok);
    };
    at(port).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            let who = listener::holder(port).map(|pid| format!(" by the process {pid}"));
            Failure::usage(format!(
                "port {port} is taken{}; stop that one, or use another --port (0: any free one)",
                who.unwrap_or_default()
            ))
        }
        _ => refused(error),
    })
}

fn announce(home: &Path, lock: &mut File, url: &str, token: &Secret) -> Result<(), Failure> {
    let pid = std::process::id();
    let info = OrchestratorInfo {
        pid,
        start_time: os::process(pid).start,
        url: url.into(),
        token: token.expose().into(),
    };
    let path = place::info_file(home);
    let text = serde_json::to_string_pretty(&info).expect("plain data") + "\n";
    os::write_private_file(&path, &text)
        .map_err(|error| Failure::system(format!("cannot write {}: {error}", path.display())))?;
    let _ = lock.set_len(0).and_then(|_| lock.rewind()).and_then(|_| writeln!(lock, "{pid}"));
    Ok(())
}

fn hostname(settings: &OrchestratorSettings) -> String {
    settings.hostname.clone().unwrap_or_else(os::hostname)
}

fn asking(global: &Global, settings: &OrchestratorSettings, base: Base, home: &Path) -> Asking {
    let of_home = os::sha256_hex(&home.to_string_lossy());
    let name =
        format!("{}-orchestrator-{}", names::clean(&hostname(settings)), &of_home[..HOME_DIGITS]);
    // What config.json holds is a person's token.
    let given = env(ENV_TOKEN).or_else(|| settings.token.clone()).map(Secret::new);
    Asking {
        base,
        name,
        token_file: place::directory(home).join("token.json"),
        root_token_file: hub_place::directory(&global.home).join("root-token"),
        given,
    }
}

fn config(
    global: &Global,
    settings: OrchestratorSettings,
    worker: &Worker,
    url: String,
) -> Result<OrchestratorConfig, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::system(format!("cannot find my own program file: {error}")))?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let inherited = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let about = Surroundings {
        program: text(&program),
        home: text(&global.home),
        user_home: os::user_home().as_deref().map(text).unwrap_or_default(),
        hostname: hostname(&settings),
        relay_url: global.relay_url.clone(),
        orchestrator_url: url,
        inherited,
        configured: settings.env,
    };
    let seed = u64::from_le_bytes(os::random_bytes::<8>());
    Ok(OrchestratorConfig {
        prefix: settings.prefix,
        base_dir: worker.base_dir.clone(),
        instance_id: Rng::new(seed).uuid(),
        boot_id: worker.boot_id.clone(),
        about,
        providers: registry::PROVIDERS.iter().map(|provider| provider.name.to_string()).collect(),
        ceilings: settings.ceilings,
        room: settings.room,
        restart: settings.restart,
        starts_burst: settings.starts_burst,
        starts_time: settings.starts_time,
    })
}

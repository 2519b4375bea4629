//! The hub's process: first start, threads and channels, end.

use crate::core::Lane as _;
use crate::core::hub::event::StoreCommand;
use std::fs::File;
use std::io::{Seek, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustls::ServerConfig;
use serde_json::{Value, json};

use super::handler::{handler, is_urgent};
use super::mark::MarkFile;
use super::place::{directory, live_pid};
use super::read::{HubReader, run as run_reader};
use super::store::{HubStore, run as run_store};
use super::{Trouble, salvage};
use crate::clock::Clock;
use crate::core::hub::event::{Effect, Event, HubOp, Lane, Query, StoreEvent};
use crate::core::hub::{Hub, HubConfig};
use crate::core::ids::ReadNumber;
use crate::core::limits::{COMMITS_IN_FLIGHT_MAX, READS_IN_FLIGHT_MAX};
use crate::core::store::{StoreError, StoreKind};
use crate::edge::database::{Check, beside, error_of, io_error_of, open_for_reading, quick_check};
use crate::edge::gate::{Gate, Identify, Limits, Orders, Parts};
use crate::edge::turns::{OrderCount, TurnsIn, turns};
use crate::edge::{Port, signals};
use crate::os::{self, Waker};
use crate::runtime::event_loop::{self, Source};
use crate::runtime::threads::{ThreadExit, Threads};
use crate::wire::api::TokenRecord;

/// Events of one lane that wait for the hub's state thread at most.
const fn lane_capacity(lane: Lane) -> usize {
    match lane {
        Lane::Store => 1024,
        // Has a queue of its own.
        Lane::Gate => 0,
        Lane::Main => 8,
    }
}

/// Reads under way: each was asked by an event, and events wait while the lane of answers is full.
const READS_MAX: usize = 4096;
/// Batches of orders for the gate, at most one for each event that the hub takes. With half of them
/// on their way it takes nothing of the gate; the rest is for what store and reader still answer.
const GATE_ORDERS: usize = 8192;
const _: () = assert!(COMMITS_IN_FLIGHT_MAX + READS_IN_FLIGHT_MAX < GATE_ORDERS / 2);
/// Threads get this long to end after the machine has finished.
const JOIN_LIMIT: Duration = Duration::from_secs(3);

/// An opened hub that is about to listen.
pub struct Opened {
    lock: File,
    store: HubStore,
    /// `None`: no second connection to the store is possible.
    reader: Option<HubReader>,
    mark: MarkFile,
    dir: PathBuf,
    info: PathBuf,
    id: String,
    /// What people should know of the start.
    notice: Option<String>,
    /// The last hub did not end in order.
    unclean: bool,
}

impl Opened {
    /// A sentence about the start, for people.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }
}

/// Takes the lock, opens the store, makes the first tokens. `lasting`: `config.json` gets the URL,
/// for all that is started later.
pub fn open(home: &Path, url: &str, lasting: bool) -> Result<Opened, Trouble> {
    let dir = directory(home);
    if let Some(why) = os::exposed(&dir) {
        return Err(Trouble::Use(format!(
            "the hub's files would not be safe: {why}, or set AGENT_RELAY_HOME to another folder"
        )));
    }
    os::make_private_dir(&dir)
        .map_err(|error| io_error_of(format!("cannot make {}", dir.display()), &error))?;
    let path = dir.join("lock");
    let lock = os::lock(&path)
        .map_err(|error| io_error_of(format!("cannot lock {}", path.display()), &error))?;
    let Some(lock) = lock else {
        let who = live_pid(home).map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        let text = format!(
            "a hub{who} already runs on {}; stop it, or set another AGENT_RELAY_HOME",
            home.display()
        );
        return Err(Trouble::Use(text));
    };
    if let Some(known) = salvage::known_damage(&dir) {
        return Err(known.into());
    }
    let file = dir.join("hub.sqlite");
    let notice = salvage::found_empty(home, &dir);
    if let Some(notice) = &notice {
        log::warn!(target: "hub", "{notice}");
    }
    // After an orderly end there is no write-ahead log.
    let unclean = std::fs::metadata(beside(&file, "-wal")).is_ok_and(|meta| meta.len() > 0);
    let mark = MarkFile::open(home).map_err(|error| {
        io_error_of(format!("cannot read {}", MarkFile::path(home).display()), &error)
    })?;
    super::restore::leave_foreign_log(&file, mark.found().as_ref())
        .map_err(|error| io_error_of(format!("cannot look at {}", file.display()), &error))?;
    let open = || -> Result<(HubStore, Option<HubReader>, String), Trouble> {
        let mut store = HubStore::open(&file)?;
        let id = first_tokens(home, &mut store, url, lasting)?;
        let reader = if store.is_alone() { None } else { Some(HubReader::open(&file)?) };
        Ok((store, reader, id))
    };
    match open() {
        Ok((store, reader, id)) => Ok(Opened {
            lock,
            store,
            reader,
            mark,
            info: dir.join("hub.json"),
            dir,
            id,
            notice,
            unclean,
        }),
        Err(Trouble::Store(error)) if error.kind == StoreKind::Corrupt => {
            Err(salvage::save_damaged(&dir, &error).into())
        }
        Err(other) => Err(other),
    }
}

/// Writes the root token into its own file only and an operator token into `config.json`, each only
/// if there is none that works. Returns the identity of the hub's data.
fn first_tokens(
    home: &Path,
    store: &mut HubStore,
    url: &str,
    lasting: bool,
) -> Result<String, Trouble> {
    let known =
        store.snapshot().map_err(|error| error_of("cannot read the hub's store", &error))?.tokens;
    let works = |token: &str, profile: &str| {
        let hash = os::sha256_hex(token);
        known.iter().any(|(stored, record)| *stored == hash && record.profile_id == profile)
    };
    let root_file = directory(home).join("root-token");
    let root = std::fs::read_to_string(&root_file).unwrap_or_default();
    let mut ops = Vec::new();
    let root = if works(root.trim(), "root") {
        root.trim().to_string()
    } else {
        let token = os::secret();
        os::write_private_file(&root_file, &format!("{token}\n")).map_err(|error| {
            io_error_of(format!("cannot write {}", root_file.display()), &error)
        })?;
        ops.push(token_op(&token, "root"));
        token
    };
    let config = crate::config::read_record(&home.join("config.json"))?;
    let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default();
    let operator_works = works(text("token"), "operator") || works(text("token"), "root");
    // Another relay's settings are not overwritten.
    let elsewhere = !text("relayUrl").is_empty() && text("relayUrl") != url;
    let far =
        crate::edge::http::Base::parse(text("relayUrl")).is_ok_and(|base| !base.is_loopback());
    let foreign = !operator_works
        && ((elsewhere && (far || !text("token").is_empty()))
            || (text("relayUrl").is_empty() && !text("token").is_empty()));
    if foreign {
        log::warn!(target: "hub", "config.json names another relay or its token ({}); left as it is", text("relayUrl"));
    } else if !operator_works {
        let token = os::secret();
        ops.push(token_op(&token, "operator"));
        let fields = [("token", token.as_str()), ("relayUrl", url)];
        crate::config::write_global(home, if lasting { &fields } else { &fields[..1] })?;
    } else if lasting
        && text("relayUrl") != url
        && let Err(error) = crate::config::write_global(home, &[("relayUrl", url)])
    {
        // A hub on a full disk can still be read.
        log::error!(target: "hub", "{error}; commands on this machine may ask another address than {url}");
    }
    if !ops.is_empty() {
        store.commit_ops(&ops).map_err(|error| error_of("cannot write the hub's store", &error))?;
    }
    // New data, new root token, new identity.
    Ok(format!("hub-{}", &os::sha256_hex(&format!("id of {root}"))[..16]))
}

fn token_op(token: &str, profile: &str) -> HubOp {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|since| since.as_secs() as i64)
        .unwrap_or(0);
    let record = TokenRecord {
        jti: format!("{profile}-{}", &os::sha256_hex(token)[..12]),
        profile_id: profile.into(),
        scopes: crate::core::hub::scopes_of(profile)
            .iter()
            .map(|scope| scope.to_string())
            .collect(),
        issued_at: now,
        ..Default::default()
    };
    HubOp::TokenPut { hash: os::sha256_hex(token), record }
}

struct Ports {
    store: Port<StoreCommand>,
    reader: Option<Port<(ReadNumber, Query)>>,
    gate: Port<Orders>,
    gate_orders: OrderCount<Event>,
}

/// Where a hub listens.
#[allow(missing_docs)] // the names say it
pub struct Listening {
    pub listener: TcpListener,
    /// Its own certificate, if it speaks TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// How clients reach it.
    pub url: String,
}

/// Orders and events of a hub's threads, each by its own channel.
struct Channels {
    ports: Ports,
    store_orders: Receiver<StoreCommand>,
    read_orders: Receiver<(ReadNumber, Query)>,
    gate_orders: Receiver<Orders>,
    waker: Waker,
    lanes_in: Vec<Sender<Event>>,
    gate_lane: TurnsIn<Event>,
    lanes_out: Vec<Source<Event>>,
}

impl Channels {
    /// `reads_aside`: reads have a thread of their own.
    fn new(reads_aside: bool) -> Result<Channels, Trouble> {
        let waker = Waker::new()
            .map_err(|error| Trouble::System(format!("cannot make a wake descriptor: {error}")))?;
        let (gate_lane, turns) = turns(waker.clone(), GATE_ORDERS / 2);
        let lane = |lane: &Lane| {
            let (sender, receiver) = bounded(lane_capacity(*lane));
            match lane {
                Lane::Gate => (sender, Source::Turns(turns.clone())),
                Lane::Store | Lane::Main => (sender, Source::Channel(receiver)),
            }
        };
        let (lanes_in, lanes_out) = Lane::ALL.iter().map(lane).unzip();
        let (store_port, store_orders) = bounded(COMMITS_IN_FLIGHT_MAX * 2 + READS_MAX);
        let (read_port, read_orders) = bounded(READS_MAX);
        let (gate_port, gate_orders) = bounded(GATE_ORDERS);
        let ports = Ports {
            store: Port::plain(store_port),
            reader: reads_aside.then(|| Port::plain(read_port)),
            gate: Port::waking(gate_port, waker.clone()),
            gate_orders: turns.order_count(),
        };
        Ok(Channels {
            ports,
            store_orders,
            read_orders,
            gate_orders,
            waker,
            lanes_in,
            gate_lane,
            lanes_out,
        })
    }

    fn to(&self, lane: Lane) -> Sender<Event> {
        self.lanes_in[lane as usize].clone()
    }
}

fn start(
    threads: &mut Threads,
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), Trouble> {
    threads
        .spawn(name, body)
        .map_err(|error| Trouble::System(format!("cannot start a thread: {error}")))
}

/// Serves until it is told to stop. Returns the exit code.
pub fn serve(opened: Opened, listening: Listening, ready: impl FnOnce()) -> Result<u8, Trouble> {
    let Listening { listener, tls, url } = listening;
    let Opened { mut lock, store, reader, mark, dir, info, id, unclean, .. } = opened;
    let clock = Clock::start();
    let mut threads = Threads::new();
    let exits = threads.exits();
    let channels = Channels::new(reader.is_some())?;
    let store_lane = channels.to(Lane::Store);
    let (read_lane, checked) = (channels.to(Lane::Store), channels.to(Lane::Store));
    let (stop, notice) = (channels.to(Lane::Main), channels.to(Lane::Main));
    let Channels { ports, store_orders, read_orders, lanes_in, lanes_out, .. } = channels;
    let gate = Gate::new(Parts {
        listener,
        tls,
        limits: Limits::default(),
        handler,
        orders: channels.gate_orders,
        waker: channels.waker,
        lane: channels.gate_lane,
        identify: Identify::ByToken(os::sha256_hex),
        urgent: is_urgent,
    })
    .map_err(|error| Trouble::System(format!("cannot watch the listening socket: {error}")))?;
    start(&mut threads, "hub-store", move || run_store(store, mark, store_orders, store_lane))?;
    let check = unclean && reader.is_some();
    if let Some(reader) = reader {
        start(&mut threads, "hub-read", move || run_reader(reader, read_orders, read_lane))?;
    }
    let (started, gate_may_run) = bounded::<()>(1);
    start(&mut threads, "hub-gate", move || {
        if gate_may_run.recv().is_ok() {
            gate.run();
        }
    })?;
    let (done, outcome) = bounded(1);
    let lanes = lanes_out.clone();
    start(&mut threads, "hub-state", move || {
        let _ = done.send(run_state(id, clock, &lanes, &ports));
    })?;

    announce(&info, &mut lock, &url);
    drop(lanes_in);
    watch_signals(stop)?;
    let _ = started.send(());
    ready();
    crate::notify::ready(&format!("listens; clients reach it at {url}"));
    let check = if check { check_pages(dir.join("hub.sqlite"), checked) } else { None };

    let end = wait_for_exit(&exits, &outcome, notice);
    drop(check);
    let drain = || lanes_out.iter().for_each(Source::drain);
    for late in threads.join(JOIN_LIMIT, drain) {
        log::warn!(target: "hub", "thread {late} did not end in time");
    }
    let _ = std::fs::remove_file(&info);
    // Whoever waits for it may begin now.
    drop(lock);
    match end.broken {
        Some(error) if error.kind == StoreKind::Corrupt => {
            Err(salvage::save_damaged(&dir, &error).into())
        }
        Some(error) => Err(error.into()),
        None => Ok(end.code),
    }
}

/// The body of the state thread.
fn run_state(id: String, clock: Clock, lanes: &[Source<Event>], ports: &Ports) -> End {
    let config = HubConfig { id, hash: os::sha256_hex, secret: Box::new(os::secret) };
    let mut hub = Hub::new(config, u64::from_le_bytes(os::random_bytes::<8>()));
    let mut end = End::default();
    event_loop::run(&mut hub, clock, lanes, summary, |effects| dispatch(ports, effects, &mut end));
    end
}

/// Says in `hub.json` where this hub is reached, and in the lock file which process holds it.
fn announce(info: &Path, lock: &mut File, url: &str) {
    let pid = std::process::id();
    let text = json!({"pid": pid, "startTime": os::process(pid).start, "url": url}).to_string();
    if let Err(error) = os::write_private_file(info, &text) {
        // A hub on a full disk can still be read.
        log::error!(target: "hub", "cannot write {}: {error}", info.display());
    }
    let _ = lock.set_len(0).and_then(|_| lock.rewind()).and_then(|_| writeln!(lock, "{pid}"));
}

fn watch_signals(stop: Sender<Event>) -> Result<(), Trouble> {
    signals::watch(move |signal| {
        log::info!(target: "hub", "signal {signal}");
        crate::notify::stopping();
        let _ = stop.try_send(Event::StopRequested);
        true
    })
    .map_err(|error| Trouble::System(format!("cannot watch signals: {error}")))
}

/// How a hub ended.
#[derive(Default)]
struct End {
    code: u8,
    broken: Option<StoreError>,
}

impl End {
    fn bug() -> End {
        End { code: 70, broken: None }
    }
}

/// Looks at all pages while the hub serves already; the end of what is given back ends the look.
fn check_pages(file: PathBuf, lane: Sender<Event>) -> Option<Sender<()>> {
    let (ended, watched) = bounded(0);
    let look = move || {
        let found =
            open_for_reading(&file).and_then(|db| quick_check(&db, salvage::CHECK_TIME, &watched));
        match found {
            Ok(Check::Damaged(said)) => {
                let error = StoreError::new(StoreKind::Corrupt, "the hub's store", said);
                let _ = lane.send(Event::Store(StoreEvent::Broken(error)));
            }
            Ok(Check::Fine) => {
                log::info!(target: "hub", "the last hub did not end in order; its store was checked: Fine")
            }
            Ok(Check::Unfinished) => {
                log::info!(target: "hub", "the last hub did not end in order; its store was checked: Unfinished");
            }
            Err(error) => {
                log::warn!(target: "hub", "the last hub did not end in order, and its store cannot be checked: {error}")
            }
        }
    };
    std::thread::Builder::new()
        .name("hub-check".into())
        .stack_size(1 << 20)
        .spawn(look)
        .ok()
        .map(|_| ended)
}

fn wait_for_exit(
    exits: &Receiver<ThreadExit>,
    outcome: &Receiver<End>,
    notice: Sender<Event>,
) -> End {
    loop {
        let Ok(exit) = exits.recv() else { return End::bug() };
        if exit.name == "hub-state" {
            if let Some(panic) = &exit.panic {
                log::error!(target: "hub", "the state thread died: {panic}; this is a bug, please report it");
            }
            return outcome.try_recv().unwrap_or_else(|_| End::bug());
        }
        let _ = notice.try_send(Event::ThreadEnded { name: exit.name, panic: exit.panic });
    }
}

fn summary(event: &Event) -> String {
    match event {
        Event::Request { request, .. } => format!("{} {}", request.method, request.path),
        Event::PeerText { peer, text } => format!("peer {peer} frame bytes={}", text.len()),
        Event::Store(_) => "store".into(),
        Event::Upgrade { ticket, request } => format!("Upgrade ticket={ticket} {}", request.path),
        Event::PeerClosed { peer } => format!("PeerClosed peer={peer}"),
        Event::StopRequested => "StopRequested".into(),
        Event::ThreadEnded { name, .. } => format!("ThreadEnded name={name}"),
    }
}

/// Carries out the effects of one event. False: the machine has finished.
fn dispatch(ports: &Ports, effects: Vec<Effect>, end: &mut End) -> bool {
    let mut orders: Orders = Vec::new();
    let mut goes_on = true;
    for effect in effects {
        match effect {
            Effect::Store(command) => ports.store.order(command),
            Effect::Read { number, query } => match &ports.reader {
                Some(reader) => reader.order((number, query)),
                None => ports.store.order(StoreCommand::Read { number, query: Box::new(query) }),
            },
            Effect::Gate(command) => orders.push(command),
            Effect::Log { level, text } => crate::log::write(level, "hub", &text),
            Effect::Failed(text) => {
                log::error!(target: "hub", "{text}");
                end.code = 70;
            }
            Effect::Broken(error) => end.broken = Some(error),
            Effect::Finish => goes_on = false,
        }
    }
    if !orders.is_empty() {
        ports.gate_orders.add();
        ports.gate.order(orders);
    }
    goes_on
}

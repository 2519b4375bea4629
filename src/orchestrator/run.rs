//! The orchestrator's process: threads and channels, from the open files to the end.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Map, Value};

use crate::clock::Clock;
use crate::core::Lane as _;
use crate::core::agent::effect::BusCommand;
use crate::core::agent::event::BusEvent;
use crate::core::limits::{COMMITS_IN_FLIGHT_MAX, GUESTS_MAX, LOOKS_IN_FLIGHT_MAX};
use crate::core::orchestrator::config::OrchestratorConfig;
use crate::core::orchestrator::effect::{Call, Effect, RecordsCommand, Work};
use crate::core::orchestrator::event::{Event, Lane};
use crate::core::orchestrator::look::Look;
use crate::core::orchestrator::{Orchestrator, SESSIONS_MAX};
use crate::edge::gate::{Gate, GateEvent, Handled, Identify, Limits, Orders, Parts};
use crate::edge::orchestrator::calls::Asking;
use crate::edge::orchestrator::look::Places;
use crate::edge::orchestrator::records::RecordsFile;
use crate::edge::orchestrator::watch::Watched;
use crate::edge::orchestrator::work::Worker;
use crate::edge::orchestrator::{calls, look, records, watch, work};
use crate::edge::turns::{OrderCount, TurnsIn, TurnsOut, turns};
use crate::edge::{Port, bus, signals};
use crate::os::{self, Waker};
use crate::runtime::event_loop::{self, Source};
use crate::runtime::threads::{ThreadExit, Threads};
use crate::secret::Secret;
use crate::wire::api::error_body;

/// Threads that do the work for sessions: systemd answers late, and each waits for one answer.
const WORKERS: usize = 6;
/// Events of one lane that wait for the state thread at most.
const LANE_PLACES: usize = 256;
/// Frames that wait for the bus.
const BUS_ORDERS: usize = 8192;
/// Requests that wait for an answer at once.
const REQUESTS_MAX: usize = 256;
/// Looks that wait for their thread: those of others, ends of guests, and the host.
const LOOKS_MAX: usize = LOOKS_IN_FLIGHT_MAX + GUESTS_MAX + 2;
/// Batches of orders for the interface. With half of them on their way nothing more is taken of it.
const GATE_ORDERS: usize = REQUESTS_MAX * 4;
/// Longest wait for an answer: a start or a stop may take long.
const ANSWER_TIME: Duration = Duration::from_secs(150);
/// Threads get this long to end after the machine has finished.
const JOIN_LIMIT: Duration = Duration::from_secs(3);

/// Everything that an orchestrator is built from.
#[allow(missing_docs)] // the names say it
pub struct OrchestratorParts {
    pub config: OrchestratorConfig,
    pub records: RecordsFile,
    /// What [`RecordsFile::open`] gave.
    pub opened: (Vec<Value>, Option<String>),
    pub asking: Asking,
    pub worker: Worker,
    pub places: Places,
    pub listener: TcpListener,
    /// Opens the interface.
    pub token: Secret,
    /// Removed at the end.
    pub info_file: PathBuf,
}

struct Ports {
    records: Port<RecordsCommand>,
    bus: Port<BusCommand>,
    calls: Port<Call>,
    work: Port<(String, Work)>,
    watch: Port<Watched>,
    /// One for each thread.
    looks: Vec<Port<(u64, Look)>>,
    gate: Port<Orders>,
    gate_orders: OrderCount<Event>,
}

/// What the threads get of the channels.
struct OrdersOut {
    records: Receiver<RecordsCommand>,
    bus: Receiver<BusCommand>,
    calls: Receiver<Call>,
    work: Receiver<(String, Work)>,
    watch: Receiver<Watched>,
    looks: Vec<Receiver<(u64, Look)>>,
    gate: Receiver<Orders>,
    bus_waker: Waker,
    watch_waker: Waker,
    gate_waker: Waker,
    gate_lane: TurnsIn<Event>,
    gate_turns: TurnsOut<Event>,
}

impl Ports {
    fn new() -> std::io::Result<(Ports, OrdersOut)> {
        let (records_port, records) = bounded(COMMITS_IN_FLIGHT_MAX + 16);
        let (bus_port, bus) = bounded(BUS_ORDERS);
        // One call and one order for each session at a time; a watch for each start.
        let (calls_port, calls) = bounded(SESSIONS_MAX * 3);
        let (work_port, work) = bounded(SESSIONS_MAX + 16);
        let (watch_port, watch) = bounded(SESSIONS_MAX * 2);
        let (looks_ports, looks) = (0..look::THREADS).map(|_| bounded(LOOKS_MAX)).unzip();
        let looks_ports: Vec<Sender<(u64, Look)>> = looks_ports;
        let (gate_port, gate) = bounded(GATE_ORDERS);
        let (bus_waker, watch_waker, gate_waker) = (Waker::new()?, Waker::new()?, Waker::new()?);
        let (gate_lane, gate_turns) = turns(gate_waker.clone(), GATE_ORDERS / 2);
        let ports = Ports {
            records: Port::plain(records_port),
            bus: Port::waking(bus_port, bus_waker.clone()),
            calls: Port::plain(calls_port),
            work: Port::plain(work_port),
            watch: Port::waking(watch_port, watch_waker.clone()),
            looks: looks_ports.into_iter().map(Port::plain).collect(),
            gate: Port::waking(gate_port, gate_waker.clone()),
            gate_orders: gate_turns.order_count(),
        };
        let out = OrdersOut {
            records,
            bus,
            calls,
            work,
            watch,
            looks,
            gate,
            bus_waker,
            watch_waker,
            gate_waker,
            gate_lane,
            gate_turns,
        };
        Ok((ports, out))
    }
}

/// How an orchestrator ended: exit code and a sentence.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Default)]
pub struct End {
    pub code: u8,
    pub message: String,
}

/// Runs until it is told to stop; its sessions stay. An error is a refusal of the system.
pub fn serve(parts: OrchestratorParts, ready: impl FnOnce()) -> Result<End, String> {
    let clock = Clock::start();
    let mut threads = Threads::new();
    let exits = threads.exits();
    let (ports, orders) =
        Ports::new().map_err(|error| format!("cannot make a wake descriptor: {error}"))?;
    let lane = |lane: &Lane| {
        let (sender, receiver) = bounded(LANE_PLACES);
        let is_gate = *lane as usize == Lane::Gate as usize;
        let turns = is_gate.then(|| Source::Turns(orders.gate_turns.clone()));
        (sender, turns.unwrap_or(Source::Channel(receiver)))
    };
    let (lanes_in, lanes_out): (Vec<Sender<Event>>, Vec<Source<Event>>) =
        Lane::ALL.iter().map(lane).unzip();
    let (config, info_file) = (parts.config.clone(), parts.info_file.clone());
    start_edges(&mut threads, parts, orders, &lanes_in)?;
    let notice = lanes_in[Lane::Main as usize].clone();
    let stop = notice.clone();
    signals::watch(move |signal| {
        log::info!(target: "orchestrator", "signal {signal}");
        crate::notify::stopping();
        let _ = stop.try_send(Event::StopRequested);
        true
    })
    .map_err(|error| format!("cannot watch signals: {error}"))?;
    let (done, outcome) = bounded(1);
    let lanes = lanes_out.clone();
    let state = move || {
        let seed = u64::from_le_bytes(os::random_bytes::<8>());
        let mut orchestrator = Orchestrator::new(config, seed);
        let mut end = End::default();
        event_loop::run(&mut orchestrator, clock, &lanes[..], summary, |effects| {
            dispatch(&ports, effects, &mut end)
        });
        let _ = done.send(end);
    };
    start(&mut threads, "orchestrator-state", state)?;
    drop(lanes_in);
    ready();
    let end = wait_for_exit(&exits, &outcome, notice);
    let drain = || lanes_out.iter().for_each(Source::drain);
    for late in threads.join(JOIN_LIMIT, drain) {
        log::warn!(target: "orchestrator", "thread {late} did not end in time");
    }
    let _ = std::fs::remove_file(info_file);
    Ok(end)
}

fn start_edges(
    threads: &mut Threads,
    parts: OrchestratorParts,
    orders: OrdersOut,
    lanes: &[Sender<Event>],
) -> Result<(), String> {
    let to = |lane: Lane| lanes[lane as usize].clone();
    let limits = Limits {
        connections_max: REQUESTS_MAX * 2,
        headless_max: REQUESTS_MAX,
        answer_time: ANSWER_TIME,
        ..Limits::default()
    };
    let gate = Gate::new(Parts {
        listener: parts.listener,
        tls: None,
        limits,
        handler: handler(parts.token),
        orders: orders.gate,
        waker: orders.gate_waker,
        lane: orders.gate_lane,
        identify: Identify::ByConnection,
        urgent: |_| false,
    })
    .map_err(|error| format!("cannot watch the listening socket: {error}"))?;
    let (file, opened, lane) = (parts.records, parts.opened, to(Lane::Records));
    start(threads, "records", move || records::run(file, opened, orders.records, lane))?;
    let (asking, lane) = (parts.asking, to(Lane::Calls));
    start(threads, "calls", move || calls::run(asking, orders.calls, lane))?;
    let lane = to(Lane::Watch);
    start(threads, "watch", move || watch::run(orders.watch, orders.watch_waker, lane))?;
    let lane = to(Lane::Bus);
    start(threads, "bus", move || bus::run(orders.bus, orders.bus_waker, lane))?;
    for _ in 0..WORKERS {
        let (worker, lane) = (parts.worker.clone(), to(Lane::Work));
        let orders = orders.work.clone();
        start(threads, "work", move || work::run(worker, orders, lane))?;
    }
    for taken in orders.looks {
        let (places, lane) = (parts.places.clone(), to(Lane::Look));
        let report = |number, looked| Event::Looked { number, looked };
        start(threads, "look", move || look::run(places, taken, lane, report))?;
    }
    start(threads, "gate", move || gate.run())
}

fn start(
    threads: &mut Threads,
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), String> {
    threads.spawn(name, body).map_err(|error| format!("cannot start a thread: {error}"))
}

fn wait_for_exit(
    exits: &Receiver<ThreadExit>,
    outcome: &Receiver<End>,
    notice: Sender<Event>,
) -> End {
    let bug = |message: String| End { code: 70, message };
    loop {
        let Ok(exit) = exits.recv() else { return bug("all threads are gone".into()) };
        if exit.name == "orchestrator-state" {
            let said = exit.panic.unwrap_or_else(|| "no outcome".into());
            return outcome.try_recv().unwrap_or_else(|_| {
                bug(format!("the state thread died: {said}; this is a bug, please report it"))
            });
        }
        let _ = notice.try_send(Event::ThreadEnded { name: exit.name, panic: exit.panic });
    }
}

/// What the interface asks for each request: `POST /<operation>` with its parameters, or `GET` for
/// one that needs none.
fn handler(token: Secret) -> impl FnMut(GateEvent) -> Handled<Event> + Send + 'static {
    let refuse = |status: u16, code: &str, text: &str| {
        Handled::Answer(status, error_body(code, text).into())
    };
    move |event| {
        let (ticket, request) = match event {
            GateEvent::Request(ticket, request) => (ticket, request),
            GateEvent::Upgrade(..) => return refuse(404, "not_found", "there is no bus here"),
            GateEvent::PeerText(..) | GateEvent::PeerClosed(_) => {
                return Handled::Answer(404, Value::Null.into());
            }
        };
        if request.path == "/health" {
            return Handled::Answer(200, serde_json::json!({"ok": true}).into());
        }
        if !crate::runtime::control::same(request.token.as_bytes(), token.expose().as_bytes()) {
            let text = "the interface needs its token: Authorization: Bearer <token of orchestrator/orchestrator.json>";
            return refuse(401, "unauthorized", text);
        }
        if let Some((code, text)) = request.cost.refusal() {
            return refuse(422, code, &text);
        }
        let params = match (request.method.as_str(), request.body.is_empty()) {
            ("GET", _) | ("POST", true) => Some(Map::new()),
            ("POST", false) => serde_json::from_slice::<Map<String, Value>>(&request.body).ok(),
            _ => return refuse(405, "method_not_allowed", "use POST /<operation>"),
        };
        let Some(params) = params else {
            return refuse(400, "bad_request", "the body must be a JSON object");
        };
        let operation = request.path.trim_start_matches('/').to_string();
        Handled::Forward(Event::Asked { ticket, operation, params })
    }
}

fn summary(event: &Event) -> String {
    match event {
        Event::Records(_) => "records".into(),
        Event::Asked { ticket, operation, .. } => format!("asked {operation} ticket={ticket}"),
        Event::Bus(BusEvent::Framed(_)) => "bus frame".into(),
        Event::Bus(BusEvent::FramedInPart(..)) => "bus frame in part".into(),
        Event::Bus(BusEvent::Connected) => "bus connected".into(),
        Event::Bus(BusEvent::Lost(cause)) => format!("bus lost: {cause}"),
        Event::Called(_) => "called".into(),
        Event::Worked { session, .. } => format!("worked {session}"),
        Event::Gone { session, .. } => format!("gone {session}"),
        Event::Looked { number, .. } => format!("looked {number}"),
        Event::StopRequested => "stop requested".into(),
        Event::ThreadEnded { name, .. } => format!("thread ended: {name}"),
    }
}

/// Carries out the effects of one event. False: the machine has finished.
fn dispatch(ports: &Ports, effects: Vec<Effect>, end: &mut End) -> bool {
    let mut answers: Orders = Vec::new();
    let mut goes_on = true;
    for effect in effects {
        match effect {
            Effect::Records(command) => ports.records.order(command),
            Effect::Bus(command) => ports.bus.order(command),
            Effect::Call(call) => ports.calls.order(call),
            Effect::Work { session, work } => ports.work.order((session, work)),
            Effect::Watch { session, launch, process } => {
                ports.watch.order(Watched { session, launch, process })
            }
            Effect::Look { number, look } => {
                ports.looks[look::thread_of(&look)].order((number, look))
            }
            Effect::Gate(command) => answers.push(command),
            Effect::Log { level, text } => crate::log::write(level, "orchestrator", &text),
            Effect::Status(text) => crate::notify::status(&text),
            Effect::Finish { code, message } => {
                *end = End { code, message };
                goes_on = false;
            }
        }
    }
    if !answers.is_empty() {
        ports.gate_orders.add();
        ports.gate.order(answers);
    }
    goes_on
}

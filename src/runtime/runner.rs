//! A runner: all threads and channels of one agent, wired in one place.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT};

use super::control;
use super::event_loop::{self, Source};
use super::threads::Threads;
use crate::clock::Clock;
use crate::core::Lane as _;
use crate::core::agent::Agent;
use crate::core::agent::config::AgentConfig;
use crate::core::agent::effect::{
    BusCommand, Effect, HeartbeatCommand, Outcome, ProviderCommand, PumpCommand, StoreCommand,
};
use crate::core::agent::event::{Event, Lane, StopReason};
use crate::core::limits::{COMMITS_IN_FLIGHT_MAX, CONTROL_HELD_MAX};
use crate::edge::gate::{Gate, Identify, Limits, Orders, Parts};
use crate::edge::provider::ChildRegistration;
use crate::edge::store::Store;
use crate::edge::turns::{OrderCount, TurnsIn, TurnsOut, turns};
use crate::edge::{Port, bus, heartbeat, provider, pump, signals, store};
use crate::os::{self, Waker};
use crate::secret::Secret;

/// Everything that a runner is built from.
#[allow(missing_docs)] // the names say it
pub struct RunnerParts {
    /// Settings of the machine.
    pub config: AgentConfig,
    /// Where a replacement token may stand, and where the agent's own is put for its tools.
    pub files: heartbeat::Files,
    /// The open store.
    pub store: Store,
    /// How the provider is started.
    pub launch: provider::Launch,
    /// Socket of the control server.
    pub control: TcpListener,
    /// Token of the control server.
    pub control_token: Secret,
    /// The process that the provider thread runs, each time that it changes.
    pub child_registrations: Receiver<Option<ChildRegistration>>,
    pub clock: Clock,
    /// Prints a sentence for whoever started the runner.
    pub tell: fn(&str),
}

/// Events of one edge that wait for the state thread at most.
const fn lane_capacity(lane: Lane) -> usize {
    match lane {
        Lane::Store | Lane::Provider => 64,
        // Has a queue of its own.
        Lane::Control => 0,
        Lane::Bus => 256,
        Lane::Heartbeat | Lane::Pump => 16,
        Lane::Main => 8,
    }
}

/// Orders for the bus: what one credit's worth of commits may release, and the frames of a burst.
const BUS_ORDERS: usize = 8192;
/// Batches of orders for the control port. With half of them on their way nothing more is taken of
/// it; the rest is for what other lanes answer.
const CONTROL_ORDERS: usize = 1024;
/// Orders for the provider: verbs are answered one by one and bounded by commands and batches.
const PROVIDER_ORDERS: usize = 1024;
/// After the machine has finished, threads get this long.
const JOIN_LIMIT: Duration = Duration::from_secs(3);

struct Ports {
    store: Port<StoreCommand>,
    bus: Port<BusCommand>,
    heartbeat: Port<HeartbeatCommand>,
    pump: Port<PumpCommand>,
    provider: Port<ProviderCommand>,
    control: Port<Orders>,
    control_orders: OrderCount<Event>,
}

/// What the threads get of the channels: their orders, and what wakes them for those.
struct OrdersOut {
    store: Receiver<StoreCommand>,
    bus: Receiver<BusCommand>,
    heartbeat: Receiver<HeartbeatCommand>,
    pump: Receiver<PumpCommand>,
    provider: Receiver<ProviderCommand>,
    control: Receiver<Orders>,
    bus_waker: Waker,
    provider_waker: Waker,
    control_waker: Waker,
    control_lane: TurnsIn<Event>,
    control_turns: TurnsOut<Event>,
}

impl Ports {
    fn new() -> Result<(Ports, OrdersOut), String> {
        let waker =
            || Waker::new().map_err(|error| format!("cannot make a wake descriptor: {error}"));
        let (store_port, store) = bounded(COMMITS_IN_FLIGHT_MAX + 16);
        let (bus_port, bus) = bounded(BUS_ORDERS);
        let (heartbeat_port, heartbeat) = bounded(4);
        let (pump_port, pump) = bounded(1);
        let (provider_port, provider) = bounded(PROVIDER_ORDERS);
        let (control_port, control) = bounded(CONTROL_ORDERS);
        let (bus_waker, provider_waker, control_waker) = (waker()?, waker()?, waker()?);
        let (control_lane, control_turns) = turns(control_waker.clone(), CONTROL_ORDERS / 2);
        let ports = Ports {
            store: Port::plain(store_port),
            bus: Port::waking(bus_port, bus_waker.clone()),
            heartbeat: Port::plain(heartbeat_port),
            pump: Port::plain(pump_port),
            provider: Port::waking(provider_port, provider_waker.clone()),
            control: Port::waking(control_port, control_waker.clone()),
            control_orders: control_turns.order_count(),
        };
        let orders = OrdersOut {
            store,
            bus,
            heartbeat,
            pump,
            provider,
            control,
            bus_waker,
            provider_waker,
            control_waker,
            control_lane,
            control_turns,
        };
        Ok((ports, orders))
    }
}

/// Runs until the machine has finished; nothing of it is left behind. An error is a refusal of the
/// operating system (threads, descriptors, signals) before anything was done.
pub fn run(parts: RunnerParts) -> Result<Outcome, String> {
    let mut threads = Threads::new();
    let exits = threads.exits();
    let (ports, orders) = Ports::new()?;
    let lane = |lane: &Lane| {
        let (sender, receiver) = bounded(lane_capacity(*lane));
        let is_control = *lane as usize == Lane::Control as usize;
        let turns = is_control.then(|| Source::Turns(orders.control_turns.clone()));
        (sender, turns.unwrap_or(Source::Channel(receiver)))
    };
    let (lanes_in, lanes_out): (Vec<Sender<Event>>, Vec<Source<Event>>) =
        Lane::ALL.iter().map(lane).unzip();
    let RunnerParts { config, clock, tell, child_registrations, .. } = parts;
    let whoami =
        format!("agent {}; `agent-relay status {0} --why` tells how it is", config.agent_id);
    let edges = Edges {
        files: parts.files,
        store: parts.store,
        launch: parts.launch,
        control: parts.control,
        control_token: parts.control_token,
    };
    edges.start(&mut threads, orders, &lanes_in)?;

    let (done, outcome) = bounded(1);
    let (force_stop, stop_forced) = unbounded();
    let notice = lanes_in[Lane::Main as usize].clone();
    watch_signals(notice.clone(), force_stop)?;
    let lanes = lanes_out.clone();
    let state = move || {
        let seed = u64::from_le_bytes(os::random_bytes::<8>());
        log::debug!(target: "runner", "seed {seed}");
        let mut agent = Agent::new(config, seed);
        let mut outcome = None;
        event_loop::run(&mut agent, clock, &lanes[..], Event::summary, |effects| {
            let finished = dispatch(&ports, effects, tell);
            outcome = finished.or(outcome.take());
            if outcome.as_ref().is_some_and(|outcome| outcome.code == 70) {
                log::error!(target: "runner", "last events: {}", event_loop::recent().join("; "));
            }
            outcome.is_none() && stop_forced.try_recv().is_err()
        });
        let _ = done.send(outcome.unwrap_or(Outcome { code: 0, message: String::new() }));
    };
    start(&mut threads, "state", state)?;

    drop(lanes_in);
    // The store and the control port are open: that is all that others may count on. The relay may
    // be away for days.
    crate::notify::ready(&whoami);
    let outcome = wait_for_exit(&exits, &outcome, notice);
    let drain = || lanes_out.iter().for_each(Source::drain);
    for late in threads.join(JOIN_LIMIT, drain) {
        log::warn!(target: "runner", "thread {late} did not end in time");
    }
    last_kill(&child_registrations);
    Ok(outcome)
}

/// What the edges are built from.
struct Edges {
    files: heartbeat::Files,
    store: Store,
    launch: provider::Launch,
    control: TcpListener,
    control_token: Secret,
}

impl Edges {
    /// Starts a thread for each.
    fn start(
        self,
        threads: &mut Threads,
        orders: OrdersOut,
        lanes: &[Sender<Event>],
    ) -> Result<(), String> {
        let to = |lane: Lane| lanes[lane as usize].clone();
        let gate = Gate::new(Parts {
            listener: self.control,
            tls: None,
            limits: control_limits(),
            handler: control::handler(self.control_token),
            orders: orders.control,
            waker: orders.control_waker,
            lane: orders.control_lane,
            identify: Identify::ByConnection,
            urgent: control::is_urgent,
        })
        .map_err(|error| format!("cannot watch the control port: {error}"))?;
        let (file, lane) = (self.store, to(Lane::Store));
        start(threads, "store", move || store::run(file, orders.store, lane))?;
        let lane = to(Lane::Bus);
        start(threads, "bus", move || bus::run(orders.bus, orders.bus_waker, lane))?;
        let (files, lane) = (self.files, to(Lane::Heartbeat));
        start(threads, "heartbeat", move || heartbeat::run(files, orders.heartbeat, lane))?;
        let lane = to(Lane::Pump);
        start(threads, "pump", move || pump::run(orders.pump, lane))?;
        let (launch, lane) = (self.launch, to(Lane::Provider));
        start(threads, "provider", move || {
            provider::run(launch, orders.provider, orders.provider_waker, lane)
        })?;
        start(threads, "control", move || gate.run())
    }
}

fn start(
    threads: &mut Threads,
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), String> {
    threads.spawn(name, body).map_err(|error| format!("cannot start a thread: {error}"))
}

/// The first signal stops the runner in order. The second one is impatient: the state thread leaves
/// after its next event.
fn watch_signals(lane: Sender<Event>, force_stop: Sender<()>) -> Result<(), String> {
    let second = AtomicBool::new(false);
    signals::watch(move |signal| {
        log::info!(target: "runner", "signal {signal}");
        crate::notify::stopping();
        let again = second.swap(true, Ordering::Relaxed);
        let reason = match signal {
            SIGINT => StopReason::Interrupted,
            SIGHUP => StopReason::HungUp,
            _ => StopReason::Terminated,
        };
        let _ = lane.try_send(Event::StopRequested(reason));
        !again || force_stop.send(()).is_ok()
    })
    .map_err(|error| format!("cannot watch signals: {error}"))
}

/// `main` waits for the end of the state thread; when another thread ends first, the state thread
/// gets an event.
fn wait_for_exit(
    exits: &Receiver<super::threads::ThreadExit>,
    outcome: &Receiver<Outcome>,
    notice: Sender<Event>,
) -> Outcome {
    loop {
        let Ok(exit) = exits.recv() else {
            return Outcome { code: 70, message: "all threads are gone".into() };
        };
        if exit.name != "state" {
            let _ = notice.try_send(Event::ThreadEnded { name: exit.name, panic: exit.panic });
            continue;
        }
        return outcome.try_recv().unwrap_or_else(|_| {
            let text = exit.panic.unwrap_or_else(|| "no outcome".into());
            Outcome {
                code: 70,
                message: format!("the state thread died: {text}; this is a bug, please report it"),
            }
        });
    }
}

/// If everything else died, the provider still ends.
fn last_kill(child_registrations: &Receiver<Option<ChildRegistration>>) {
    let mut last = None;
    while let Ok(told) = child_registrations.try_recv() {
        last = told;
    }
    if let Some(ChildRegistration { process, provider_session }) = last
        && os::is_alive(process)
    {
        log::error!(target: "lifecycle", "ending the provider pid={} from main", process.pid);
        provider::end_everything(&provider_session, process);
    }
}

fn control_limits() -> Limits {
    Limits {
        connections_max: CONTROL_HELD_MAX * 4,
        headless_max: CONTROL_HELD_MAX,
        ..Limits::default()
    }
}

/// Carries out the effects of one event; returns the outcome when the machine has finished.
fn dispatch(ports: &Ports, effects: Vec<Effect>, tell: fn(&str)) -> Option<Outcome> {
    let mut answers: Orders = Vec::new();
    let mut outcome = None;
    for effect in effects {
        match effect {
            Effect::Store(command) => ports.store.order(command),
            Effect::Bus(command) => ports.bus.order(command),
            Effect::Heartbeat(command) => ports.heartbeat.order(command),
            Effect::Pump(command) => ports.pump.order(command),
            Effect::Provider(command) => ports.provider.order(command),
            Effect::Gate(command) => answers.push(command),
            Effect::Tell { text } => tell(&text),
            Effect::Log { level, component, text } => crate::log::write(level, &component, &text),
            Effect::Finish(finished) => outcome = Some(finished),
        }
    }
    if !answers.is_empty() {
        ports.control_orders.add();
        ports.control.order(answers);
    }
    outcome
}

/// The machine may release a whole credit's worth of frames at once.
const _: () = assert!(BUS_ORDERS >= COMMITS_IN_FLIGHT_MAX * 8);

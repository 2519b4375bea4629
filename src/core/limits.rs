//! Every maximum that the machines rely on, with its unit in the name.

use std::time::Duration;

/// Messages that are unacknowledged on one connection.
pub const UNACKED_PER_PEER_MAX: usize = 32;
/// Bytes of unacknowledged messages on one connection, so that a peer's buffer stays bounded.
pub const UNACKED_BYTES_MAX: usize = 2 << 20;
/// Commits that a machine may have under way; beyond it only the store is listened to.
pub const COMMITS_IN_FLIGHT_MAX: usize = 256;
/// Acknowledgements that wait for a commit which they can go with, and how long one waits at most:
/// what a crash forgets of them is delivered once more.
pub const LATE_ACKS_MAX: usize = 256;
/// See [`LATE_ACKS_MAX`].
pub const LATE_ACKS_TIME: Duration = Duration::from_millis(100);
/// Reads that a hub may have under way; beyond it only answers are listened to.
pub const READS_IN_FLIGHT_MAX: usize = 2048;
/// Reads that are with the reader at once; the others take turns by token line.
pub const READS_AT_ONCE_MAX: usize = 4;
/// Further commits kept back for what a person asks at the control port.
pub const COMMITS_RESERVED: usize = 32;
/// Waiting inbox messages whose bodies are kept in memory; the rest waits in the store. Half of
/// them may be of one sender.
pub const INBOX_CACHED_MAX: usize = 2048;
/// Bytes of those bodies.
pub const INBOX_CACHED_BYTES_MAX: usize = 4 << 20;
/// Messages in one batch for the provider: of short ones [`BATCH_CHARS_MAX`] ends it sooner.
pub const BATCH_MESSAGES_MAX: usize = 1024;
/// Characters of one batch. Well below what providers were seen to take whole (200 kB).
pub const BATCH_CHARS_MAX: usize = 100_000;
/// Ids of settled messages that are remembered, so that a repeated frame is dropped. Far more than
/// [`UNACKED_PER_PEER_MAX`], and a message leaves the window only after the relay knows that it is
/// read.
pub const SETTLED_IDS_MAX: usize = 4096;
/// Finished commands that are remembered, so that a repeated one is not carried out again.
pub const COMMANDS_KEPT_MAX: usize = 256;
/// The outbox may hold this many bytes unless the configuration says otherwise.
pub const OUTBOX_BYTES_MAX: u64 = 1 << 30;
/// Rows that the pump gets at once.
pub const PUMP_ROWS_MAX: usize = 64;
/// Bytes that the pump gets at once: below the relay's body limit.
pub const PUMP_BYTES_MAX: usize = 768 << 10;
/// HTTP calls that wait for the heartbeat thread.
pub const CALLS_WAITING_MAX: usize = 512;
/// Requests that one control server holds at once.
pub const CONTROL_HELD_MAX: usize = 64;
/// Pieces of work that an agent is seen at.
pub const WORK_MAX: usize = 1024;
/// Open approvals of one agent.
pub const APPROVALS_MAX: usize = 64;
/// Bytes of the input of an open approval, and of its further details, as JSON: all of them stand
/// in one status frame.
pub const APPROVAL_PART_BYTES_MAX: usize = 5 << 10;
/// Characters of a text in an open approval.
pub const FIELD_CHARS_MAX: usize = 2000;
/// Characters of a message body that a provider gets where several messages come at once; the rest
/// is fetched by id.
pub const PREVIEW_CHARS_MAX: usize = 4000;
/// Bytes of one mirrored text.
pub const MIRROR_BODY_BYTES_MAX: usize = 64 << 10;
/// Bytes of a final text that goes out as reply.
pub const REPLY_BODY_BYTES_MAX: usize = 256 << 10;
/// Events that are remembered for a subscriber that comes back.
pub const EVENTS_KEPT_MAX: usize = 1024;
/// Connections of a gate, fewer where descriptors are short.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Agents that a hub knows.
pub const AGENTS_MAX: usize = 20_000;
/// Lines of a log that are shown unless somebody asks for another number.
pub const LOG_LINES_DEFAULT: usize = 100;
/// Lines of a log that are shown at once.
pub const LOG_LINES_MAX: usize = 1000;
/// Lines of a log in a diagnosis.
pub const LOG_LINES_DIAGNOSED: usize = 20;
/// Lines of the service manager in a diagnosis.
pub const JOURNAL_LINES_DIAGNOSED: usize = 20;
/// Characters of one line of a log.
pub const LOG_LINE_CHARS_MAX: usize = 4000;
/// Bytes from the end of a log that are looked at, however long it is.
pub const LOG_WINDOW_BYTES_MAX: usize = 1 << 20;
/// Bytes of lines of a log in one answer, as JSON.
pub const LOG_ANSWER_BYTES_MAX: usize = 512 << 10;
/// Spaces that movements of the cursor may leave behind in one text.
pub const LOG_GAP_SPACES_MAX: usize = 256 << 10;
/// Bytes of a line that is not complete, while a log is followed.
pub const LOG_HELD_BYTES_MAX: usize = 64 << 10;
/// UTF-16 units of input for a terminal at once.
pub const TERMINAL_INPUT_MAX: usize = 4096;
/// Columns of a terminal, least and most.
pub const TERMINAL_COLUMNS: (u16, u16) = (10, 500);
/// Rows of a terminal, least and most.
pub const TERMINAL_ROWS: (u16, u16) = (5, 200);
/// Lines of history that are shown with a terminal.
pub const TERMINAL_HISTORY: u32 = 1000;
/// Bytes of a terminal's content that are kept while it is read; an answer holds less.
pub const TERMINAL_READ_BYTES_MAX: usize = 4 << 20;
/// Bytes of a terminal's content in one answer, as JSON.
pub const TERMINAL_ANSWER_BYTES_MAX: usize = 512 << 10;
/// Bytes of the style that stands in front of a content that was cut.
pub const TERMINAL_STYLES_MAX: usize = 512;
/// Keys and texts in one call of tmux.
pub const SEND_KEYS_MAX: usize = 64;
/// Bytes of one call of tmux, whose messages hold 16 kB.
pub const SEND_KEYS_BYTES_MAX: usize = 14 << 10;
/// Terminals of guests that are open at once.
pub const GUESTS_MAX: usize = 16;
/// Words of a command that a runner tells for its guests.
pub const ATTACH_WORDS_MAX: usize = 256;
/// Variables that a runner tells for its guests.
pub const ATTACH_ENV_MAX: usize = 256;
/// Bytes of that command and those variables.
pub const ATTACH_SPEC_BYTES_MAX: usize = 64 << 10;
/// Bytes of what a runner tells about itself in its file.
pub const RUNNER_INFO_BYTES_MAX: u64 = 64 << 10;
/// Bytes of what the service manager has written about a unit that are looked at.
pub const JOURNAL_BYTES_MAX: usize = 64 << 10;
/// Looks and touches that are under way at once.
pub const LOOKS_IN_FLIGHT_MAX: usize = 64;
/// Programs of providers in the report of a host.
pub const PROGRAMS_REPORTED_MAX: usize = 32;
/// Commands that wait at a hub.
pub const COMMANDS_PENDING_MAX: usize = 10_000;

/// Events of one token line that the state thread takes in a row while others wait.
pub const TURN_EVENTS_MAX: usize = 16;
/// Bytes of them; what the last one has more counts against the next turns of its line.
pub const TURN_BYTES_MAX: usize = 256 << 10;
/// Values of them; the same.
pub const TURN_MEMBERS_MAX: usize = 4096;
/// Bytes of a heartbeat or an acknowledgement that goes into the reserve.
pub const URGENT_BYTES_MAX: usize = 4 << 10;
/// Levels of nesting of a JSON body or frame.
pub const JSON_DEPTH_MAX: usize = 64;
/// Levels of what a runner sends on: others put more around it.
pub const SENT_DEPTH_MAX: usize = 32;
/// Values of a JSON body or frame, containers included: what costs the state thread some
/// milliseconds at most.
pub const JSON_MEMBERS_MAX: usize = 4096;
/// Values of what a hook of a provider reports; it is read beside the state thread.
pub const HOOK_MEMBERS_MAX: usize = 65_536;
/// Frames of one connection that are answered as too deep or too large; with more it is closed.
pub const FRAMES_REFUSED_MAX: u32 = 64;
/// Bytes of a target, a subject, a channel, a key, a title or a reason.
pub const FIELD_BYTES_MAX: usize = 1000;
/// Bytes of a name: a sender, a component, an instance, a frame, a kind of command.
pub const NAME_BYTES_MAX: usize = 400;
/// Bytes of a label, a tag or a capability.
pub const LABEL_BYTES_MAX: usize = 200;
/// Tags, and capabilities, of one agent.
pub const LABELS_MAX: usize = 64;
/// Bytes of what an agent tells of itself (its meta), as JSON.
pub const META_BYTES_MAX: usize = 512 << 10;
/// Bytes of a note about the progress of a task, its further details included.
pub const TASK_NOTE_BYTES_MAX: usize = 64 << 10;
/// Bytes of all notes of one task.
pub const TASK_NOTES_BYTES_MAX: usize = 1 << 20;
/// Bytes of the parameters of a command, and of its error.
pub const COMMAND_PART_BYTES_MAX: usize = 64 << 10;
/// Bytes of the result of a command: what a log or a terminal shows, and some more.
pub const COMMAND_RESULT_BYTES_MAX: usize = 640 << 10;

/// What one token line may take of a gate. A limit of a rate is so many a second, and so many at
/// once.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Copy)]
pub struct LineLimits {
    pub connections_max: usize,
    /// Connections that stay: of the bus, and readers of events.
    pub peers_max: usize,
    /// Bytes of bodies, unfinished messages, and unsent answers, frames and events.
    pub held_bytes_max: usize,
    pub bytes_rate: (u64, u64),
    /// Values of JSON.
    pub members_rate: (u64, u64),
    /// Events that wait for the state thread; beyond it nothing is read from its peers.
    pub waiting_events_max: usize,
    /// Bytes of them.
    pub waiting_bytes_max: usize,
}

/// A line of an agent.
pub const AGENT_LINE: LineLimits = LineLimits {
    connections_max: 64,
    peers_max: 16,
    held_bytes_max: 8 << 20,
    bytes_rate: (8 << 20, 32 << 20),
    members_rate: (40_000, 200_000),
    waiting_events_max: 256,
    waiting_bytes_max: 2 << 20,
};
/// A line of people, devices or orchestrators.
pub const PEOPLE_LINE: LineLimits = LineLimits {
    connections_max: 1024,
    peers_max: 256,
    held_bytes_max: 48 << 20,
    bytes_rate: (64 << 20, 256 << 20),
    members_rate: (400_000, 2_000_000),
    waiting_events_max: 4096,
    waiting_bytes_max: 16 << 20,
};
/// All without a valid token together; their number of connections has limits of its own.
pub const STRANGERS_LINE: LineLimits =
    LineLimits { connections_max: usize::MAX, peers_max: 0, ..AGENT_LINE };
/// One connection of a runner's control port.
pub const CONTROL_LINE: LineLimits = LineLimits { connections_max: 1, peers_max: 1, ..AGENT_LINE };

/// Messages of one agent that match nobody yet.
pub const AGENT_UNRESOLVED_MAX: usize = 256;
/// The same of people and orchestrators.
pub const PEOPLE_UNRESOLVED_MAX: usize = 4096;
/// All of them together.
pub const UNRESOLVED_MAX: usize = 16_384;
/// Tasks and claimable messages of one agent that are not settled.
pub const AGENT_OFFERS_MAX: usize = 4096;
/// The same of people and orchestrators.
pub const PEOPLE_OFFERS_MAX: usize = 65_536;
/// Bytes that one token line of an agent stores in a day.
pub const AGENT_STORED_PER_DAY_MAX: u64 = 512 << 20;
/// The same of people and orchestrators.
pub const PEOPLE_STORED_PER_DAY_MAX: u64 = 16 << 30;

/// A client waits this long for `registered`.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Heartbeat unless the relay says otherwise.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// A connection that lasted this long resets the backoff.
pub const GOOD_CONNECTION: Duration = Duration::from_secs(30);
/// Liveness over HTTP while the bus is away.
pub const LIVENESS_INTERVAL: Duration = Duration::from_secs(20);
/// The first round of liveness if the bus is not registered by then, however long its attempt
/// takes.
pub const LIVENESS_FIRST: Duration = Duration::from_secs(5);
/// Without the bus: changes of status within this time are told together.
pub const STATUS_SETTLES: Duration = Duration::from_millis(200);
/// Without the bus: a status is told at most this often.
pub const STATUS_PAUSE: Duration = Duration::from_secs(2);
/// Interrupted tasks whose claims are kept for a relay that would offer them again.
pub const HELD_TASKS_MAX: usize = 64;
/// Tasks of which is remembered how often an agent had them.
pub const TASK_ROUNDS_MAX: usize = 256;
/// Runners renew the claims of tasks this often.
pub const CLAIM_RENEWAL_INTERVAL: Duration = Duration::from_secs(300);
/// Life of a claim at the hub.
pub const CLAIM_LEASE: Duration = Duration::from_secs(600);
/// A peer that vanished without goodbye is offline after this.
pub const OFFLINE_AFTER_LOSS: Duration = Duration::from_secs(10);
/// An agent without bus and without liveness is offline after this.
pub const OFFLINE_AFTER_SILENCE: Duration = Duration::from_secs(60);
/// An agent that nobody has seen is forgotten after this.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
/// Messages of a deleted agent, and messages that match nobody yet, wait this long.
pub const QUEUED_FOR: Duration = Duration::from_secs(24 * 3600);
/// A command waits in `pending` this long, then it is `expired`.
pub const COMMAND_LIFE: Duration = Duration::from_secs(600);
/// Ping interval of both sides.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A connection that is silent this long is dropped.
pub const SILENCE_MAX: Duration = Duration::from_secs(45);
/// An old token lives this long after a renewal.
pub const OLD_TOKEN_LIFE: Duration = Duration::from_secs(300);
/// Life of a token that a runner makes for its agent.
pub const AGENT_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A failed token renewal is tried again after this.
pub const TOKEN_RETRY: Duration = Duration::from_secs(60);
/// Obligations are asked for this long after the first change, once for all changes until then.
pub const OBLIGATIONS_DEBOUNCE: Duration = Duration::from_millis(400);
/// Wait of shutdown and kill commands that name none.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest wait of shutdown and kill commands.
pub const COMMAND_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// A failed commit is tried again after this.
pub const STORE_RETRY: Duration = Duration::from_millis(500);
/// The same, where nothing heals by itself.
pub const STORE_RETRY_SLOW: Duration = Duration::from_secs(5);
/// Failed deliveries are tried again after this.
pub const DELIVERY_RETRY: Duration = Duration::from_secs(1);
/// Session messages are kept this long.
pub const SESSION_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// All other messages are kept this long.
pub const MESSAGES_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// The first removal of old messages after a start.
pub const RETENTION_FIRST: Duration = Duration::from_secs(60);
/// Further removals of old messages.
pub const RETENTION_INTERVAL: Duration = Duration::from_secs(600);
/// The next removal when there was more than one may take.
pub const RETENTION_AGAIN: Duration = Duration::from_millis(100);
/// Messages of each class that one removal takes, so that no commit takes long.
pub const RETENTION_BATCH: u64 = 200;
/// Requests in a second by one token of an agent, and how many may come at once.
pub const AGENT_RATE: (u64, u64) = (1000, 5000);
/// Requests that a renewal of a token counts for.
pub const RENEWAL_REQUESTS: u64 = 50;
/// Cards of agents, or missed events, that count for one request more.
pub const SHOWN_PER_REQUEST: usize = 50;
/// The same for tokens of people and orchestrators.
pub const OPERATOR_RATE: (u64, u64) = (10_000, 50_000);
/// The same for all requests without a valid token together.
pub const STRANGER_RATE: (u64, u64) = (200, 1000);
/// Life of a guest's terminal unless its runner says otherwise.
pub const GUEST_LIFE: Duration = Duration::from_secs(3600);
/// Shortest life of a guest's terminal.
pub const GUEST_LIFE_MIN: Duration = Duration::from_secs(60);
/// Longest life of a guest's terminal.
pub const GUEST_LIFE_MAX: Duration = Duration::from_secs(4 * 3600);
/// A runner tells how to attach in that time.
pub const ATTACH_SPEC_TIME: Duration = Duration::from_secs(5);
/// A call of tmux is answered in that time.
pub const TMUX_TIME: Duration = Duration::from_secs(5);
/// How often the word changes sides between two agents until that is taken for a loop,
pub const LOOP_TURNS: usize = 20;
/// within this time.
pub const LOOP_WINDOW: Duration = Duration::from_secs(600);
/// How long the first message of a loop waits; each further one waits twice as long.
pub const LOOP_DELAY_FIRST: Duration = Duration::from_secs(1);
/// How long it waits at most.
pub const LOOP_DELAY_MAX: Duration = Duration::from_secs(300);
/// A pair that was silent this long begins anew.
pub const LOOP_FORGOTTEN_AFTER: Duration = Duration::from_secs(1800);
/// Pairs of agents that are looked at.
pub const LOOP_PAIRS_MAX: usize = 10_000;
/// Repeated trouble is logged at most this often.
pub const LOG_THROTTLE: Duration = Duration::from_secs(300);

const _: () = assert!(BATCH_MESSAGES_MAX <= INBOX_CACHED_MAX / 2);
const _: () = assert!(UNACKED_PER_PEER_MAX < SETTLED_IDS_MAX);
const _: () = assert!(PUMP_BYTES_MAX < crate::wire::FRAME_BYTES_MAX);
const _: () = assert!(REPLY_BODY_BYTES_MAX <= crate::wire::MESSAGE_BODY_BYTES_MAX);
const _: () = assert!(
    (APPROVALS_MAX + 1) * (APPROVAL_PART_BYTES_MAX * 2 + 4096) < crate::wire::FRAME_BYTES_MAX
);
const _: () = assert!(TERMINAL_ANSWER_BYTES_MAX * 2 <= crate::wire::FRAME_BYTES_MAX);
// The longest text is one word: three bytes for each unit.
const _: () = assert!(TERMINAL_INPUT_MAX * 3 + 1024 <= SEND_KEYS_BYTES_MAX);
const _: () = assert!(LOG_ANSWER_BYTES_MAX * 2 <= crate::wire::FRAME_BYTES_MAX);
const _: () = assert!(PUMP_ROWS_MAX <= crate::wire::BATCH_ROWS_MAX);

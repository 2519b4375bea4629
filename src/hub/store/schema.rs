//! The tables of the hub's store, version by version.

/// The steps from nothing to the newest version.
pub(in crate::hub) const SCHEMAS: &[&str] =
    &[FIRST, MIRROR_AND_RETENTION, INDEXES_OF_RETENTION, GENERATIONS, RIGHTS, ENDS, HISTORIES];

/// Version 1.
const FIRST: &str = "
CREATE TABLE messages (
  id INTEGER PRIMARY KEY, doc TEXT NOT NULL, sender TEXT NOT NULL, kind TEXT NOT NULL, target TEXT NOT NULL,
  key TEXT, reply_to INTEGER, thread INTEGER NOT NULL, wants_reply INTEGER NOT NULL, claimable INTEGER NOT NULL,
  task INTEGER, claimed_by TEXT, claim_expires_at INTEGER, offered INTEGER NOT NULL DEFAULT 0,
  unresolved_until INTEGER, created_at INTEGER NOT NULL);
CREATE UNIQUE INDEX messages_key ON messages(sender, key) WHERE key IS NOT NULL;
CREATE INDEX messages_thread ON messages(thread, id);
CREATE INDEX messages_reply ON messages(reply_to, sender) WHERE reply_to IS NOT NULL;
CREATE INDEX messages_offered ON messages(id) WHERE offered = 1;
CREATE INDEX messages_unresolved ON messages(id) WHERE unresolved_until IS NOT NULL;
CREATE TABLE recipients (
  recipient TEXT NOT NULL, message INTEGER NOT NULL, session INTEGER NOT NULL DEFAULT 0,
  acked INTEGER NOT NULL DEFAULT 0, read_at INTEGER, reason TEXT, PRIMARY KEY (recipient, message)) WITHOUT ROWID;
CREATE INDEX recipients_message ON recipients(message);
CREATE INDEX recipients_unacked ON recipients(recipient, message) WHERE acked = 0;
CREATE INDEX recipients_unread ON recipients(recipient, message) WHERE read_at IS NULL;
CREATE TABLE obligations (
  agent TEXT NOT NULL, message INTEGER NOT NULL, sender TEXT NOT NULL, subject TEXT, thread INTEGER NOT NULL,
  created_at INTEGER NOT NULL, PRIMARY KEY (agent, message)) WITHOUT ROWID;
CREATE TABLE reactions (message INTEGER NOT NULL, agent TEXT NOT NULL, emoji TEXT NOT NULL, at INTEGER NOT NULL);
CREATE INDEX reactions_message ON reactions(message);
CREATE TABLE tasks (id INTEGER PRIMARY KEY, doc TEXT NOT NULL, status TEXT NOT NULL, message INTEGER NOT NULL);
CREATE INDEX tasks_open ON tasks(id) WHERE status NOT IN ('done', 'failed', 'cancelled');
CREATE TABLE commands (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, doc TEXT NOT NULL, target TEXT NOT NULL, status TEXT NOT NULL);
CREATE INDEX commands_open ON commands(seq) WHERE status IN ('pending', 'accepted', 'running');
CREATE TABLE agents (id TEXT PRIMARY KEY, registration TEXT NOT NULL, epoch INTEGER NOT NULL, label TEXT, last_seen INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tokens (hash TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
";

/// Version 2: messages are found without reading the mirror of sessions, and old ones without a
/// scan. The indexes are partial, so each row stands in few of them.
const MIRROR_AND_RETENTION: &str = "
ALTER TABLE recipients ADD COLUMN mirror INTEGER NOT NULL DEFAULT 0;
UPDATE recipients SET mirror = 1 WHERE message IN (SELECT id FROM messages WHERE kind = 'session');
DROP INDEX recipients_unread;
CREATE INDEX recipients_unread_mail ON recipients(recipient, message) WHERE read_at IS NULL AND mirror = 0;
CREATE INDEX recipients_user_unread ON recipients(message) WHERE recipient = 'user' AND read_at IS NULL;
CREATE INDEX recipients_user_mail ON recipients(message) WHERE recipient = 'user' AND mirror = 0;
CREATE INDEX messages_old_session ON messages(id) WHERE kind = 'session';
CREATE INDEX messages_old ON messages(id) WHERE kind <> 'session' AND offered = 0;
";

/// Version 3: what hangs on an old message is found without a scan, and what waits for agents
/// without what people get.
const INDEXES_OF_RETENTION: &str = "
CREATE INDEX obligations_message ON obligations(message);
CREATE INDEX tasks_message ON tasks(message);
DROP INDEX recipients_unacked;
CREATE INDEX recipients_unacked ON recipients(recipient, message) WHERE acked = 0 AND session = 0;
DELETE FROM reactions WHERE rowid NOT IN (SELECT min(rowid) FROM reactions GROUP BY message, agent, emoji);
CREATE UNIQUE INDEX reactions_once ON reactions(message, agent, emoji);
";

/// Version 4: the past of the data (`core/hub/generations.rs`).
const GENERATIONS: &str = "
CREATE TABLE generations (
  number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, first_message INTEGER NOT NULL, first_task INTEGER NOT NULL,
  follows_message INTEGER NOT NULL, follows_task INTEGER NOT NULL, at INTEGER NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
ALTER TABLE tasks ADD COLUMN restored INTEGER NOT NULL DEFAULT 0;
";

/// Version 6: how an agent went that is not there.
const ENDS: &str = "
ALTER TABLE agents ADD COLUMN ended TEXT;
";

/// Version 7: a task's history has rows of its own, and what changes of a task columns.
const HISTORIES: &str = "
CREATE TABLE task_history (
  task INTEGER NOT NULL, number INTEGER NOT NULL, entry TEXT NOT NULL, PRIMARY KEY (task, number)) WITHOUT ROWID;
ALTER TABLE tasks ADD COLUMN agent TEXT;
ALTER TABLE tasks ADD COLUMN updated_at INTEGER NOT NULL DEFAULT 0;
INSERT INTO task_history (task, number, entry)
  SELECT t.id, h.key + 1, CASE WHEN h.type IN ('object', 'array') THEN h.value ELSE json_quote(h.value) END
  FROM (SELECT id, doc FROM tasks WHERE json_valid(doc)) t, json_each(t.doc, '$.history') h;
UPDATE tasks SET agent = doc ->> '$.agentId', updated_at = coalesce(doc ->> '$.updatedAt', 0), doc = json_set(doc, '$.history', json('[]'))
  WHERE json_valid(doc);
";

/// Version 5: policy and parent of an agent as its token names them, and the component ids that it
/// used. An operator's token with all scopes of the earlier version gets the new ones too; one that
/// was made with fewer keeps those.
const RIGHTS: &str = "
ALTER TABLE agents ADD COLUMN policy TEXT;
ALTER TABLE agents ADD COLUMN spawned_by TEXT;
ALTER TABLE agents ADD COLUMN components TEXT NOT NULL DEFAULT '[]';
UPDATE tokens SET record = json_insert(record, '$.scopes[#]', 'insight:write', '$.scopes[#]', 'token:issue')
  WHERE record ->> '$.profileId' = 'operator' AND (SELECT count(DISTINCT value) FROM json_each(record, '$.scopes') WHERE value IN
    ('agent:self', 'message:send', 'message:read', 'message:claim', 'task:update', 'command:issue', 'command:update', 'artifact:read',
     'artifact:write', 'spawn')) = 10;
";

//! The tables of a runner's store, version by version.

use super::inbox;

/// Steps from nothing to the newest version.
pub(in crate::edge) const SCHEMAS: &[&str] = &[FIRST, GENERATIONS, inbox::SCHEMA];

/// Version 1.
const FIRST: &str = "
CREATE TABLE IF NOT EXISTS inbox (
  id INTEGER PRIMARY KEY, doc TEXT, state INTEGER NOT NULL, batch INTEGER NOT NULL DEFAULT 0,
  evidence TEXT NOT NULL DEFAULT '', told INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS inbox_received ON inbox(id) WHERE state = 0;
CREATE INDEX IF NOT EXISTS inbox_active ON inbox(id) WHERE state IN (1, 2);
CREATE INDEX IF NOT EXISTS inbox_settled ON inbox(settled) WHERE state = 3;
CREATE TABLE IF NOT EXISTS commands (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, doc TEXT NOT NULL, reported INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, class INTEGER NOT NULL, key TEXT NOT NULL,
  occurred_at INTEGER NOT NULL, payload TEXT NOT NULL, poisoned TEXT);
CREATE INDEX IF NOT EXISTS outbox_head ON outbox(seq) WHERE poisoned IS NULL;
CREATE INDEX IF NOT EXISTS outbox_poisoned ON outbox(seq) WHERE poisoned IS NOT NULL;
CREATE INDEX IF NOT EXISTS outbox_victims ON outbox(class, seq) WHERE poisoned IS NULL;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS provider (
  one INTEGER PRIMARY KEY CHECK (one = 1), pid INTEGER, start INTEGER, provider_session TEXT, session TEXT);
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// Version 2: rows are kept by generation and id. What was there belongs to the relay that was
/// noted then.
const GENERATIONS: &str = "
CREATE TABLE generations (number INTEGER PRIMARY KEY, family INTEGER NOT NULL, name TEXT NOT NULL UNIQUE, told TEXT);
INSERT INTO generations (number, family, name)
  SELECT 1, 1, coalesce((SELECT value FROM notes WHERE key = 'relay'), '') WHERE EXISTS (SELECT 1 FROM inbox)
    OR EXISTS (SELECT 1 FROM outbox) OR EXISTS (SELECT 1 FROM notes WHERE key = 'relay');
ALTER TABLE inbox RENAME TO inbox_by_id;
DROP INDEX inbox_received;
DROP INDEX inbox_active;
DROP INDEX inbox_settled;
CREATE TABLE inbox (
  generation INTEGER NOT NULL, id INTEGER NOT NULL, family INTEGER NOT NULL, doc TEXT, state INTEGER NOT NULL,
  batch INTEGER NOT NULL DEFAULT 0, evidence TEXT NOT NULL DEFAULT '', told INTEGER NOT NULL DEFAULT 0,
  settled INTEGER NOT NULL DEFAULT 0, task INTEGER, ended TEXT);
CREATE UNIQUE INDEX inbox_place ON inbox(generation, id);
CREATE INDEX inbox_received ON inbox(family, id, generation) WHERE state = 0;
CREATE INDEX inbox_active ON inbox(family, id, generation) WHERE state IN (1, 2);
CREATE INDEX inbox_settled ON inbox(settled) WHERE state = 3;
INSERT INTO inbox (generation, id, family, doc, state, batch, evidence, told, settled)
  SELECT 1, id, 1, doc, state, batch, evidence, told, settled FROM inbox_by_id;
DROP TABLE inbox_by_id;
ALTER TABLE outbox ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
UPDATE outbox SET generation = 1 WHERE kind = 'task-update' OR json_extract(payload, '$.replyTo') IS NOT NULL;
";

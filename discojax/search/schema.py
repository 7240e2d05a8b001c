"""The archive's tables, how old files are brought up to date, and what SQLite's errors mean."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from discojax.errors import UserError

__all__ = ["MIGRATIONS", "VIEWS", "explain", "is_locked", "lock", "migrate"]

VIEWS = ("proposals", "scores", "failures", "spending")

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE attempts (
  id INTEGER PRIMARY KEY,
  number INTEGER NOT NULL UNIQUE,
  generation INTEGER NOT NULL,
  name TEXT NOT NULL,
  operator TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('accepted', 'rejected', 'duplicate')),
  parents TEXT NOT NULL,
  thought TEXT NOT NULL,
  source TEXT,
  hash TEXT,
  stage TEXT,
  reason TEXT,
  proposer TEXT NOT NULL,
  model TEXT NOT NULL,
  prompt_hash TEXT,
  raw_reply TEXT,
  tokens_in INTEGER CHECK (tokens_in >= 0),
  tokens_out INTEGER CHECK (tokens_out >= 0),
  cost REAL CHECK (cost >= 0),
  seed INTEGER,
  created REAL NOT NULL,
  CHECK (status = 'rejected' OR (source IS NOT NULL AND hash IS NOT NULL)),
  CHECK (status != 'rejected' OR (stage IS NOT NULL AND reason IS NOT NULL))
);
CREATE INDEX attempts_by_hash ON attempts (hash);

-- A NaN reaches SQLite as NULL and so fails NOT NULL; the bounds keep infinities out.
CREATE TABLE evaluations (
  id INTEGER PRIMARY KEY,
  hash TEXT NOT NULL,
  objective TEXT NOT NULL,
  task TEXT NOT NULL,
  split TEXT NOT NULL,
  rung INTEGER NOT NULL,
  beta REAL NOT NULL,
  seed INTEGER NOT NULL,
  steps INTEGER NOT NULL,
  learning_rate REAL NOT NULL,
  config_hash TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('ok', 'diverged', 'failed')),
  reward REAL,
  kl REAL,
  kl_per_token_reference REAL,
  length REAL,
  per_prompt BLOB,
  reason TEXT,
  created REAL NOT NULL,
  UNIQUE (hash, objective, task, split, rung, beta, seed, steps, learning_rate),
  CHECK (status != 'ok' OR (
    reward IS NOT NULL AND abs(reward) < 1e30 AND kl IS NOT NULL AND abs(kl) < 1e30
    AND length IS NOT NULL AND length >= 0 AND per_prompt IS NOT NULL)),
  CHECK (status = 'ok' OR (
    reward IS NULL AND kl IS NULL AND kl_per_token_reference IS NULL
    AND length IS NULL AND per_prompt IS NULL))
);

CREATE TABLE events (
  id INTEGER PRIMARY KEY, created REAL NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL
);
"""

_VIEWS = """
CREATE VIEW proposals AS
  SELECT id, number, generation, name, operator, status, parents, source, hash, stage, reason,
         proposer, model, prompt_hash, tokens_in, tokens_out, cost, seed, created
  FROM attempts ORDER BY number;

CREATE VIEW scores AS
  SELECT e.hash, e.objective, e.task, e.split, e.rung, e.beta, e.seed, e.steps, e.learning_rate,
         e.status, e.reward, e.kl, e.kl_per_token_reference, e.length, e.reason, e.created,
         a.operator, a.generation
  FROM evaluations AS e LEFT JOIN attempts AS a ON a.hash = e.hash AND a.status = 'accepted'
  GROUP BY e.id ORDER BY e.id;

CREATE VIEW failures AS
  SELECT 'proposal' AS kind, name, stage, reason, created FROM attempts WHERE status = 'rejected'
  UNION ALL
  SELECT 'lane', objective, status, reason, created FROM evaluations WHERE status != 'ok';
"""

# A proposal may lack a candidate altogether, and says which request it answers. SQLite changes a CHECK
# only by making the table anew.
_REQUESTS = """
DROP VIEW proposals;
DROP VIEW scores;
DROP VIEW failures;

ALTER TABLE attempts RENAME TO old_attempts;
DROP INDEX attempts_by_hash;
CREATE TABLE attempts (
  id INTEGER PRIMARY KEY,
  number INTEGER NOT NULL UNIQUE,
  generation INTEGER NOT NULL,
  name TEXT NOT NULL,
  operator TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('accepted', 'rejected', 'duplicate', 'unanswered')),
  parents TEXT NOT NULL,
  thought TEXT NOT NULL,
  source TEXT,
  hash TEXT,
  stage TEXT,
  reason TEXT,
  proposer TEXT NOT NULL,
  model TEXT NOT NULL,
  model_version TEXT NOT NULL,
  request TEXT,
  prompt_hash TEXT,
  raw_reply TEXT,
  tokens_in INTEGER CHECK (tokens_in >= 0),
  tokens_out INTEGER CHECK (tokens_out >= 0),
  cost REAL CHECK (cost >= 0),
  seed INTEGER,
  created REAL NOT NULL,
  CHECK (status NOT IN ('accepted', 'duplicate') OR (source IS NOT NULL AND hash IS NOT NULL)),
  CHECK (status != 'rejected' OR (stage IS NOT NULL AND reason IS NOT NULL)),
  CHECK (status != 'unanswered' OR (source IS NULL AND hash IS NULL AND reason IS NOT NULL))
);
INSERT INTO attempts
  SELECT id, number, generation, name, operator, status, parents, thought, source, hash, stage, reason,
         proposer, '', model, NULL, prompt_hash, raw_reply, tokens_in, tokens_out, cost, seed, created
  FROM old_attempts;
DROP TABLE old_attempts;
CREATE INDEX attempts_by_hash ON attempts (hash);

-- Written before anything else is done with a reply; what a run has spent is the sum of these.
CREATE TABLE requests (
  id INTEGER PRIMARY KEY,
  hash TEXT NOT NULL UNIQUE,
  server TEXT NOT NULL,
  model TEXT NOT NULL,
  model_version TEXT NOT NULL,
  purpose TEXT NOT NULL CHECK (purpose IN ('propose', 'repair', 'more_tokens')),
  prompt_hash TEXT NOT NULL,
  request TEXT NOT NULL,
  reply TEXT NOT NULL,
  tokens_in INTEGER NOT NULL CHECK (tokens_in >= 0),
  tokens_out INTEGER NOT NULL CHECK (tokens_out >= 0),
  tokens_thinking INTEGER NOT NULL CHECK (tokens_thinking >= 0),
  cost REAL CHECK (cost >= 0),
  created REAL NOT NULL
);

CREATE VIEW proposals AS
  SELECT id, number, generation, name, operator, status, parents, source, hash, stage, reason,
         proposer, model, prompt_hash, tokens_in, tokens_out, cost, seed, created, model_version, request
  FROM attempts ORDER BY number;

CREATE VIEW scores AS
  SELECT e.hash, e.objective, e.task, e.split, e.rung, e.beta, e.seed, e.steps, e.learning_rate,
         e.status, e.reward, e.kl, e.kl_per_token_reference, e.length, e.reason, e.created,
         a.operator, a.generation
  FROM evaluations AS e LEFT JOIN attempts AS a ON a.hash = e.hash AND a.status = 'accepted'
  GROUP BY e.id ORDER BY e.id;

CREATE VIEW failures AS
  SELECT 'proposal' AS kind, name, coalesce(stage, status) AS stage, reason, created FROM attempts
  WHERE status IN ('rejected', 'unanswered')
  UNION ALL
  SELECT 'lane', objective, status, reason, created FROM evaluations WHERE status != 'ok';

CREATE VIEW spending AS
  SELECT server, model, model_version, purpose, count(*) AS requests, sum(tokens_in) AS tokens_in,
         sum(tokens_out) AS tokens_out, sum(tokens_thinking) AS tokens_thinking,
         total(cost) AS dollars, sum(cost IS NULL) AS unpriced
  FROM requests GROUP BY server, model, model_version, purpose ORDER BY min(id);
"""

# What may have been paid for without an answer; and whose candidates a request was for, as each arm has its
# own budget.
_UNANSWERED = """
DROP VIEW spending;

ALTER TABLE requests ADD COLUMN arm INTEGER NOT NULL DEFAULT 0;

-- Written before a request is sent, and deleted when it is answered or was not taken. Without a reason it is
-- under way, or was when its run was killed. Tokens and cost are the most that it may have.
CREATE TABLE unanswered (
  id INTEGER PRIMARY KEY,
  hash TEXT NOT NULL,
  arm INTEGER NOT NULL,
  server TEXT NOT NULL,
  model TEXT NOT NULL,
  purpose TEXT NOT NULL CHECK (purpose IN ('propose', 'repair', 'more_tokens')),
  tokens_in INTEGER NOT NULL CHECK (tokens_in >= 0),
  tokens_out INTEGER NOT NULL CHECK (tokens_out >= 0),
  cost REAL CHECK (cost >= 0),
  reason TEXT,
  created REAL NOT NULL
);
CREATE INDEX unanswered_by_hash ON unanswered (hash);

CREATE VIEW spending AS
  SELECT server, model, model_version, purpose, count(*) AS requests, sum(tokens_in) AS tokens_in,
         sum(tokens_out) AS tokens_out, sum(tokens_thinking) AS tokens_thinking,
         total(cost) AS dollars, sum(cost IS NULL) AS unpriced, 0 AS unanswered
  FROM requests GROUP BY server, model, model_version, purpose
  UNION ALL
  SELECT server, model, '', purpose, count(*), sum(tokens_in), sum(tokens_out), 0, total(cost),
         sum(cost IS NULL), count(*)
  FROM unanswered GROUP BY server, model, purpose;
"""

MIGRATIONS = (_TABLES, _VIEWS, _REQUESTS, _UNANSWERED)
"""Each brings a file from version i to i + 1. Published ones are never edited; new ones are added."""


def migrate(connection: sqlite3.Connection, path: Path, first: Mapping[str, str]) -> None:
    """Brings a file to the newest version, each step in a transaction; `first` goes into a new file's `meta`.

    Raises:
      UserError: if a newer discojax wrote the file, or it is some other program's database.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise UserError(f"{path} is a database of another program; choose another name for the run")
    if version > len(MIGRATIONS):
        raise UserError(
            f"{path} was written by a newer discojax (schema {version}, this one knows {len(MIGRATIONS)}); "
            "upgrade discojax to go on with it"
        )
    for i in range(version, len(MIGRATIONS)):
        # The version is part of the file's header, so it changes in the same transaction.
        steps = f"BEGIN IMMEDIATE; {MIGRATIONS[i]} PRAGMA user_version = {i + 1};"
        try:
            connection.executescript(steps)
            if i == 0:
                connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", list(first.items()))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def lock(path: Path) -> sqlite3.Connection:
    """Makes this process the run's only writer until the result is closed or the process ends.

    The lock is an exclusive transaction on an empty database beside the archive: it is the operating
    system's, so a killed process holds nothing, its children inherit nothing, and it works wherever
    SQLite does, while readers of the archive itself are not disturbed.

    Raises:
      UserError: if another process is writing the run.
    """
    connection = sqlite3.connect(
        path.with_name(path.name + ".lock"), isolation_level=None, timeout=0, check_same_thread=False
    )
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError) and _code(error).startswith("SQLITE_BUSY"):
            raise UserError(
                f"the run {path.absolute().parent.name!r} is being written by another process; "
                "wait for it, stop it, or start a run of another name"
            ) from error
        raise
    return connection


def is_locked(path: Path) -> bool:
    """Whether a process is writing the run now; False if that cannot be told."""
    file = path.with_name(path.name + ".lock")
    if not file.exists():
        return False
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=0)
        with contextlib.closing(connection):
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        return _code(error).startswith("SQLITE_BUSY")
    return False


def explain(error: sqlite3.DatabaseError, path: Path) -> str:
    """One sentence for the user: what SQLite met at `path`, and what to do."""
    code, what = _code(error), " ".join(str(error).split())
    if code == "SQLITE_FULL":
        return f"the disk is full, so {path} could not be written; free some space, then resume"
    if code in ("SQLITE_CORRUPT", "SQLITE_NOTADB") or "malformed" in what:
        return (
            f"{path} is damaged ({what}); move it away and start again, "
            "or try `sqlite3 OLD .recover | sqlite3 NEW` to save what can be read"
        )
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return (
            f"{path} cannot be opened or written ({what}); check its folder's permissions or choose another"
        )
    if code.startswith("SQLITE_IOERR"):
        return f"reading or writing {path} failed ({what}); check the disk and its free space, then resume"
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"{path} is held by another program; close whatever has it open, then resume"
    return f"{path}: {what}; if it is not an archive of this discojax, move it away"


def _code(error: sqlite3.Error) -> str:
    """SQLite's name of an error, or nothing for one that Python raised."""
    return getattr(error, "sqlite_errorname", None) or ""

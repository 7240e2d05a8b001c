"""The archive: every proposal and every measurement of a run, in one SQLite file.

`runs/NAME/archive.sqlite` may be read at any time, also while the run writes, with `sqlite3` or with
`pandas.read_sql`. For reading there are views, which stay the same when the tables change::

    | view | a row is | columns |
    |---|---|---|
    | `proposals` | a proposal, in order | all of `Attempt` but `raw_reply` and `thought` |
    | `scores` | an evaluation | all of `Evaluation` but arrays of prompts, with `operator`, `generation` |
    | `failures` | a proposal or lane that failed | `kind`, `name`, `stage`, `reason`, `created` |
    | `spending` | requests by model and purpose, unanswered apart | `requests`, `tokens_*`, `dollars` |

The tables `requests` and `unanswered` have every request; see `discojax.search.ledger`.

What holds at any moment, also after `kill -9` or a power cut (write-ahead log, synchronous commits):
a transaction is whole or absent; nothing is scored twice; a failure is a status and never a number,
which the database itself checks. One process writes at a time. `discojax.search.schema` has the tables.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from discojax import __version__
from discojax.errors import UserError
from discojax.search import schema
from discojax.search.records import NUMBERS, Attempt, Evaluation, EvaluationKey, columns_of, unpack

__all__ = [
    "NUMBERS",
    "Archive",
    "Attempt",
    "Evaluation",
    "EvaluationKey",
    "add_attempts",
    "add_evaluations",
    "add_event",
    "attempts",
    "close",
    "evaluations",
    "events",
    "export_rows",
    "get_evaluation",
    "get_meta",
    "insert",
    "open_archive",
    "select",
    "set_meta",
    "transaction",
]


@dataclass(frozen=True)
class Archive:
    """An open archive. Calls from several threads take turns."""

    path: Path
    config_hash: str
    connection: sqlite3.Connection = field(repr=False)
    writer: sqlite3.Connection | None = field(repr=False)
    turn: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        close(self)


def open_archive(path: str | Path, config_hash: str | None = None) -> Archive:
    """Opens a run's archive: for writing if given the configuration's hash, else for reading only.

    Args:
      path: `runs/NAME/archive.sqlite`. Opening for writing makes it, and its folder.
      config_hash: of everything in the configuration that a score depends on.

    Raises:
      UserError: if it belongs to another configuration or a newer discojax, another process is
        writing it, it is missing (for reading), damaged, or cannot be written.
    """
    path = Path(path)
    if config_hash is None:
        if not path.is_file():
            raise UserError(f"there is no archive at {path}; `discover` makes one when a run starts")
        with _explained(path):
            connection = _up_to_date(_connect_for_reading(path), path)
            known = _read_meta(connection, "config_hash")
        if known is None:
            raise UserError(f"{path} is not an archive of discojax")
        return Archive(path, known, connection, None)

    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run's folder {path.parent}: {error.strerror}; choose another place for runs"
            ) from error
        writer = schema.lock(path)
        try:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
            try:
                _prepare(connection, path, config_hash)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            writer.close()
            raise
    return Archive(path, config_hash, connection, writer)


def close(archive: Archive) -> None:
    """Closes it and lets another process write. Closing twice is harmless."""
    with archive.turn:
        archive.connection.close()
        if archive.writer is not None:
            archive.writer.close()


def add_attempts(archive: Archive, new: Iterable[Attempt]) -> list[int]:
    """Adds proposals in one transaction, for instance all those of one paid reply; returns their ids.

    Raises:
      ValueError: if a number is taken or a row contradicts itself (accepted without a program,
        rejected without a reason). Nothing is added then.
      UserError: if the disk is full or the archive cannot be written.
    """
    columns = [f.name for f in fields(Attempt) if f.name != "id"]
    statement = insert("attempts", columns)
    ids = []
    with transaction(archive) as connection:
        for attempt in new:
            row = {**asdict(attempt), "parents": json.dumps(list(attempt.parents))}
            row["created"] = time.time() if attempt.created is None else attempt.created
            ids.append(int(connection.execute(statement, [_plain(row[c]) for c in columns]).lastrowid or 0))
    return ids


def attempts(archive: Archive, **equal: Any) -> list[Attempt]:
    """The proposals in order, all or those whose columns equal what is given (`status="accepted"`)."""
    rows = select(archive, "attempts", [f.name for f in fields(Attempt)], equal, "number")
    return [Attempt(**{**row, "parents": tuple(json.loads(row["parents"]))}) for row in rows]


def add_evaluations(archive: Archive, new: Iterable[Evaluation]) -> None:
    """Adds evaluations, all in one transaction: a rung is scored whole or not at all.

    Raises:
      ValueError: if a lane was scored before, or a status and its numbers contradict each other (an
        ok one without finite numbers, a failed one with any). Nothing is added then.
      UserError: if the disk is full or the archive cannot be written.
    """
    with transaction(archive) as connection:
        for evaluation in new:
            row = {**columns_of(evaluation), "config_hash": archive.config_hash}
            connection.execute(insert("evaluations", list(row)), [_plain(x) for x in row.values()])


def get_evaluation(archive: Archive, key: EvaluationKey) -> Evaluation | None:
    """The evaluation of a lane, or None if it has not been scored."""
    found = evaluations(archive, **asdict(key))
    return found[0] if found else None


def evaluations(archive: Archive, *, arrays: Collection[str] | None = None, **equal: Any) -> list[Evaluation]:
    """Evaluations in the order they were made, all or those whose columns equal what is given.

    A sequence means any of its values: `evaluations(archive, task="imdb", seed=[0, 1])`. Where `arrays`
    names some per-prompt arrays, the others are left unread.
    """
    names = [f.name for f in fields(EvaluationKey)]
    values = [f.name for f in fields(Evaluation) if f.name != "key"]
    rows = select(archive, "evaluations", names + values, equal, "id")
    found = []
    for row in rows:
        key = EvaluationKey(*(row.pop(name) for name in names))
        found.append(Evaluation(key, per_prompt=unpack(row.pop("per_prompt"), arrays), **row))
    return found


def add_event(archive: Archive, kind: str, **data: Any) -> None:
    """Notes something that happened ("resumed", "rung", "budget"); `data` is kept as JSON."""
    with transaction(archive) as connection:
        connection.execute(
            "INSERT INTO events (created, kind, data) VALUES (?, ?, ?)", (time.time(), kind, json.dumps(data))
        )


def events(archive: Archive, **equal: Any) -> list[dict[str, Any]]:
    """The events in order: `created` (seconds since 1970), `kind`, `data`."""
    rows = select(archive, "events", ["created", "kind", "data"], equal, "id")
    return [{**row, "data": json.loads(row["data"])} for row in rows]


def set_meta(archive: Archive, key: str, value: Any) -> None:
    """Keeps a JSON value under a name, replacing what was there: a bandit's state, what was spent."""
    if key == "config_hash":
        raise ValueError("an archive's configuration does not change")
    with transaction(archive) as connection:
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, json.dumps(value)))


def get_meta(archive: Archive, key: str, default: Any = None) -> Any:
    """What `set_meta` kept, or `default`. "versions" and "created" are there from the start."""
    with archive.turn, _explained(archive.path):
        value = _read_meta(archive.connection, key)
    return default if value is None else value


def export_rows(
    archive: Archive, view: Literal["proposals", "scores", "failures", "spending"] = "scores"
) -> list[dict[str, Any]]:
    """The rows of one of the views of the module's docstring, ready for `pandas.DataFrame`."""
    if view not in schema.VIEWS:
        raise ValueError(f"{view!r} is not one of the views {', '.join(schema.VIEWS)}")
    with archive.turn, _explained(archive.path):
        cursor = archive.connection.execute(f"SELECT * FROM {view}")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def _prepare(connection: sqlite3.Connection, path: Path, config_hash: str) -> None:
    """Brings a file, new or old, to the present schema and sees that it is this configuration's."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a paid reply survives a power cut too
    damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed: {damage}")
    versions = {
        "discojax": __version__,
        "numpy": np.__version__,
        "sqlite": sqlite3.sqlite_version,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    }
    host = {"system": platform.platform(), "cpus": os.cpu_count()}
    first = {"config_hash": config_hash, "created": time.time(), "versions": versions, "host": host}
    schema.migrate(connection, path, {key: json.dumps(value) for key, value in first.items()})
    # Changes nothing, but is a write: a file that may only be read is refused now, not at the first score.
    connection.execute("UPDATE meta SET value = value WHERE key = 'config_hash'")
    if _read_meta(connection, "config_hash") != config_hash:
        raise UserError(
            f"{path} was made with another configuration, so its scores cannot be compared with this one's; "
            "restore the run's own config.yaml to resume it, or start a run of another name"
        )


def _connect_for_reading(path: Path) -> sqlite3.Connection:
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # In a folder that cannot be written SQLite cannot make the log's index. If there is no log,
        # nobody is writing, and the file can be read as it is.
        connection.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        connection = sqlite3.connect(
            f"{uri}?immutable=1", uri=True, isolation_level=None, check_same_thread=False
        )
    return connection


def _up_to_date(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """A file of an older schema as a copy in memory that has the present one; the file stays as it is."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version == 0 or version == len(schema.MIGRATIONS):
        return connection
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    with closing(connection):
        connection.backup(copy)
    schema.migrate(copy, path, {})
    return copy


def _read_meta(connection: sqlite3.Connection, key: str) -> Any:
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if found is None else json.loads(found[0])


def insert(table: str, columns: Sequence[str]) -> str:
    """The statement that adds a row."""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def select(
    archive: Archive, table: str, columns: Sequence[str], equal: Mapping[str, Any], order: str
) -> list[dict[str, Any]]:
    """Rows as dictionaries. Column names come from this file's own dataclasses, values are bound."""
    conditions, bound = [], []
    for name, value in equal.items():
        if name not in columns or name == "per_prompt":
            raise ValueError(f"{table} has no column {name!r} to choose by")
        several = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
        conditions.append(f"{name} IN ({', '.join('?' * len(several))})")
        bound += [_plain(x) for x in several]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    with archive.turn, _explained(archive.path):
        rows = archive.connection.execute(
            f"SELECT {', '.join(columns)} FROM {table}{where} ORDER BY {order}", bound
        ).fetchall()
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _plain(value: Any) -> Any:
    """SQLite knows Python's numbers, not NumPy's."""
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def transaction(archive: Archive) -> Iterator[sqlite3.Connection]:
    """All of the block's writes, or none."""
    if archive.writer is None:
        raise ValueError(f"{archive.path} was opened for reading only")
    connection = archive.connection
    with archive.turn, _explained(archive.path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite rolls back by itself when the disk is full
                connection.execute("ROLLBACK")
            raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors as sentences: what happened to which file, and what to do."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a mistake in the program, such as using a closed archive
    except sqlite3.IntegrityError as error:
        raise ValueError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise UserError(schema.explain(error, path)) from error

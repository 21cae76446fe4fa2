"""Store and find runs and their queries, windows, rounds, rankings and candidate sets."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rank_k.journal.batches import BatchStore
from rank_k.journal.calls import compress_json, condition_on, decompress_json
from rank_k.journal.schema import decode_text, encode_text
from rank_k.types import Ranking, Window, WindowRanking


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """A stored window.

    Attributes:
        query_id: The id of the query.
        round: The number of the round, from 0.
        window_number: The number of the window in its round, from 0.
        window: The window, with the ids of its passages.
        call_keys: The keys of the calls that ranked the window.
        rankings: The rankings of the window, one per sample.
        repairs: The number of parse repairs and truncations by kind.
    """

    query_id: str
    round: int
    window_number: int
    window: Window
    call_keys: tuple[str, ...]
    rankings: tuple[WindowRanking, ...]
    repairs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A stored run.

    Attributes:
        run: The name of the run, which is computed from its settings (see `run_name`).
        started_at: When the run was last started or resumed, in seconds since 1970-01-01 UTC.
        settings: The settings of the run.
    """

    run: str
    started_at: float
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueryRecord:
    """A stored query of a run.

    Attributes:
        run: The name of the run.
        position: The position of the query in the input of the run, from 0.
        query_id: The id of the query.
        text: The text of the query.
        started_at: When the query was last started, in seconds since 1970-01-01 UTC.
        finished: Whether the query has a final ranking.
    """

    run: str
    position: int
    query_id: str
    text: str
    started_at: float
    finished: bool


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The shard of a run that is stored in a journal.

    Attributes:
        run: The name of the run. It is the same for all shards of the run.
        number: The number of the shard, from 1.
        count: The number of shards.
        query_ids: The ids of all queries of the run, including those of other shards, in the order of its input.
    """

    run: str
    number: int
    count: int
    query_ids: tuple[str, ...]


def run_name(settings: Mapping[str, Any]) -> str:
    """Return the name of the run with these settings: the first 16 hex digits of their SHA-256."""
    return hashlib.sha256(_settings_json(settings).encode()).hexdigest()[:16]


class Journal(BatchStore):
    """Stores calls, runs, queries and rankings in one SQLite file, which only its owner may read (mode 0600).

    Only one thread may use a journal at a time. Several processes may use the same file.

    Args:
        path: The file, which is created if it does not exist (default: a temporary file on disk, which is deleted when
            the process ends).
        read_only: Reject all changes, and leave no other files next to the journal (default: False).
        max_bytes: The maximum size of a temporary journal in bytes (default: 256 MiB). If it grows larger, the oldest
            content is deleted.

    Raises:
        JournalError: If the file is not a journal, if a newer version of Rank-K wrote it, or if it cannot be read or
            written, for example because the disk is full.
    """

    # --- runs ---

    def begin_run(self, settings: Mapping[str, Any]) -> str:
        """Store that a run with these settings starts or resumes, and return its name."""
        run = run_name(settings)
        self._db.execute(
            "INSERT OR REPLACE INTO runs (run, started_at, settings) VALUES (?, ?, ?)",
            (run, time.time(), _settings_json(settings)),
        )
        return run

    def runs(self) -> list[RunRecord]:
        """Return all runs, the one that was started last first."""
        rows = self._db.execute("SELECT run, started_at, settings FROM runs ORDER BY started_at DESC")
        return [RunRecord(run, started_at, json.loads(settings)) for run, started_at, settings in rows]

    def last_run(self) -> str:
        """Return the name of the run that was started last, or "" if there are no runs."""
        return next((record.run for record in self.runs()), "")

    def model_of_run(self, run: str) -> str:
        """Return the name of the model of a run, or "" if the run has no calls."""
        row = self._db.execute(
            "SELECT model FROM windows, json_each(call_keys) JOIN calls ON calls.key = value WHERE run = ? LIMIT 1",
            (run,),
        ).fetchone()
        return decode_text(row[0]) if row else ""

    # --- queries ---

    def store_query(self, run: str, position: int, query_id: str, text: str) -> None:
        """Store that a query starts. If it starts again, its rounds are deleted.

        Args:
            run: The name of the run.
            position: The position of the query in the input of the run, from 0.
            query_id: The id of the query.
            text: The text of the query.
        """
        self._db.execute(
            "INSERT OR REPLACE INTO queries (run, position, query_id, text, started_at) VALUES (?, ?, ?, ?, ?)",
            (run, position, encode_text(query_id), encode_text(text), time.time()),
        )
        self._db.execute("DELETE FROM rounds WHERE run = ? AND position = ?", (run, position))

    def find_queries(
        self, run: str | None = None, *, find: str = "", offset: int = 0, limit: int | None = None
    ) -> tuple[int, list[QueryRecord]]:
        """Find queries, in the order of their position in the input.

        Args:
            run: The name of the run (default: all runs).
            find: Only queries whose id or text contains this string (default: all queries). For the letters a to z,
                upper or lower case does not matter.
            offset: The number of matching queries to skip (default: 0).
            limit: The maximum number of queries to return (default: no limit).

        Returns:
            The total number of matching queries, and the list of queries after `offset` and `limit` are applied.
        """
        condition, values = condition_on(run)
        if find:
            condition += " AND (query_id LIKE ? ESCAPE '!' OR text LIKE ? ESCAPE '!')"
            values += [encode_text("%" + "".join(f"!{c}" if c in "%_!" else c for c in find) + "%")] * 2
        [total] = self._db.execute(f"SELECT count(*) FROM queries WHERE {condition}", values).fetchone()
        page = "ORDER BY run, position LIMIT ? OFFSET ?"
        return total, self._query_records(f"{condition} {page}", (*values, -1 if limit is None else limit, offset))

    def find_query(self, run: str, position: int) -> QueryRecord | None:
        """Return the query at a position in the input of a run, or None if it is not stored."""
        return next(iter(self._query_records("run = ? AND position = ?", (run, position))), None)

    def query_texts(self, run: str | None = None) -> dict[str, str]:
        """Return the texts of the queries of a run (default: the run that was started last), by query id."""
        return {record.query_id: record.text for record in self.find_queries(run or self.last_run())[1]}

    def _query_records(self, condition: str, values: Sequence[Any]) -> list[QueryRecord]:
        rows = self._db.execute(
            "SELECT run, position, query_id, text, started_at, EXISTS"
            " (SELECT 1 FROM rankings WHERE rankings.run = queries.run AND rankings.position = queries.position)"
            f" FROM queries WHERE {condition}",
            values,
        )
        return [
            QueryRecord(run, position, decode_text(query_id), decode_text(text), started_at, bool(finished))
            for run, position, query_id, text, started_at, finished in rows
        ]

    # --- windows ---

    def store_window(self, run: str, record: WindowRecord) -> None:
        window = record.window
        rankings = [
            {
                "tiers": ranking.tiers,
                "ranked_ids": [doc_id for doc_id in ranking.doc_ids if doc_id in ranking.ranked_ids],
                "is_valid": ranking.is_valid,
            }
            for ranking in record.rankings
        ]
        self._db.execute(
            "INSERT OR REPLACE INTO windows (run, query_id, round, window, doc_ids, rank_range, method, call_keys,"
            " rankings, repairs) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                run,
                encode_text(record.query_id),
                record.round,
                record.window_number,
                json.dumps(window.doc_ids),
                json.dumps(window.rank_range),
                window.method,
                json.dumps(record.call_keys),
                json.dumps(rankings),
                json.dumps(dict(record.repairs)),
            ),
        )

    def windows(self, run: str | None = None, query_id: str | None = None) -> Iterator[WindowRecord]:
        """Yield the windows of a run, sorted by query id, round and window number.

        Args:
            run: The name of the run (default: the run that was started last).
            query_id: Only windows of this query (default: all queries).
        """
        condition, values = condition_on(run or self.last_run(), query_id)
        rows = self._db.execute(
            "SELECT query_id, round, window, doc_ids, rank_range, method, call_keys, rankings, repairs FROM windows"
            f" WHERE {condition} ORDER BY query_id, round, window",
            values,
        )
        for row in rows:
            doc_ids, (best, worst) = json.loads(row[3]), json.loads(row[4])
            yield WindowRecord(
                decode_text(row[0]),
                row[1],
                row[2],
                Window(tuple(doc_ids), (best, worst), row[5]),
                tuple(json.loads(row[6])),
                tuple(
                    WindowRanking(
                        tuple(map(tuple, ranking["tiers"])), frozenset(ranking["ranked_ids"]), ranking["is_valid"]
                    )
                    for ranking in json.loads(row[7])
                ),
                Counter(json.loads(row[8])),
            )

    def delete_windows(self, run: str) -> None:
        """Delete the windows of a run that starts again. Its calls are kept.

        When a run starts again, it may have fewer windows than before. For example, a window may get a valid answer
        that it did not get before.
        """
        self._db.execute("DELETE FROM windows WHERE run = ?", (run,))

    # --- rounds and rankings ---

    def store_round(self, run: str, position: int, number: int, ranking: Ranking) -> None:
        """Store the ranking of a query before a round. Before round 0, this is the first-stage ranking.

        Args:
            run: The name of the run.
            position: The position of the query in the input of the run, from 0.
            number: The number of the round, from 0.
            ranking: The ranking before the round.
        """
        self._db.execute(
            "INSERT OR REPLACE INTO rounds (run, position, round, ranking) VALUES (?, ?, ?, ?)",
            (run, position, number, _encode_ranking(ranking)),
        )

    def rounds(self, run: str, position: int) -> list[Ranking]:
        """Return the rankings of a query before each of its rounds, in the order of the rounds."""
        rows = self._db.execute(
            "SELECT ranking FROM rounds WHERE run = ? AND position = ? ORDER BY round", (run, position)
        )
        return [_decode_ranking(ranking) for (ranking,) in rows]

    def store_ranking(self, run: str, position: int, query_id: str, ranking: Ranking) -> None:
        """Store the final ranking of the query at a position in the input of a run."""
        self._limit_size()
        self._db.execute(
            "INSERT OR REPLACE INTO rankings (run, position, query_id, ranking) VALUES (?, ?, ?, ?)",
            (run, position, encode_text(query_id), _encode_ranking(ranking)),
        )

    def find_ranking(self, run: str, position: int) -> Ranking | None:
        """Return the final ranking of a query, or None if there is none. A temporary journal then deletes it."""
        where = "FROM rankings WHERE run = ? AND position = ?"
        row = self._db.execute(f"SELECT ranking {where}", (run, position)).fetchone()
        if row is None:
            return None
        if self.path is None:
            self._db.execute(f"DELETE {where}", (run, position))
        return _decode_ranking(row[0])

    # --- shards ---

    def store_shard(self, shard: ShardRecord) -> None:
        """Store which shard of a run this journal belongs to."""
        self._db.execute(
            "INSERT OR REPLACE INTO shards (run, number, count, query_ids) VALUES (?, ?, ?, ?)",
            (shard.run, shard.number, shard.count, compress_json(shard.query_ids)),
        )

    def shards(self) -> list[ShardRecord]:
        """Return the shards that this journal belongs to. The shard whose run was started last comes first."""
        rows = self._db.execute(
            "SELECT run, number, count, query_ids FROM shards JOIN runs USING (run) ORDER BY started_at DESC"
        )
        return [
            ShardRecord(run, number, count, tuple(decompress_json(query_ids))) for run, number, count, query_ids in rows
        ]

    def merge_run(self, source: Path, run: str, query_ids: Sequence[str]) -> None:
        """Copy all calls in the journal `source`, and everything that it stores about `run`, to this journal.

        Rows that this journal already contains are not overwritten, so merging again changes nothing. `source` is not
        changed.

        Args:
            source: The path of the journal to copy from.
            run: The name of the run.
            query_ids: The ids of all queries of the merged run. Their order determines the positions of the queries.

        Raises:
            JournalError: If one of the two journals cannot be used.
        """
        Journal(source, read_only=True).close()  # raises if it is not a journal of this version
        db = self._db
        db.execute("ATTACH ? AS source", (f"{source.resolve().as_uri()}?mode=ro",))
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("CREATE TEMP TABLE positions (query_id TEXT PRIMARY KEY, position INTEGER NOT NULL)")
            for position, query_id in enumerate(query_ids):
                db.execute("INSERT INTO positions VALUES (?, ?)", (encode_text(query_id), position))
            db.execute("INSERT OR IGNORE INTO calls SELECT * FROM source.calls")
            for table in ("runs", "windows"):
                db.execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM source.{table} WHERE run = ?", (run,))
            for table, columns in (
                ("queries", "run, new.position, query_id, text, started_at"),
                ("rankings", "run, new.position, query_id, ranking"),
            ):
                db.execute(
                    f"INSERT OR IGNORE INTO {table} SELECT {columns} FROM source.{table}"
                    " JOIN positions AS new USING (query_id) WHERE run = ?",
                    (run,),
                )
            db.execute(
                "INSERT OR IGNORE INTO rounds SELECT rounds.run, new.position, round, ranking"
                " FROM source.rounds AS rounds JOIN source.queries AS queries USING (run, position)"
                " JOIN positions AS new USING (query_id) WHERE rounds.run = ?",
                (run,),
            )
            db.execute("DROP TABLE positions")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        finally:
            db.execute("DETACH source")

    # --- candidate sets ---

    def store_set(self, set_id: str, metadata: Mapping[str, Any]) -> None:
        """Store the metadata of a candidate set. The query id of the windows of a set is its `set_id`."""
        self._db.execute(
            "INSERT INTO sets (set_id, metadata) VALUES (?, ?)"
            " ON CONFLICT (set_id) DO UPDATE SET metadata = excluded.metadata",
            (encode_text(set_id), json.dumps(metadata)),
        )

    def sets_with_calls(self) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
        """Yield each candidate set that has windows, in the order in which the sets were stored.

        Yields:
            The metadata of the set, and the distinct keys of its calls. The calls of the run that was started last come
            first.
        """
        rows = self._db.execute(
            "SELECT number, metadata, call_keys FROM windows JOIN sets ON set_id = query_id"
            " LEFT JOIN runs USING (run) ORDER BY number, started_at DESC, run"
        )
        for _, windows in groupby(rows, key=lambda row: row[0]):
            pairs = [(metadata, json.loads(call_keys)) for _, metadata, call_keys in windows]
            yield json.loads(pairs[0][0]), tuple(dict.fromkeys(key for _, call_keys in pairs for key in call_keys))


def _settings_json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def _encode_ranking(ranking: Ranking) -> bytes:
    tied = [int(is_tied) for is_tied in ranking.tied]
    return compress_json({"doc_ids": ranking.doc_ids, "tied": tied, "probability": ranking.probability})


def _decode_ranking(stored: bytes) -> Ranking:
    value = decompress_json(stored)
    return Ranking(tuple(value["doc_ids"]), tuple(map(bool, value["tied"])), value["probability"])

"""`rank-k batch`: rerank through files of requests, for the batch APIs of providers and for offline inference.

next    write the missing requests to files; if no request is missing, write the run
submit  upload these files, wait for the responses, and continue until the run is complete
ingest  store responses that were downloaded by other means
status  show which requests and batches wait for responses
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from rank_k.cli import resumable
from rank_k.cli.common_flags import add_flags, positive_int, positive_seconds
from rank_k.cli.file_checks import check_outputs, open_journal
from rank_k.cli.model_options import (
    KEY_OPTION,
    add_options,
    add_ranking_options,
    api_key,
    given_options,
    run_settings,
)
from rank_k.cli.render.tables import Table, print_tables
from rank_k.cli.render.words import count_noun, format_seconds
from rank_k.cli.run_input import RunInput, add_run_arguments
from rank_k.data.lines import read_lines
from rank_k.data.trec import RunWriter
from rank_k.errors import InputError
from rank_k.journal import Journal
from rank_k.models.batch import BatchModel
from rank_k.options import ModelOptions, RankingOptions, options_of
from rank_k.reranker import Reranker
from rank_k.run_job import rerank_run
from rank_k.scale.batch_files import MAX_BYTES, MAX_REQUESTS, RequestFiles, ingest_responses
from rank_k.scale.batch_server import BatchServer, ingest_finished_batches, submit_files
from rank_k.types import Ranking

_DEFAULT_POLL_SECONDS = 60.0

_RESULTS_FORMAT = "the output or error file of a batch: JSON with custom_id and response on each line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(title="steps", metavar="STEP", dest="step", required=True)
    next_step = steps.add_parser("next", help="write the missing requests to files; if none is missing, write the run")
    _add_job_arguments(next_step)
    submit = steps.add_parser(
        "submit", help="upload the files, wait for the responses, and repeat until the run is complete"
    )
    _add_job_arguments(submit)
    submit.add_argument("--server", required=True, metavar="URL", help="server with OpenAI's batch API")
    submit.add_argument(
        KEY_OPTION, metavar="NAME", help="environment variable that contains the API key (default: RANK_K_API_KEY)"
    )
    submit.add_argument(
        "--poll-seconds",
        type=positive_seconds,
        default=_DEFAULT_POLL_SECONDS,
        metavar="S",
        help="request the status of the batches every S seconds",
    )
    ingest = steps.add_parser("ingest", help="store the responses in result files")
    ingest.add_argument("journal", type=Path, metavar="JOURNAL", help="journal of the run")
    ingest.add_argument("results", type=Path, nargs="+", metavar="FILE", help=_RESULTS_FORMAT)
    status = steps.add_parser("status", help="show the requests and batches that wait for responses")
    status.add_argument("journal", type=Path, metavar="JOURNAL", help="journal of the run")


def _add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the steps that write request files."""
    add_run_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file for the new run")
    parser.add_argument("--folder", required=True, type=Path, metavar="DIR", help="folder for the request files")
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="file that stores every call (default: OUTPUT.journal.sqlite)"
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="name of the model on the server")
    flags = options_of(ModelOptions)
    add_options(parser, [flags[name] for name in ("server_type", "revision", "context_length")])
    parser.add_argument(
        "--max-requests", type=positive_int, default=MAX_REQUESTS, metavar="N", help="requests per file"
    )
    parser.add_argument("--max-bytes", type=positive_int, default=MAX_BYTES, metavar="N", help="bytes per file")
    add_ranking_options(parser)
    parser.add_argument(
        "--tag", default="rank-k", metavar="TEXT", help="name of the run, in the last column of the output"
    )
    add_flags(parser, "--quiet")


def run(args: argparse.Namespace) -> int:
    if args.step == "ingest":
        return _ingest(args)
    if args.step == "status":
        return _status(args)
    journal = args.journal or args.output.with_name(args.output.name + ".journal.sqlite")
    with resumable(journal):
        return _submit(args, journal) if args.step == "submit" else _next(args, journal)


def _next(args: argparse.Namespace, journal: Path) -> int:
    files, waiting = _write_next_requests(args, journal)
    for path, count in files.items():
        print(f"{path}: {count_noun(count, 'request')}", file=sys.stderr)
    if waiting:
        print(
            f"{count_noun(waiting, 'request')} in earlier files without a response (rank-k batch status {journal})",
            file=sys.stderr,
        )
    if not files and not waiting:
        print(f"the run is complete: {args.output}", file=sys.stderr)
    return 0


def _write_next_requests(args: argparse.Namespace, journal: Path) -> tuple[Mapping[Path, int], int]:
    """Write the next request files or, if no request is missing, the run.

    Returns:
        The number of requests in each new file, and the number of requests in earlier files that have no response yet.
    """
    model_options = options_of(ModelOptions)
    options = {name: value for name, value in given_options(args).items() if name not in model_options}
    depth = args.depth or RankingOptions.depth
    run_input = RunInput(args)
    check_outputs({"--output": args.output, "--journal": journal}, run_input.files)
    model = BatchModel(
        args.model,
        server_type=args.server_type or "plain",
        context_length=args.context_length,
        revision=args.revision or "",
    )
    store = run_input.open_documents(depth, quiet=args.quiet)
    with closing(store), Reranker(model, journal=journal, preset=args.preset, **options) as reranker:
        settings = run_settings(args, reranker.options) | {"depth": depth}

        def rankings() -> Iterator[tuple[str, Ranking]]:
            return rerank_run(
                reranker,
                run_input.candidates,
                run_input.queries,
                store,
                query_count=len(run_input.query_ids),
                settings=settings,
                depth=depth,
            )

        reranker.check(run_input.queries[query_id] for query_id in run_input.query_ids)
        with RequestFiles(args.folder, reranker.journal, args.max_requests, args.max_bytes) as files:
            model.add_request = files.add
            for _ in rankings():
                pass
        if not files.files and not files.waiting:
            with RunWriter(args.output, args.tag) as writer:
                for query_id, ranking in rankings():
                    writer.write_query(query_id, ranking.doc_ids)
    return files.files, files.waiting


def _submit(args: argparse.Namespace, journal: Path) -> int:
    key = api_key(args.server, args.api_key_env)
    started = time.monotonic()
    for round_number in itertools.count(1):
        files, waiting = _write_next_requests(args, journal)
        if not files and not waiting:
            break
        requests = count_noun(sum(files.values()) + waiting, "request")
        if not args.quiet:
            print(f"round {round_number}: {requests} in batch files", file=sys.stderr)
        counts = asyncio.run(_run_batches(args, journal, key))
        if not args.quiet:
            print(f"round {round_number}: {_describe(counts)}", file=sys.stderr)
        if not counts["stored"] and not counts["refused"]:
            raise InputError(
                f"{args.server} returned no response to {requests}", f"look at rank-k batch status {journal}"
            )
    seconds = format_seconds(time.monotonic() - started)
    print(f"the run is complete after {seconds}: {args.output}", file=sys.stderr)
    return 0


async def _run_batches(args: argparse.Namespace, journal_path: Path, key: str | None) -> Counter[str]:
    """Submit the files, wait until every batch has ended, and return the number of responses by outcome."""
    counts: Counter[str] = Counter()
    with closing(Journal(journal_path)) as journal:
        async with BatchServer(args.server, key) as server:
            await submit_files(journal, server, args.folder)
            while True:
                new_counts, running = await ingest_finished_batches(journal, server)
                counts += new_counts
                if not running:
                    return counts
                await asyncio.sleep(args.poll_seconds)


def _ingest(args: argparse.Namespace) -> int:
    open_journal(args.journal, "give the journal of the run").close()
    counts: Counter[str] = Counter()
    with closing(Journal(args.journal)) as journal:
        for path in args.results:
            counts += ingest_responses(journal, (line for _, line in read_lines(path, _RESULTS_FORMAT)))
    print(_describe(counts), file=sys.stderr)
    return 0


def _status(args: argparse.Namespace) -> int:
    with closing(open_journal(args.journal, "give the journal of the run")) as journal:
        waiting = journal.count_pending()
        batches = {batch.file: batch for batch in journal.batches()}
    rows = []
    for name in sorted({*waiting, *batches}):
        batch = batches.get(name)
        state = (batch.batch_id, batch.status) if batch is not None else ("", "")
        rows.append((name or "(to be sent again)", f"{waiting.get(name, 0):,}", *state))
    print_tables([Table(("file", "requests waiting", "batch", "status"), rows, align="lrll")])
    return 0


def _describe(counts: Counter[str]) -> str:
    """Return the number of responses by outcome, as one line."""
    names = {
        "stored": "responses stored",
        "repeated": "repeated responses",
        "refused": "requests refused",
        "expired": "requests without a response, which will be sent again",
        "unknown": "responses to other requests",
        "malformed": "malformed lines",
    }
    return ", ".join(f"{counts[kind]:,} {name}" for kind, name in names.items() if counts[kind]) or "no responses"

"""Build the parts of a `Reranker` from its options (model, strategy, window ranker and jobs), and close them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rank_k.engine import Job
from rank_k.errors import InputError
from rank_k.journal import Journal
from rank_k.loop_thread import LoopThread
from rank_k.models.base import Model
from rank_k.models.cached import CachedModel
from rank_k.models.retry import RetryPolicy
from rank_k.models.student import Student, default_model, find_student
from rank_k.models.weights import Weights, locate
from rank_k.options import InferenceOptions, RerankOptions, check_names, options_of, resolve
from rank_k.strategies import make_strategy
from rank_k.strategies.base import Strategy
from rank_k.strategies.combined import Combined
from rank_k.strategies.single import Single
from rank_k.types import Candidate, Passage, PassageSource, Query
from rank_k.window.base import WindowRanker
from rank_k.window.combined import CombinedRanker
from rank_k.window.listwise import ListwiseRanker, ListwiseSettings
from rank_k.window.prompt import PromptTemplate, read_template, template_of_student
from rank_k.window.repetition import StopOnRepetition
from rank_k.window.scorers import QueryLikelihoodScorer, ScoreRanker

ModelSource = str | Path | Model | None
"""A model's name or path, or a model; None is the default embedded model."""


def resolve_options(
    model: ModelSource, given: dict[str, Any], preset: str | None = None
) -> tuple[RerankOptions, Student | Weights | None]:
    """Return the options of a reranker for `model`, and its student or weights if it is embedded.

    A student is a distilled model: base weights with an adapter.

    Args:
        model: The model.
        given: The options that the user gave, by name.
        preset: The name of a preset in `options.PRESETS`.

    Raises:
        InputError: If an option is invalid.
        MissingWeights: If the weights are not on this machine.
    """
    check_names(given)  # before the model is looked for, because the misspelled option may be the server
    local_model = find_local_model(model, given)
    options = resolve(
        given,
        preset=preset,
        student=local_model.asking if isinstance(local_model, Student) else {},
        embedded=local_model is not None,
        default_method=getattr(model if local_model is None else local_model, "default_method", "listwise"),
    )
    return options, local_model


def find_local_model(model: ModelSource, given: dict[str, Any]) -> Student | Weights | None:
    """Return the student or the weights called `model`, or None if the model is not embedded.

    Raises `MissingWeights` if the weights are not on this machine.
    """
    if given.get("server") is not None or not (model is None or isinstance(model, str | Path)):
        return None
    # A custom prompt is used with the base weights, because a student works only with the prompt it was trained on.
    method = given.get("method") if given.get("prompt") is None else "likelihood"
    name = default_model(method) if model is None else model
    return find_student(name) or locate(name)


def build_model(model: ModelSource, local_model: Student | Weights | None, options: RerankOptions) -> Model:
    """Return the model. It starts or connects only when its `prepare` is called."""
    if local_model is not None:
        from rank_k.models.embedded import EmbeddedModel

        weights, adapter = (
            (local_model.weights, local_model.adapter) if isinstance(local_model, Student) else (local_model, None)
        )
        return EmbeddedModel(
            weights, adapter=adapter, context_length=options.context_length, concurrency=options.concurrency or 1
        )
    if model is not None and not isinstance(model, str | Path):
        return model
    from rank_k.models.http import HttpModel

    assert options.server is not None, "without a server, a model is embedded or given"
    models = [
        HttpModel(
            url,
            None if model is None else str(model),
            api_key=options.api_key,
            server_type=options.server_type,
            context_length=options.context_length,
            revision=options.revision,
            read_timeout=options.read_timeout,
        )
        for url in options.server_urls
    ]
    if len(models) == 1:
        return models[0]
    from rank_k.models.balanced import BalancedModel

    return BalancedModel(models)


def build_strategy(strategy: str | Strategy, options: RerankOptions) -> Strategy:
    """Return the strategy called `strategy`, or `strategy` itself, adapted to the scoring method of the options.

    Raises:
        InputError: If there is no such strategy, or it rejects an option.
    """
    if options.method == "likelihood":
        return Single(max(options.depth, 2))
    is_combined = options.method == "combined"
    if isinstance(strategy, str):
        # With the method combined, the input of the listwise strategy is not the first-stage ranking.
        weight = 1.0 if is_combined else options.first_stage_weight
        strategy = make_strategy(strategy, window=options.window, stride=options.stride, first_stage_weight=weight)
    if is_combined and not isinstance(strategy, Combined):
        return Combined(strategy, options.first_stage_weight)
    return strategy


def build_ranker(
    model: Model,
    journal: Journal,
    retries: RetryPolicy,
    on_retry: Callable[[Exception, float], None] | None,
    options: RerankOptions,
    local_model: Student | Weights | None,
) -> WindowRanker:
    """Return the window ranker for the scoring method of the options. `journal` stores its calls to `model`."""
    model = CachedModel(StopOnRepetition(model), journal, retries, on_retry, options.concurrency or 1)
    student = local_model if isinstance(local_model, Student) else None
    if options.method == "likelihood":
        return ScoreRanker(QueryLikelihoodScorer(model, options.passage_tokens))
    template = None if student is None else template_of_student(student.name, student.prompt)
    if options.prompt is not None:
        template = options.prompt if isinstance(options.prompt, PromptTemplate) else read_template(options.prompt)
    settings = ListwiseSettings(
        **{name: getattr(options, name) for name in options_of(InferenceOptions)},
        label_words=student.verdicts if student is not None and options.prompt is None else (),
    )
    listwise = ListwiseRanker(model, settings, template)
    return CombinedRanker(QueryLikelihoodScorer(model), listwise) if options.method == "combined" else listwise


def close_parts(loop: LoopThread, model: Model, journal: Journal) -> None:
    """Close the parts of a reranker. It is a function, because it may run after the reranker was garbage-collected."""
    try:
        loop.stop(model.close)
    finally:
        journal.close()


def build_jobs(
    run: Iterable[tuple[str, Sequence[Candidate]]],
    queries: Mapping[str, Query],
    passages: Mapping[str, Passage] | PassageSource,
    depth: int,
) -> Iterator[Job]:
    """Yield the engine's job for each query of a run. Raises `InputError` for a query or candidate without a text."""
    for query_id, candidates in run:
        if query_id not in queries:
            raise InputError(f"query {query_id} of the run has no text", "add it to the queries")
        yield build_job(queries[query_id], candidates, passages, depth)


def build_job(
    query: Query,
    candidates: Sequence[Candidate],
    passages: Mapping[str, Passage] | PassageSource,
    depth: int,
    name: str = "",
) -> Job:
    """Return the engine's job for a query: the first `depth` candidates with their passages, and the ids of the rest.

    Raises:
        InputError: If a candidate has no text.
    """
    ranked = candidates[:depth]
    passages_of_ids: dict[str, Passage] = {}
    for candidate in ranked:
        doc_id = candidate.doc_id
        passage = passages.get(doc_id) if isinstance(passages, Mapping) else passages.get(doc_id, query.query_id)
        if passage is None:
            raise InputError(f"document {doc_id} of query {query.query_id} has no text", "add it to the passages")
        passages_of_ids[doc_id] = passage
    tail = tuple(candidate.doc_id for candidate in candidates[depth:])
    return Job(query, ranked, passages_of_ids, tail, name or query.query_id)

"""Train a student on selected traces, with TRL's supervised trainer and our own batches, losses and measures.

An interrupted run resumes from its newest complete checkpoint. `run_folder` describes the files of a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from rank_k.distill.base_model import (
    LoadedBase,
    bf16_is_fast,
    find_gguf,
    load_model,
    load_tokenizer,
    quiet_libraries,
)
from rank_k.distill.heldout_measures import hidden_states, measure
from rank_k.distill.label_traces import parse_label_trace
from rank_k.distill.losses import label_loss
from rank_k.distill.model_card import render_card
from rank_k.distill.recipes import Recipe
from rank_k.distill.run_folder import (
    RUN_FILE,
    TRAINED_FOLDER,
    OnRecord,
    TrainingClock,
    TrainingLog,
    find_newest_checkpoint,
    mark_complete,
    read_run_metadata,
    write_json,
)
from rank_k.distill.time_limit import Interruption, TimeLimitReached, interrupt_after
from rank_k.distill.training_examples import (
    Batches,
    Example,
    ExampleSet,
    build_examples,
    label_token_ids_of,
    read_rows,
    training_order,
)
from rank_k.errors import InputError
from rank_k.models.student import TEMPLATE_FIELDS
from rank_k.optional_deps import load
from rank_k.options import DEFAULT_MAX_TOKENS
from rank_k.window.prompt import read_template

_GRACE_SHARE, _MIN_GRACE_SECONDS = 0.05, 1.0
"""A step that is still running at the time limit gets a grace period: this share of the limit, but at least this many
seconds. Then the step is interrupted."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training run: the training rows, the recipe and the output folder.

    Args:
        data: The file with the training rows, written by `rank-k distill select`.
        recipe: How the student is trained.
        output: The folder of the run.
        heldout: A file with rows that are only measured, not trained on (default: nothing is measured).
        max_steps: The maximum number of steps (default: the steps of all epochs).
        time_limit: The maximum duration in seconds, including loading and earlier parts of the run (default: no limit).
            The learning rate falls linearly and reaches 0 at the time limit or at the last step, whichever comes first.
    """

    data: Path
    recipe: Recipe
    output: Path
    heldout: Path | None = None
    max_steps: int | None = None
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a training run.

    Attributes:
        steps: The number of steps, including those of earlier parts of the run.
        seconds: The duration, including earlier parts of the run.
        rows: The number of training rows.
        too_long: The number of training and held-out rows that were left out because they are too long.
    """

    steps: int
    seconds: float
    rows: int
    too_long: int


def train(run: TrainingRun, on_record: OnRecord = lambda record: None) -> TrainingResult:
    """Train until the last step or the time limit.

    Args:
        run: The training run.
        on_record: Called with every record (see `run_folder.OnRecord`). If several processes train together, only the
            first process calls it (default: nothing is called).

    Raises:
        InputError: If the rows, the base model or the output folder do not match the recipe, or if the time limit
            passes before the first step.
    """
    for module in ("torch", "transformers", "trl", "peft", "datasets"):
        load(module)
    recipe, metadata = run.recipe, _run_metadata(run)
    existing = _read_matching_metadata(run.output, metadata)
    bf16 = existing.get("bf16", recipe.training.bf16 and bf16_is_fast())  # a resumed run keeps its number format
    if not (is_main := is_main_process()):
        on_record = lambda record: None  # noqa: E731
    on_record({"bf16": bf16, "bf16_requested": recipe.training.bf16})
    _check_data(run)
    checkpoint = find_newest_checkpoint(run.output, remove_incomplete=is_main)
    clock = TrainingClock(checkpoint.seconds if checkpoint else 0.0, run.time_limit)
    trainer: Any = None
    with quiet_libraries(), interrupt_after(_seconds_left(run, clock)) as interruption:
        try:
            tokenizer = load_tokenizer(recipe.base.weights)
            rows = _read_examples(run, run.data, tokenizer)
            heldout = ExampleSet([], 0) if run.heldout is None else _read_examples(run, run.heldout, tokenizer)
            _check_examples(run, rows, tokenizer)
            model = load_model(recipe.base.weights, bf16=bf16 and recipe.method.kind == "lora")
            _check_context_length(recipe, model)
            if is_main:
                counts = {"rows": len(rows.examples), "too_long": rows.too_long, "sources": rows.sources}
                metadata |= {"bf16": bf16} | counts
                write_json(run.output / RUN_FILE, metadata)
            record = TrainingLog(run.output, checkpoint, on_record).record if is_main else on_record
            base = LoadedBase(model, tokenizer)
            trainer = _build_trainer(run, base, rows, bf16, clock)
            trainer.add_callback(_training_callback(run, base, heldout.examples, record, clock, interruption))
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        except TimeLimitReached:
            if trainer is None or trainer.state.global_step == (checkpoint.step if checkpoint else 0):
                raise InputError(
                    f"the time limit of {run.time_limit:g} s passed before the first step",
                    "give a longer --time-limit, or train a smaller model on shorter rows",
                ) from None
        interruption.allowed = False
        clock.tick()
        _save_trained(trainer, run.output / TRAINED_FOLDER)
    record({"step": trainer.state.global_step, "seconds": round(clock.seconds, 1), "finished": True})
    if is_main:
        card = render_card(run.output, metadata, recipe.name, "student.gguf", "F16", recipe.method.kind == "lora")
        for folder in (run.output, run.output / TRAINED_FOLDER):
            (folder / "README.md").write_text(card, encoding="utf-8")  # instead of the templates of TRL and PEFT
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # a process that exits while torch's communication threads run may abort
    return TrainingResult(
        trainer.state.global_step, clock.seconds, len(rows.examples), rows.too_long + heldout.too_long
    )


def _seconds_left(run: TrainingRun, clock: TrainingClock) -> float | None:
    """Return the number of seconds after which loading or a step is interrupted; None if it is never interrupted.

    The interruption comes a little after the time limit, which leaves time for a short step with its checkpoint and its
    measurement. A run that resumes after its time limit makes one step.
    """
    if run.time_limit is None or clock.seconds >= run.time_limit or process_count() > 1:
        return None
    return run.time_limit - clock.seconds + max(_MIN_GRACE_SECONDS, _GRACE_SHARE * run.time_limit)


def _save_trained(trainer: Any, folder: Path) -> None:
    """Save the trained weights and the tokenizer. Weights of sharded training (FSDP) are saved unsharded."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero() and not list(folder.glob("*.safetensors")):
        raise InputError(f"the trainer wrote no weights to {folder}", "use the shards in the newest checkpoint")


# --- checks before the first step -------------------------------------------------------------------


def _run_metadata(run: TrainingRun) -> dict[str, Any]:
    """Return the metadata of a run. A run in the output folder is resumed only if its metadata is the same."""
    try:
        with run.data.open("rb") as file:
            sha256 = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{run.data}: {error.strerror or error}", "give a file that rank-k distill select wrote"
        ) from error
    template = read_template(run.recipe.asking.prompt)
    base = find_gguf(run.recipe.base.weights)
    return {
        "recipe": asdict(run.recipe),
        "prompt": {name: getattr(template, name) for name in TEMPLATE_FIELDS},
        "data": run.data.name,
        "data_sha256": sha256,
        "base_sha256": base and base.sha256,
        "processes": process_count(),
    }


def _read_matching_metadata(output: Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metadata of the run in `output`; {} for a new run. Raises `InputError` if it is a different run."""
    output.mkdir(parents=True, exist_ok=True)
    if not (output / RUN_FILE).exists():
        return {}
    existing, expected = read_run_metadata(output), json.loads(json.dumps(metadata))
    keys = ("recipe", "prompt", "data_sha256", "base_sha256", "processes")
    if changed_keys := [key for key in keys if existing[key] != expected[key]]:
        raise InputError(
            f"{output} contains a run with a different {' and '.join(changed_keys)}",
            "give a different folder, or delete this one",
        )
    return existing


def _check_data(run: TrainingRun) -> None:
    """Check that the recipe can train on the rows. Runs before the weights are loaded, which takes minutes."""
    recipe, label_options = run.recipe, run.recipe.verdicts
    if label_options.is_enabled and process_count() > 1:
        raise InputError(
            "training on relevance labels needs a single process", "start rank-k distill train without accelerate"
        )
    completions = [row["completion"][0]["content"] for row in read_rows(run.data, recipe.asking.prompt)]
    if label_options.is_enabled and not any(parse_label_trace(text, label_options.words) for text in completions):
        raise InputError(
            f"the recipe {recipe.name} trains on relevance labels, but no trace in {run.data} consists of labels",
            f"create such traces with: rank-k distill trace --teacher labels ({', '.join(label_options.words)})",
        )
    for _ in () if run.heldout is None else read_rows(run.heldout, recipe.asking.prompt):
        pass


def _read_examples(run: TrainingRun, path: Path, tokenizer: Any) -> ExampleSet:
    rows = read_rows(path, run.recipe.asking.prompt)
    return build_examples(rows, tokenizer, run.recipe.training.max_length, run.recipe.verdicts.words)


def _check_examples(run: TrainingRun, rows: ExampleSet, tokenizer: Any) -> None:
    recipe = run.recipe
    if not rows.examples:
        raise InputError(
            f"there is nothing to learn in {run.data}: all {rows.too_long} rows have more than"
            f" {recipe.training.max_length} tokens",
            "raise training.max_length in the recipe",
        )
    if recipe.verdicts.is_enabled:
        label_token_ids_of(tokenizer, recipe.verdicts.words)


def _check_context_length(recipe: Recipe, model: Any) -> None:
    context_length = getattr(model.config, "max_position_embeddings", None) or 2**31
    if recipe.training.max_length > context_length:
        raise InputError(
            f"training.max_length = {recipe.training.max_length} is longer than the context of {context_length} tokens"
            f" of {recipe.base.weights}",
            f"give {context_length} or fewer",
        )


# --- the trainer ------------------------------------------------------------------------------------


def _build_trainer(run: TrainingRun, base: LoadedBase, rows: ExampleSet, bf16: bool, clock: TrainingClock) -> Any:
    transformers, trl, torch = load("transformers"), load("trl"), load("torch")
    recipe, training = run.recipe, run.recipe.training
    lengths = [len(example.prompt_ids) + len(example.completion) // 3 for example in rows.examples]
    order = training_order(lengths, training.epochs, training.batch, training.seed, training.group_by_length)
    batches = Batches(rows.examples, order, base.tokenizer, recipe.verdicts, training.seed)
    label_token_ids = label_token_ids_of(base.tokenizer, recipe.verdicts.words) if recipe.verdicts.is_enabled else []

    class Trainer(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        """SFTTrainer with the loss for relevance labels, and a learning rate that also depends on the elapsed time."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            relevance_labels, passage_ends = inputs.pop("relevance_labels"), inputs.pop("passage_ends")
            if not recipe.verdicts.is_enabled:
                return super().compute_loss(model, inputs, *args, **options)
            with self.accelerator.autocast():
                loss = label_loss(
                    hidden_states(model)(inputs["input_ids"], inputs["attention_mask"]),
                    model.get_output_embeddings().weight,
                    inputs["labels"],
                    relevance_labels,
                    passage_ends,
                    label_token_ids,
                    recipe.verdicts,
                )
            return loss / self.current_gradient_accumulation_steps

        def create_model_card(self, *args: Any, **options: Any) -> None:
            """Write no card: `train` writes its own card at the end."""

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            def learning_rate_factor(step: int) -> float:
                used_share = max(step / num_training_steps, clock.elapsed_share)
                return min(1.0, (step + 1) / max(training.warmup_steps, 1)) * max(0.0, 1.0 - used_share)

            if self.lr_scheduler is None:
                self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(
                    optimizer or self.optimizer, learning_rate_factor
                )
            return self.lr_scheduler

    config = trl.SFTConfig(
        output_dir=str(run.output),
        max_length=None,  # `build_examples` has already left out rows that are too long
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # `Batches` applies the random order
        num_train_epochs=1,
        max_steps=run.max_steps or -1,
        per_device_train_batch_size=training.batch,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        bf16=bf16,
        gradient_checkpointing=training.gradient_checkpointing,
        seed=training.seed,
        save_strategy="steps",
        save_steps=training.checkpoint_steps,
        save_total_limit=2,  # one complete checkpoint remains while the next one is written
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        use_cpu=not torch.cuda.is_available(),
    )
    if recipe.method.kind == "full":
        frozen_parts = ("embed", *(f"layers.{number}." for number in range(recipe.method.freeze_layers)))
        for name, parameter in base.model.named_parameters():
            parameter.requires_grad = not any(part in name for part in frozen_parts)
    trainer = Trainer(
        model=base.model,
        args=config,
        train_dataset=load("datasets").Dataset.from_dict({"position": list(range(len(order)))}),
        data_collator=batches,
        processing_class=base.tokenizer,
        peft_config=_lora_config(recipe, base.model) if recipe.method.kind == "lora" else None,
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return trainer


def _lora_config(recipe: Recipe, model: Any) -> Any:
    method, linear = recipe.method, load("torch").nn.Linear
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)}
    names.discard("lm_head")
    targets = [method.targets] if isinstance(method.targets, str) else list(method.targets)
    if targets == ["all-linear"]:
        targets = sorted(names)
    if unknown_names := [target for target in targets if target not in names]:
        raise InputError(
            f"the model has no projection called {', '.join(unknown_names)} (method.targets)",
            f"it has {', '.join(sorted(names))}",
        )
    trained_layers = list(range(method.freeze_layers, model.config.num_hidden_layers))
    return load("peft").LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        layers_to_transform=trained_layers if method.freeze_layers else None,
    )


def _training_callback(
    run: TrainingRun,
    base: LoadedBase,
    heldout: list[Example],
    record: OnRecord,
    clock: TrainingClock,
    interruption: Interruption,
) -> Any:
    """Return a callback that records, measures and saves at certain steps and times, and stops at the time limit.

    The time limit may interrupt a step only before the optimizer changes the weights.
    """
    training = run.recipe.training
    measured_examples = heldout[: training.measure_rows]

    class TrainingCallback(load("transformers").TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.saved_at = self.measured_at = clock.seconds

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            interruption.allowed = False
            record({"step": state.global_step, "seconds": round(clock.seconds, 1), "steps": state.max_steps})

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            interruption.allowed = True

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            interruption.allowed = False

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> Any:
            clock.tick()
            control.should_training_stop |= (
                clock.elapsed_share >= 1
            )  # transformers has already set it after the last step
            is_last, step, seconds = control.should_training_stop, state.global_step, clock.seconds
            control.should_save |= is_last or 0 < training.checkpoint_seconds <= seconds - self.saved_at
            if measured_examples and (
                is_last
                or step % training.measure_steps == 0
                or 0 < training.measure_seconds <= seconds - self.measured_at
            ):
                measures = measure(
                    model,
                    base.tokenizer,
                    measured_examples,
                    free_answers=training.measure_free,
                    max_new_tokens=run.recipe.asking.max_tokens or DEFAULT_MAX_TOKENS,
                )
                record({"step": step, "seconds": round(seconds, 1), "heldout": measures})
                self.measured_at = seconds
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                values = {name: logs.get(name) for name in ("loss", "learning_rate", "grad_norm")}
                record({"step": state.global_step, "seconds": round(clock.seconds, 1), **values})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.tick()
            self.saved_at = clock.seconds
            if state.is_world_process_zero:
                mark_complete(run.output, state.global_step, clock.seconds)

    return TrainingCallback()


def is_main_process() -> bool:
    """Return whether this is the first of the processes that train together. Only this process writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """Return the number of processes that train together, as set by `accelerate launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))

"""Training a student on selected traces: TRL's supervised trainer, with what rows of traces need around it.

A run lives in one folder:

    run.json          what is trained on what: the recipe, its prompt, the checksums of data and base, the sources
    measures.jsonl    the losses and held-out measures, and curves.csv: the held-out measures (see `training_log`)
    checkpoint-N/     whole or marked as not (see `checkpoints`)
    trained/          the adapter, or the weights, and the tokenizer, in transformers' own format

The same command goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from rank_k.distill import checkpoints
from rank_k.distill.base_model import LoadedBase, find_gguf, load_base
from rank_k.distill.batches import Batches, label_token_ids_of, training_order
from rank_k.distill.heldout_measures import hidden_states, measure
from rank_k.distill.losses import label_loss
from rank_k.distill.precision import bf16_is_fast
from rank_k.distill.recipes import Recipe
from rank_k.distill.training_examples import Example, ExampleSet, build_examples, read_rows
from rank_k.distill.training_log import OnRecord, TrainingClock, TrainingLog
from rank_k.errors import InputError
from rank_k.models.student import TEMPLATE_FIELDS
from rank_k.optional_deps import load
from rank_k.options import DEFAULT_MAX_TOKENS
from rank_k.window.prompt import PromptTemplate, read_template
from rank_k.window.sanitize import sanitize

TRAINED_FOLDER = "trained"


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What is to be trained, with what, where. `time_limit`: seconds of training, all parts of the run together;
    the learning rate falls to nothing towards it, or towards the last step if that comes first."""

    data: Path
    recipe: Recipe
    output: Path
    heldout: Path | None = None
    max_steps: int | None = None
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended. `too_long`: rows left out, for training and held out."""

    steps: int
    seconds: float
    rows: int
    too_long: int


def train(run: TrainingRun, on_record: OnRecord = lambda record: None) -> TrainingResult:
    """Train until the last step or the time limit. Raises `InputError` before the first step for what cannot be."""
    for module in ("torch", "transformers", "trl", "peft", "datasets"):
        load(module)
    metadata = _run_metadata(run)
    existing = _read_existing_metadata(run.output, metadata)
    recipe = run.recipe
    bf16 = existing.get("bf16", recipe.training.bf16 and bf16_is_fast())  # a run resumes in the format it began in
    if is_main_process():
        on_record({"bf16": bf16, "bf16_requested": recipe.training.bf16})
    base = load_base(recipe.base.weights, bf16=bf16 and recipe.method.kind == "lora")
    _check_length(recipe, base)
    template, label_words = read_template(recipe.asking.prompt), recipe.verdicts.words
    rows = build_examples(
        _read_matching_rows(run, run.data, template), base.tokenizer, recipe.training.max_length, label_words
    )
    heldout = None
    if run.heldout is not None:
        heldout_rows = _read_matching_rows(run, run.heldout, template)
        heldout = build_examples(heldout_rows, base.tokenizer, recipe.training.max_length, label_words)
    _check_rows(run, rows, base)
    if is_main := is_main_process():  # of several processes one writes
        counts = {"rows": len(rows.examples), "too_long": rows.too_long, "sources": rows.sources}
        _write_metadata(run.output, metadata | {"bf16": bf16} | counts)
    checkpoint = checkpoints.find_newest(run.output, remove_incomplete=is_main)
    log = TrainingLog(run.output if is_main else None, checkpoint, on_record if is_main else lambda record: None)
    trainer, clock = _build_trainer(run, base, rows, heldout, log, checkpoint.seconds if checkpoint else 0.0, bf16)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))
    _save_trained(trainer, run.output / TRAINED_FOLDER)
    if is_main:
        base.tokenizer.save_pretrained(str(run.output / TRAINED_FOLDER))
    log.record({"step": trainer.state.global_step, "seconds": round(clock.seconds, 1), "finished": True})
    _leave_process_group()
    return TrainingResult(
        trainer.state.global_step,
        clock.seconds,
        len(rows.examples),
        rows.too_long + (heldout.too_long if heldout else 0),
    )


def _leave_process_group() -> None:
    """End the communication between processes that trained together.

    A process that exits while torch's communication threads run may abort, and the launcher then reports a finished
    training as failed.
    """
    distributed = load("torch.distributed")
    if process_count() > 1 and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _save_trained(trainer: Any, folder: Path) -> None:
    """What was trained, whole. Checkpoints of sharded training are in shards, which nothing else can load."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero() and not list(folder.glob("*.safetensors")):
        raise InputError(f"the trainer has left no weights in {folder}", "the newest checkpoint has them, in shards")


# --- what cannot be ---------------------------------------------------------------------------------


def _check_length(recipe: Recipe, base: LoadedBase) -> None:
    if recipe.training.max_length > base.context_length:
        raise InputError(
            f"training.max_length = {recipe.training.max_length} is longer than the context of {base.context_length}"
            f" tokens of {recipe.base.weights}",
            f"give {base.context_length} or fewer",
        )


def _check_rows(run: TrainingRun, rows: ExampleSet, base: LoadedBase) -> None:
    recipe = run.recipe
    if not rows.examples:
        problem = f"all {rows.too_long} rows are longer" if rows.too_long else "it has no rows"
        raise InputError(
            f"nothing to learn in {run.data}: {problem}", f"max_length is {recipe.training.max_length} tokens"
        )
    if recipe.verdicts.is_enabled:
        if process_count() > 1:
            raise InputError("verdicts are learnt by one process only", "start rank-k distill train without accelerate")
        label_token_ids_of(base.tokenizer, recipe.verdicts.words)
        if not rows.labeled_count:
            raise InputError(
                f"the recipe {recipe.name} learns verdicts, but no trace in {run.data} is one of verdicts",
                f"make them with: rank-k distill trace --teacher labels ({', '.join(recipe.verdicts.words)})",
            )


def uses_template(row: Mapping[str, Any], template: PromptTemplate) -> bool:
    """Whether a row's prompt was made with that template, as far as can be told: True for rows that do not say what
    was shown."""
    if not isinstance(row.get("query"), str) or not isinstance(row.get("doc_ids"), list):
        return True
    *_, user_message = template.messages(sanitize(row["query"], markers=False), ["\0"] * len(row["doc_ids"]))
    prefix, *separators = user_message.content.split("\0")
    prompt_text = str(row["prompt"][-1]["content"])
    position = len(prefix) if prompt_text.startswith(prefix) else -1
    for passage_separator in separators:
        position = prompt_text.find(passage_separator, position) if position >= 0 else -1
    return position >= 0


def _read_matching_rows(run: TrainingRun, path: Path, template: PromptTemplate) -> Iterator[dict[str, Any]]:
    """The rows of a file, each of them made with the prompt that the student is to be asked with."""
    for number, row in enumerate(read_rows(path), 1):
        if not uses_template(row, template):
            prompt = run.recipe.asking.prompt
            raise InputError(
                f"row {number} of {path} was not made with the prompt {prompt}, which the student is to be asked with",
                f"make them with rank-k distill trace --prompt {prompt}, or name theirs in [asking]",
            )
        yield row


def _run_metadata(run: TrainingRun) -> dict[str, Any]:
    """What a run is: going on with anything else in its folder would be another run under the same name."""
    try:
        with run.data.open("rb") as file:
            sha256 = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{run.data}: {error.strerror or error}", "give the rows to learn from") from error
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


def _read_existing_metadata(output: Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `run.json` in `output` holds, {} for a new run. Raises `InputError` if it is another run."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        existing = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{output} cannot hold a run: {error}", "name another folder") from error
    existing = existing if isinstance(existing, dict) else {}
    expected = json.loads(json.dumps(metadata))
    optional_keys = ("prompt", "base_sha256", "processes")  # what runs of earlier versions do not say of themselves
    changed_keys = [key for key in ("recipe", "data_sha256") if existing.get(key) != expected[key]]
    changed_keys += [key for key in optional_keys if key in existing and existing[key] != expected[key]]
    if changed_keys:
        raise InputError(
            f"{output} holds a run with another {' and '.join(changed_keys)}", "name another folder, or remove that one"
        )
    return existing


def _write_metadata(output: Path, metadata: Mapping[str, Any]) -> None:
    part_file = output / "run.json.part"
    part_file.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    part_file.replace(output / "run.json")


# --- the trainer ------------------------------------------------------------------------------------


def _build_trainer(
    run: TrainingRun,
    base: LoadedBase,
    rows: ExampleSet,
    heldout: ExampleSet | None,
    log: TrainingLog,
    seconds: float,
    bf16: bool,
) -> tuple[Any, TrainingClock]:
    transformers, trl, datasets = load("transformers"), load("trl"), load("datasets")
    recipe, training = run.recipe, run.recipe.training
    lengths = [len(example.prompt_ids) + len(example.completion) // 3 for example in rows.examples]
    order = training_order(lengths, training.epochs, training.batch, training.seed, training.group_by_length)
    batches = Batches(rows.examples, order, base.tokenizer, recipe.verdicts, training.seed)
    label_token_ids = label_token_ids_of(base.tokenizer, recipe.verdicts.words) if recipe.verdicts.is_enabled else []
    clock = TrainingClock(seconds, run.time_limit, _broadcast_seconds if process_count() > 1 else None)

    class Trainer(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        """SFTTrainer, its loss replaced where verdicts are learnt, its learning rate falling with time too."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            relevance_labels, passage_ends = inputs.pop("relevance_labels"), inputs.pop("passage_ends")
            if not recipe.verdicts.is_enabled:
                return super().compute_loss(model, inputs, *args, **options)
            with self.accelerator.autocast():
                hidden = hidden_states(model)(inputs["input_ids"], inputs["attention_mask"])
                head_weights = model.get_output_embeddings().weight
                loss = label_loss(
                    hidden,
                    head_weights,
                    inputs["labels"],
                    relevance_labels,
                    passage_ends,
                    label_token_ids,
                    recipe.verdicts,
                )
            return loss / self.current_gradient_accumulation_steps

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            def learning_rate_factor(step: int) -> float:
                used_share = max(step / num_training_steps, clock.elapsed_share)
                return min(1.0, (step + 1) / max(training.warmup_steps, 1)) * max(0.0, 1.0 - used_share)

            if self.lr_scheduler is None:
                torch = load("torch")
                self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(
                    optimizer or self.optimizer, learning_rate_factor
                )
            return self.lr_scheduler

    config = trl.SFTConfig(
        output_dir=str(run.output),
        max_length=None,  # what is too long was left out, and counted
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # the order is ours
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
        save_total_limit=2,  # the one before is whole while the next is written
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        use_cpu=not load("torch").cuda.is_available(),
    )
    trainer = Trainer(
        model=_freeze_weights(base.model, recipe),
        args=config,
        train_dataset=datasets.Dataset.from_dict({"position": list(range(len(order)))}),
        data_collator=batches,
        processing_class=base.tokenizer,
        peft_config=_lora_config(recipe, base.model),
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.add_callback(_training_callback(run, base, heldout.examples if heldout else [], log, clock))
    return trainer, clock


def _freeze_weights(model: Any, recipe: Recipe) -> Any:
    """The model with the weights frozen that are not to be trained."""
    if recipe.method.kind == "full":
        frozen_layers = tuple(f"layers.{number}." for number in range(recipe.method.freeze_layers))
        for name, parameter in model.named_parameters():
            parameter.requires_grad = not ("embed" in name or any(layer in name for layer in frozen_layers))
    return model


def _lora_config(recipe: Recipe, model: Any) -> Any:
    if recipe.method.kind != "lora":
        return None
    method, torch = recipe.method, load("torch")
    linear_names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    linear_names -= {"lm_head"}
    unknown_names = (
        [] if isinstance(method.targets, str) else [target for target in method.targets if target not in linear_names]
    )
    if unknown_names or (isinstance(method.targets, str) and method.targets != "all-linear"):
        names = ", ".join(unknown_names) or method.targets
        raise InputError(
            f"the model has no projection called {names} (method.targets)", f"it has {', '.join(sorted(linear_names))}"
        )
    targets = sorted(linear_names) if isinstance(method.targets, str) else method.targets
    layer_options = (
        {}
        if not method.freeze_layers
        else {"layers_to_transform": list(range(method.freeze_layers, layer_count(model)))}
    )
    return load("peft").LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        **layer_options,
    )


def layer_count(model: Any) -> int:
    return int(model.config.num_hidden_layers)


def _training_callback(
    run: TrainingRun, base: LoadedBase, heldout: list[Example], log: TrainingLog, clock: TrainingClock
) -> Any:
    """A callback: checkpoints and measures by step and by time, the log, and the end at the time limit."""
    transformers, training = load("transformers"), run.recipe.training
    measured_examples = heldout[: training.measure_rows]

    class TrainingCallback(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.last_checkpoint_seconds = self.last_measured_seconds = clock.seconds

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> Any:
            clock.tick()
            time_is_up = clock.elapsed_share >= 1
            if time_is_up:
                control.should_training_stop = True
            is_last = time_is_up or state.global_step >= state.max_steps
            is_due = (
                training.checkpoint_seconds
                and clock.seconds - self.last_checkpoint_seconds >= training.checkpoint_seconds
            )
            if is_due or is_last:
                control.should_save = True
            is_due = training.measure_seconds and clock.seconds - self.last_measured_seconds >= training.measure_seconds
            if measured_examples and (is_due or is_last or state.global_step % training.measure_steps == 0):
                max_new_tokens = run.recipe.asking.max_tokens or DEFAULT_MAX_TOKENS
                measures = measure(
                    model,
                    base.tokenizer,
                    measured_examples,
                    free_answers=training.measure_free,
                    max_new_tokens=max_new_tokens,
                )
                log.record({"step": state.global_step, "seconds": round(clock.seconds, 1), "heldout": asdict(measures)})
                self.last_measured_seconds = clock.seconds
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                learning_rate, gradient_norm = logs.get("learning_rate"), logs.get("grad_norm")
                record = {"step": state.global_step, "seconds": round(clock.seconds, 1), "loss": logs["loss"]}
                log.record(
                    record
                    | {
                        "learning_rate": learning_rate,
                        "grad_norm": None if gradient_norm is None else float(gradient_norm),
                    }
                )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                checkpoints.mark_complete(run.output, state.global_step, clock.seconds)
            self.last_checkpoint_seconds = clock.seconds

    return TrainingCallback()


def _broadcast_seconds(seconds: float) -> float:
    """The first process's time, in all of them."""
    values = [seconds]
    load("accelerate.utils").broadcast_object_list(values)
    return values[0]


def is_main_process() -> bool:
    """Whether this process is the one of those that train together which speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """How many processes train together: set by `accelerate launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))

"""Training a student on selected traces: TRL's supervised trainer, with what rows of traces need around it.

A run lives in one folder:

    run.json          what is trained on what: the recipe, its prompt, the checksums of data and base, the sources
    measures.jsonl    what is told as it goes on, and curves.csv: the held-out measures (see `story`)
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
from rank_k.distill.base_model import LoadedBase, gguf_of, load_base
from rank_k.distill.batches import Batches, label_tokens, training_order
from rank_k.distill.heldout_measures import hidden_states, measure
from rank_k.distill.losses import label_loss
from rank_k.distill.precision import bf16_is_fast
from rank_k.distill.recipes import Recipe
from rank_k.distill.training_examples import Example, Examples, build_examples, read_rows
from rank_k.distill.training_log import Clock, OnRecord, TrainingLog
from rank_k.errors import InputError
from rank_k.models.student import TEMPLATE_FIELDS
from rank_k.optional_deps import load
from rank_k.window.prompt import PromptTemplate, read_template
from rank_k.window.sanitize import sanitize

TRAINED = "trained"


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be trained, with what, where. `time_limit`: seconds of training, all parts of the run together;
    the learning rate falls to nothing towards it, or towards the last step if that comes first."""

    data: Path
    recipe: Recipe
    output: Path
    heldout: Path | None = None
    max_steps: int | None = None
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended. `too_long`: rows left out, for training and held out."""

    steps: int
    seconds: float
    rows: int
    too_long: int


def train(run: Run, on_told: OnRecord = lambda told: None) -> Trained:
    """Train until the last step or the time limit. Raises `InputError` before the first step for what cannot be."""
    for module in ("torch", "transformers", "trl", "peft", "datasets"):
        load(module)
    facts = _facts(run)
    known = _check_folder(run.output, facts)
    recipe = run.recipe
    bf16 = known.get("bf16", recipe.training.bf16 and bf16_is_fast())  # a run resumes in the format it began in
    if is_first():
        on_told({"bf16": bf16, "wanted": recipe.training.bf16})
    base = load_base(recipe.base.weights, bf16=bf16 and recipe.method.kind == "lora")
    _check_length(recipe, base)
    template, words = read_template(recipe.asking.prompt), recipe.verdicts.words
    rows = build_examples(_rows(run, run.data, template), base.tokenizer, recipe.training.max_length, words)
    held = None
    if run.heldout is not None:
        made = _rows(run, run.heldout, template)
        held = build_examples(made, base.tokenizer, recipe.training.max_length, words)
    _check_rows(run, rows, base)
    if first := is_first():  # of several processes one writes
        counts = {"rows": len(rows.kept), "too_long": rows.too_long, "sources": rows.sources}
        _keep_facts(run.output, facts | {"bf16": bf16} | counts)
    start = checkpoints.newest(run.output, sweep=first)
    story = TrainingLog(run.output if first else None, start, on_told if first else lambda told: None)
    trainer, clock = _trainer(run, base, rows, held, story, start.seconds if start else 0.0, bf16)
    trainer.train(resume_from_checkpoint=None if start is None else str(start.path))
    _save(trainer, run.output / TRAINED)
    if first:
        base.tokenizer.save_pretrained(str(run.output / TRAINED))
    story.tell({"step": trainer.state.global_step, "seconds": round(clock.seconds, 1), "finished": True})
    return Trained(
        trainer.state.global_step,
        clock.seconds,
        len(rows.kept),
        rows.too_long + (held.too_long if held else 0),
    )


def _save(trainer: Any, folder: Path) -> None:
    """What was trained, whole. Checkpoints of sharded training are in shards, which nothing else can load."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero() and not list(folder.glob("*.safetensors")):
        raise InputError(f"the trainer has left no weights in {folder}", "the newest checkpoint has them, in shards")


# --- what cannot be ---------------------------------------------------------------------------------


def _check_length(recipe: Recipe, base: LoadedBase) -> None:
    if recipe.training.max_length > base.context:
        raise InputError(
            f"training.max_length = {recipe.training.max_length} is longer than the context of {base.context} tokens"
            f" of {recipe.base.weights}",
            f"give {base.context} or fewer",
        )


def _check_rows(run: Run, rows: Examples, base: LoadedBase) -> None:
    recipe = run.recipe
    if not rows.kept:
        told = f"all {rows.too_long} rows are longer" if rows.too_long else "it has no rows"
        raise InputError(
            f"nothing to learn in {run.data}: {told}", f"max_length is {recipe.training.max_length} tokens"
        )
    if recipe.verdicts.on:
        if processes() > 1:
            raise InputError("verdicts are learnt by one process only", "start rank-k distill train without accelerate")
        label_tokens(base.tokenizer, recipe.verdicts.words)
        if not rows.with_verdicts:
            raise InputError(
                f"the recipe {recipe.name} learns verdicts, but no trace in {run.data} is one of verdicts",
                f"make them with: rank-k distill trace --teacher labels ({', '.join(recipe.verdicts.words)})",
            )


def made_with(row: Mapping[str, Any], template: PromptTemplate) -> bool:
    """Whether a row's prompt was made with that template, as far as can be told: True for rows that do not say what
    was shown."""
    if not isinstance(row.get("query"), str) or not isinstance(row.get("doc_ids"), list):
        return True
    *_, frame = template.messages(sanitize(row["query"], markers=False), ["\0"] * len(row["doc_ids"]))
    first, *parts = frame.content.split("\0")
    content = str(row["prompt"][-1]["content"])
    place = len(first) if content.startswith(first) else -1
    for part in parts:
        place = content.find(part, place) if place >= 0 else -1
    return place >= 0


def _rows(run: Run, path: Path, template: PromptTemplate) -> Iterator[dict[str, Any]]:
    """The rows of a file, each of them made with the prompt that the student is to be asked with."""
    for number, row in enumerate(read_rows(path), 1):
        if not made_with(row, template):
            prompt = run.recipe.asking.prompt
            raise InputError(
                f"row {number} of {path} was not made with the prompt {prompt}, which the student is to be asked with",
                f"make them with rank-k distill trace --prompt {prompt}, or name theirs in [asking]",
            )
        yield row


def _facts(run: Run) -> dict[str, Any]:
    """What a run is: going on with anything else in its folder would be another run under the same name."""
    try:
        with run.data.open("rb") as file:
            sha256 = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{run.data}: {error.strerror or error}", "give the rows to learn from") from error
    template = read_template(run.recipe.asking.prompt)
    base = gguf_of(run.recipe.base.weights)
    return {
        "recipe": asdict(run.recipe),
        "prompt": {name: getattr(template, name) for name in TEMPLATE_FIELDS},
        "data": run.data.name,
        "data_sha256": sha256,
        "base_sha256": base and base.sha256,
        "processes": processes(),
    }


def _check_folder(output: Path, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `run.json` in `output` holds, {} for a new run. Raises `InputError` if it is another run."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        known = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{output} cannot hold a run: {error}", "name another folder") from error
    known = known if isinstance(known, dict) else {}
    told = json.loads(json.dumps(facts))
    since = ("prompt", "base_sha256", "processes")  # what runs of earlier versions do not say of themselves
    changed = [key for key in ("recipe", "data_sha256") if known.get(key) != told[key]]
    changed += [key for key in since if key in known and known[key] != told[key]]
    if changed:
        raise InputError(
            f"{output} holds a run with another {' and '.join(changed)}", "name another folder, or remove that one"
        )
    return known


def _keep_facts(output: Path, facts: Mapping[str, Any]) -> None:
    part = output / "run.json.part"
    part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    part.replace(output / "run.json")


# --- the trainer ------------------------------------------------------------------------------------


def _trainer(
    run: Run, base: LoadedBase, rows: Examples, held: Examples | None, story: TrainingLog, seconds: float, bf16: bool
) -> tuple[Any, Clock]:
    transformers, trl, datasets = load("transformers"), load("trl"), load("datasets")
    recipe, told = run.recipe, run.recipe.training
    lengths = [len(example.prompt_ids) + len(example.completion) // 3 for example in rows.kept]
    order = training_order(lengths, told.epochs, told.batch, told.seed, told.group_by_length)
    batches = Batches(rows.kept, order, base.tokenizer, recipe.verdicts, told.seed)
    tokens = label_tokens(base.tokenizer, recipe.verdicts.words) if recipe.verdicts.on else []
    clock = Clock(seconds, run.time_limit, _agreed if processes() > 1 else None)

    class Trainer(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        """SFTTrainer, its loss replaced where verdicts are learnt, its learning rate falling with time too."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            verdicts, ends = inputs.pop("verdicts"), inputs.pop("ends")
            if not recipe.verdicts.on:
                return super().compute_loss(model, inputs, *args, **options)
            with self.accelerator.autocast():
                hidden = hidden_states(model)(inputs["input_ids"], inputs["attention_mask"])
                head = model.get_output_embeddings().weight
                loss = label_loss(hidden, head, inputs["labels"], verdicts, ends, tokens, recipe.verdicts)
            return loss / self.current_gradient_accumulation_steps

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            def share(step: int) -> float:
                gone = max(step / num_training_steps, clock.share)
                return min(1.0, (step + 1) / max(told.warmup_steps, 1)) * max(0.0, 1.0 - gone)

            if self.lr_scheduler is None:
                torch = load("torch")
                self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
            return self.lr_scheduler

    settings = trl.SFTConfig(
        output_dir=str(run.output),
        max_length=None,  # what is too long was left out, and counted
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # the order is ours
        num_train_epochs=1,
        max_steps=run.max_steps or -1,
        per_device_train_batch_size=told.batch,
        gradient_accumulation_steps=told.accumulate,
        learning_rate=told.learning_rate,
        weight_decay=told.weight_decay,
        adam_beta2=told.adam_beta2,
        max_grad_norm=told.max_grad_norm,
        bf16=bf16,
        gradient_checkpointing=told.gradient_checkpointing,
        seed=told.seed,
        save_strategy="steps",
        save_steps=told.checkpoint_steps,
        save_total_limit=2,  # the one before is whole while the next is written
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        use_cpu=not load("torch").cuda.is_available(),
    )
    trainer = Trainer(
        model=_prepared(base.model, recipe),
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"place": list(range(len(order)))}),
        data_collator=batches,
        processing_class=base.tokenizer,
        peft_config=_adapter(recipe, base.model),
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.add_callback(_watch(run, base, held.kept if held else [], story, clock))
    return trainer, clock


def _prepared(model: Any, recipe: Recipe) -> Any:
    """The model with the weights frozen that are not to be trained."""
    if recipe.method.kind == "full":
        frozen = tuple(f"layers.{number}." for number in range(recipe.method.freeze_layers))
        for name, parameter in model.named_parameters():
            parameter.requires_grad = not ("embed" in name or any(layer in name for layer in frozen))
    return model


def _adapter(recipe: Recipe, model: Any) -> Any:
    if recipe.method.kind != "lora":
        return None
    method, torch = recipe.method, load("torch")
    known = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    known -= {"lm_head"}
    unknown = [] if isinstance(method.targets, str) else [each for each in method.targets if each not in known]
    if unknown or (isinstance(method.targets, str) and method.targets != "all-linear"):
        named = ", ".join(unknown) or method.targets
        raise InputError(
            f"the model has no projection called {named} (method.targets)", f"it has {', '.join(sorted(known))}"
        )
    targets = sorted(known) if isinstance(method.targets, str) else method.targets
    some = {} if not method.freeze_layers else {"layers_to_transform": list(range(method.freeze_layers, layers(model)))}
    return load("peft").LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        **some,
    )


def layers(model: Any) -> int:
    return int(model.config.num_hidden_layers)


def _watch(run: Run, base: LoadedBase, held: list[Example], story: TrainingLog, clock: Clock) -> Any:
    """A callback: checkpoints and measures by step and by time, the log, and the end at the time limit."""
    transformers, told = load("transformers"), run.recipe.training
    chosen = held[: told.measure_rows]

    class Watch(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.saved = self.measured = clock.seconds

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> Any:
            clock.tick()
            late = clock.share >= 1
            if late:
                control.should_training_stop = True
            last = late or state.global_step >= state.max_steps
            due = told.checkpoint_seconds and clock.seconds - self.saved >= told.checkpoint_seconds
            if due or last:
                control.should_save = True
            due = told.measure_seconds and clock.seconds - self.measured >= told.measure_seconds
            if chosen and (due or last or state.global_step % told.measure_steps == 0):
                tokens = run.recipe.asking.max_tokens
                found = measure(model, base.tokenizer, chosen, free=told.measure_free, new_tokens=tokens)
                story.tell({"step": state.global_step, "seconds": round(clock.seconds, 1), "heldout": asdict(found)})
                self.measured = clock.seconds
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                rate, norm = logs.get("learning_rate"), logs.get("grad_norm")
                told = {"step": state.global_step, "seconds": round(clock.seconds, 1), "loss": logs["loss"]}
                story.tell(told | {"learning_rate": rate, "grad_norm": None if norm is None else float(norm)})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                checkpoints.complete(run.output, state.global_step, clock.seconds)
            self.saved = clock.seconds

    return Watch()


def _agreed(seconds: float) -> float:
    """The first process's time, in all of them."""
    told = [seconds]
    load("accelerate.utils").broadcast_object_list(told)
    return told[0]


def is_first() -> bool:
    """Whether this process is the one of those that train together which speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """How many processes train together: set by `accelerate launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))

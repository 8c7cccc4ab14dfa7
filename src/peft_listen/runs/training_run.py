"""A training run: from data files and the names of models to a scored model, continued by the same call."""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import nn
from transformers import EarlyStoppingCallback, Pipeline, PreTrainedModel, ProcessorMixin, TrainerCallback

from ..analysis import SelectionRecords
from ..data import Example, read_examples
from ..evaluation import predict, save_scores
from ..files import atomic_path, is_temporary, write_errors
from ..hub_connection import hub_connection
from ..hub_repository import prepare_repository
from ..lora_beside import load_lora_beside
from ..metrics import MetricChoice, TaskScore, score_predictions
from ..metrics.scoring import check_metrics, compared_answers
from ..metrics.tasks import parse_task_metrics
from ..model_card import add_prompts, add_scores, add_training, write_model_card
from ..models.audio_listen import AudioListenForCausalLM, AudioListenProcessor
from ..pipelines.loading import load_pipeline, model_fingerprints
from ..processes import in_main_process
from ..publishing import check_can_be_published, publish
from ..rows import clips_of
from ..run_folder import MODEL_NAME, SELECTIONS_NAME, SETTINGS_NAME
from ..settings_record import SettingsRecord
from ..training import AudioListenCollator, FeatureCache, ListenCallback, TaskMixture, create_listen_optimizer
from ..training.mixture import parse_weights
from .building import (
    add_adapter,
    check_other_base,
    load_base,
    prepare_projector,
    save_base,
    save_trained_base,
)
from .card_settings import card_settings, hub_datasets, run_command
from .checkpoints import LogAtCheckpoints, continuation, final_state, last_whole_checkpoint
from .loading_errors import loading_errors
from .options import AdapterOptions, DataOptions, ListenOptions, ModelOptions, RunArguments
from .selections import save_selections
from .settings import run_settings
from .sharding import check_sharding, is_sharded_run, shard_decoder_layers, trained_state_dict
from .skipped_rows import find_skipped_rows, kept_rows
from .trainer import RunTrainer


# Rows of each task for which the selections of the trained adapter are recorded.
_RECORDED_ROWS = 64


@dataclass(frozen=True)
class RunResult:
    """
    The result of a run.

    Attributes:
        model_dir (`pathlib.Path`): folder of the trained model, which `load_pipeline` loads.
        log_history (`list[dict]`): the values that the trainer has logged.
        scores (`dict[str, dict[str, TaskScore]]`): scores of each task, by the split (`"eval"`, `"test"`).
        was_finished (`bool`): whether the run had been finished before.
        num_skipped (`dict[str, int]`): number of rows that were left out because of their clips, by the split (`"train"`,
            `"eval"`, `"test"`).
        uploaded_to (`str`, *optional*): repository on the Hub, with its owner, to which the run has uploaded the model, now or
            before.
    """

    model_dir: Path
    log_history: list[dict[str, Any]]
    scores: dict[str, dict[str, TaskScore]]
    was_finished: bool = False
    num_skipped: dict[str, int] = field(default_factory=dict)
    uploaded_to: str | None = None


@dataclass
class TrainingRun:
    """
    A training run. What it writes, in `arguments.output_dir`:

    - `settings.json`: what determines the result, so that the run is not continued with other settings;
    - `base`: the base model, if it is built from parts: the projector and references to the frozen parts;
    - `checkpoints`: those of the trainer;
    - `model`: the trained adapter, which refers to the base model, or the base model if the projector alone is trained; with a
      model card;
    - `skipped.json`: with `on_bad_clip="skip"`, the rows that are left out, and why;
    - `training.json`: the trainer's log and the settings that the card shows, when the training is finished;
    - `eval` and `test`: answers and scores of these splits;
    - `selections.safetensors`: the prompts that the adapter selects for the first 64 rows of each task of the test data, or
      else of the evaluation or training data;
    - `result.json`: written last.

    Args:
        model ([`ModelOptions`]): the base model.
        adapter ([`AdapterOptions`]): what is trained.
        listen ([`ListenOptions`]): the pool of prompts.
        data ([`DataOptions`]): data and scores.
        arguments ([`RunArguments`]): arguments of the trainer.
        callbacks (`Sequence[TrainerCallback]`, *optional*): further callbacks of the trainer.

    Example:

    ```python
    from peft_listen.runs import AdapterOptions, DataOptions, ListenOptions, ModelOptions, RunArguments, TrainingRun

    run = TrainingRun(
        ModelOptions(model="my-base"),
        AdapterOptions(adapter="listen"),
        ListenOptions(listen_pool_size=64, listen_prompt_length=8),
        DataOptions(train_data=["train.jsonl"], test_data=["test.jsonl"]),
        RunArguments(output_dir="output", max_steps=60),
    )
    result = run.run()
    ```
    """

    model: ModelOptions
    adapter: AdapterOptions
    listen: ListenOptions
    data: DataOptions
    arguments: RunArguments
    callbacks: Sequence[TrainerCallback] = ()

    def __post_init__(self) -> None:
        _check(self.adapter, self.data, self.arguments)

    def run(self) -> RunResult:
        """
        Trains, scores and saves, or continues with it. With `push_to_hub`, the model is uploaded once, also that of a run that
        was finished without this option. The repository is created before anything else, so that one that cannot be written
        to is refused before the training. With several processes, all of them call this method.

        Returns:
            [`RunResult`]

        Raises:
            ValueError: if the folder has a run with other settings, and for data and options that do not fit; the message
                says which.
            OSError: if a model, a data file or a clip cannot be read, a result cannot be written, or the Hub cannot be reached
                or refuses the upload.
        """
        in_main_process(self._prepare_upload)
        rows = {split: _read(files) for split, files in self._splits().items()}
        metrics = parse_task_metrics(self.data.metrics)
        _check_assigned(metrics, rows)
        for split in ("eval", "test"):
            if rows[split]:
                # Tried first, since the training may take days.
                check_metrics(rows[split], _of_tasks(metrics, rows[split]))
        self._mixture(rows["train"])  # refuses weights that do not fit
        self._check_settings(rows)
        skipped = self._skipped_rows(rows)
        num_skipped = {split: len(each) for split, each in skipped.items()}
        # What is on disk is read by the main process alone, which may go on with the folder while the others return.
        finished = in_main_process(self._result)
        if finished is not None:
            if in_main_process(self._is_to_be_uploaded):
                in_main_process(lambda: self._upload(finished.scores, rows["train"], self._stored_selections()))
            return replace(finished, num_skipped=num_skipped, uploaded_to=in_main_process(self._uploaded_to))
        kept = kept_rows(rows, skipped)
        if in_main_process(self._log_history) is None:
            self._train(kept, metrics, self._mixture(kept["train"]), num_skipped)
            _free_memory()
        # Loaded once, when it is needed.
        load = functools.cache(
            lambda: load_pipeline(str(self.model_dir), self.model.dtype, str(self.arguments.device))
        )
        # Answers to all rows: those that are skipped are in the files of answers too.
        scores = {
            split: self._evaluate(split, rows[split], metrics, load) for split in ("eval", "test") if rows[split]
        }
        selections = self._selections(kept, load)
        del load
        _free_memory()
        in_main_process(lambda: self._finish(scores, kept, selections))
        history, uploaded_to = in_main_process(lambda: (self._log_history() or [], self._uploaded_to()))
        return RunResult(self.model_dir, history, scores, num_skipped=num_skipped, uploaded_to=uploaded_to)

    def _mixture(self, rows: Sequence[Example]) -> TaskMixture:
        return TaskMixture(
            [row["task"] for row in rows],
            self.data.temperature,
            parse_weights(self.data.task_weights),
            seed=self.arguments.seed if self.arguments.data_seed is None else self.arguments.data_seed,
        )

    def _skipped_rows(self, rows: Mapping[str, Sequence[Example]]) -> dict[str, dict[int, str]]:
        if self.data.on_bad_clip == "error":
            return {split: {} for split in rows}
        return find_skipped_rows(
            rows,
            self._folder,
            self.data.feature_cache,
            is_begun=in_main_process(self._has_begun),
            show_progress=not self.arguments.disable_tqdm,
        )

    @property
    def _folder(self) -> Path:
        return Path(self.arguments.output_dir or "output")

    @property
    def _checkpoints(self) -> Path:
        # The whole path: the trainer stores that of the best checkpoint.
        return (self._folder / "checkpoints").absolute()

    @property
    def model_dir(self) -> Path:
        """Folder of the trained model."""
        return self._folder / MODEL_NAME

    @property
    def _base(self) -> str:
        """Name of the base model. The adapter stores it, so that a folder has its whole path."""
        if self.model.model is not None and not os.path.isdir(self.model.model):
            return self.model.model
        return os.path.abspath(self.model.model or self._folder / "base")

    def _splits(self) -> dict[str, list[str]]:
        return {"train": self.data.train_data, "eval": self.data.eval_data, "test": self.data.test_data}

    @property
    def _generation(self) -> dict[str, Any]:
        return {"max_new_tokens": self.data.max_new_tokens, "num_beams": self.data.num_beams, "do_sample": False}

    def _check_settings(self, rows: Mapping[str, Sequence[Example]]) -> None:
        options = (self.model, self.adapter, self.listen, self.data)
        settings = run_settings(options, self.arguments, rows)

        def check() -> None:
            self._folder.mkdir(parents=True, exist_ok=True)
            record = SettingsRecord(self._folder / SETTINGS_NAME)
            changes = record.changes(settings)
            if changes and not self._has_begun():
                # For example, the name of a model was wrong.
                shutil.rmtree(self._folder / "base", ignore_errors=True)
                record.write(settings)
            elif changes:
                raise ValueError(
                    f"{self._folder} has a run with other settings:\n  "
                    + "\n  ".join(changes)
                    + "\nUse these again to continue or to show it, or set another `output_dir`."
                )
            if changes is None:
                if not all(is_temporary(path.name) for path in self._folder.iterdir()):
                    raise ValueError(
                        f"{self._folder} is not empty, and not the folder of a run (it has no settings.json). Set another "
                        "`output_dir`."
                    )
                record.write(settings)

        in_main_process(check)

    def _has_begun(self) -> bool:
        return (self._folder / "training.json").exists() or last_whole_checkpoint(self._checkpoints) is not None

    def _train(
        self,
        rows: Mapping[str, list[Example]],
        metrics: dict[str, list[MetricChoice]],
        mixture: TaskMixture,
        num_skipped: Mapping[str, int],
    ) -> None:
        arguments = self.arguments
        in_main_process(lambda: save_base(self.model, self._folder / "base", arguments.seed))
        base, processor = load_base(self._base, self.model)
        check_other_base(base, self.adapter, self.data)
        cache = self._feature_cache(base, processor, rows)
        variables = self.data.template_variables
        collator = AudioListenCollator(
            processor,
            feature_cache=cache,
            chat_template_kwargs=variables,
            trained_answers=self.data.trained_answers,
        )
        checkpoint = in_main_process(lambda: last_whole_checkpoint(self._checkpoints))
        end = None if checkpoint is None else final_state(checkpoint)
        if checkpoint is not None and end is None:
            in_main_process(functools.partial(print, continuation(checkpoint), flush=True))
        if self.model.standardize_frames and checkpoint is None:
            prepare_projector(base, collator, rows["train"], arguments.device)
        model: Any = add_adapter(base, processor, self.adapter, self.listen, arguments.seed, variables)
        collator.check_generation(model)
        if arguments.push_to_hub:
            check_can_be_published(model, arguments.hub_include)
        trainer = RunTrainer(
            model,
            _trainer_arguments(arguments, self._checkpoints),
            mixture=mixture,
            scored_rows=_first_of_each_task(rows["eval"], self.data.eval_rows_per_task),
            metrics=metrics,
            generate_kwargs=self._generation,
            train_dataset=rows["train"],
            eval_dataset=rows["eval"] or None,
            data_collator=collator,
            make_optimizer=self._optimizer,
            callbacks=self._callbacks(),
        )
        shard_decoder_layers(trainer.accelerator, base)
        if checkpoint is not None and end is not None:
            trainer.restore(end, checkpoint)
        else:
            with loading_errors():
                trainer.train(resume_from_checkpoint=checkpoint)
        history = trainer.state.log_history
        best = {"best_metric": trainer.state.best_metric, "best_step": trainer.state.best_global_step}
        state_dict = trained_state_dict(trainer.model) if is_sharded_run() else None

        def save() -> None:
            with write_errors(self.model_dir):
                self._save(trainer.accelerator.unwrap_model(trainer.model), processor, state_dict)
            # Stored now: whoever uploads the run later may have other versions of the libraries.
            card = {"title": self._card_title, "training": self._card_settings(rows, history, num_skipped)}
            _write_json(self._folder / "training.json", {**best, "log_history": history, "card": card})

        in_main_process(save)

    def _feature_cache(
        self, base: PreTrainedModel, processor: ProcessorMixin, rows: Mapping[str, list[Example]]
    ) -> FeatureCache | None:
        if self.data.feature_cache is None:
            return None
        assert isinstance(base, AudioListenForCausalLM) and isinstance(processor, AudioListenProcessor)
        module: nn.Module = base
        module.to(self.arguments.device)
        cache = FeatureCache(self.data.feature_cache, base)
        clips = clips_of([*rows["train"], *rows["eval"]])
        cache.build(base, processor, list(dict.fromkeys(clips)))
        return cache

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        arguments = self.arguments
        return create_listen_optimizer(
            model,
            arguments,
            value_learning_rate=arguments.value_learning_rate,
            shared_value_learning_rate=arguments.shared_value_learning_rate,
            key_learning_rate=arguments.key_learning_rate,
        )

    def _callbacks(self) -> list[TrainerCallback]:
        callbacks: list[TrainerCallback] = [LogAtCheckpoints(), *self.callbacks]
        if self.adapter.has_listen:
            callbacks.append(ListenCallback(init_keys_at_steps=self.listen.init_keys_at_steps))
        if self.arguments.early_stopping_patience is not None:
            callbacks.append(
                EarlyStoppingCallback(self.arguments.early_stopping_patience, self.arguments.early_stopping_threshold)
            )
        return callbacks

    def _save(self, model: Any, processor: ProcessorMixin, state_dict: dict[str, Any] | None) -> None:
        if self.adapter.adapter == "none":
            save_trained_base(model, self.model_dir)
            processor.save_pretrained(self.model_dir)
        else:
            model.save_pretrained(self.model_dir, state_dict=state_dict)
        # PEFT's card is named after the folder, which is called "model" in every run.
        card = self.model_dir / "README.md"
        card.unlink(missing_ok=True)
        write_model_card(model, card, self._card_name, title=self._card_title)

    @property
    def _card_title(self) -> str:
        return (self.arguments.push_to_hub and self.arguments.hub_model_id) or self._folder.resolve().name

    @property
    def _card_name(self) -> str:
        """By which the code in the card loads the model."""
        is_uploaded = self.arguments.push_to_hub and self.arguments.hub_model_id
        return self._card_title if is_uploaded else f"{self._card_title}/{self.model_dir.name}"

    def _evaluate(
        self,
        split: str,
        rows: list[Example],
        metrics: Mapping[str, list[MetricChoice]],
        load: Callable[[], Pipeline],
    ) -> dict[str, TaskScore]:
        folder = self._folder / split
        in_main_process(lambda: folder.mkdir(exist_ok=True))
        template_variables = self.data.template_variables
        variables: dict[str, Any] = {"chat_template_kwargs": template_variables} if template_variables else {}
        predictions = predict(
            load,
            rows,
            folder / "predictions.jsonl",
            batch_size=self.arguments.per_device_eval_batch_size,
            settings=model_fingerprints(str(self.model_dir)),
            show_progress=not self.arguments.disable_tqdm,
            compared=compared_answers(rows, _of_tasks(metrics, rows)),
            make_collator=AudioListenCollator,
            on_bad_clip=self.data.on_bad_clip,
            **self._generation,
            **variables,
        )
        scores = score_predictions(predictions, _of_tasks(metrics, rows))
        in_main_process(
            lambda: save_scores(scores, folder, {"model": str(self.model_dir), "data": self._splits()[split]})
        )
        return scores

    def _selections(
        self, rows: Mapping[str, Sequence[Example]], load: Callable[[], Pipeline]
    ) -> SelectionRecords | None:
        if not self.adapter.has_listen:
            return None
        recorded = _first_of_each_task(rows["test"] or rows["eval"] or rows["train"], _RECORDED_ROWS)
        return in_main_process(
            lambda: save_selections(
                load(),
                recorded,
                self._folder / SELECTIONS_NAME,
                batch_size=self.arguments.per_device_eval_batch_size,
                template_variables=self.data.template_variables,
                init_keys_at_steps=self.listen.init_keys_at_steps,
            )
        )

    def _finish(
        self,
        scores: Mapping[str, Mapping[str, TaskScore]],
        rows: Mapping[str, Sequence[Example]],
        selections: SelectionRecords | None,
    ) -> None:
        card, stored = self.model_dir / "README.md", self._stored_card()
        add_training(card, stored.get("training", {}), hub_datasets(rows["train"]))
        if selections is not None:
            add_prompts(card, selections)
        if shown := _shown(scores):
            # The title that the card has, which is another one if the upload was asked for after the training.
            add_scores(card, shown, stored.get("title", self._card_title))
        if self.arguments.push_to_hub:
            self._upload(scores, rows["train"], selections)
        else:
            self._write_result(scores)

    def _upload(
        self,
        scores: Mapping[str, Mapping[str, TaskScore]],
        train_rows: Sequence[Example],
        selections: SelectionRecords | None,
    ) -> None:
        """Uploads the model with a card of its own, and records it. The card of the run's folder stays as it is."""
        training = self._stored_card().get("training", {})
        uploaded_to = self._publish(_shown(scores), training, hub_datasets(train_rows), selections)
        self._write_result(scores, uploaded=self._destination, uploaded_to=uploaded_to)

    def _write_result(self, scores: Mapping[str, Mapping[str, TaskScore]], **uploaded: Any) -> None:
        result = {split: {task: vars(score) for task, score in each.items()} for split, each in scores.items()}
        _write_json(self._folder / "result.json", {"scores": result, **uploaded})

    @property
    def _destination(self) -> dict[str, Any]:
        """What is uploaded where."""
        return {
            "endpoint": constants.ENDPOINT,
            "repo_id": self.arguments.hub_model_id or self._folder.resolve().name,
            "revision": self.arguments.hub_revision,
            "include": sorted(self.arguments.hub_include),
        }

    def _is_to_be_uploaded(self) -> bool:
        """Whether the options of a finished run ask for an upload that was not made."""
        return self.arguments.push_to_hub and self._stored_result().get("uploaded") != self._destination

    def _uploaded_to(self) -> str | None:
        uploaded_to: str | None = self._stored_result().get("uploaded_to")
        return uploaded_to

    def _stored_selections(self) -> SelectionRecords | None:
        path = self._folder / SELECTIONS_NAME
        return SelectionRecords.load(path) if path.is_file() else None

    def _card_settings(
        self,
        rows: Mapping[str, Sequence[Example]],
        log_history: Sequence[Mapping[str, Any]],
        num_skipped: Mapping[str, int],
    ) -> dict[str, Any]:
        options = (self.model, self.adapter, self.listen, self.data)
        settings = card_settings(options, self.arguments, rows, log_history, num_skipped)
        # Callbacks and the configuration of the sharding are not options of the command.
        if not self.callbacks and not is_sharded_run():
            settings["command"] = run_command(options, self.arguments)
        return settings

    @property
    def _without_hub(self) -> str:
        """What to do if the Hub cannot be reached."""
        if self._log_history() is not None:
            return f"The trained model is in {self.model_dir}; the same command, run again, uploads it without another training."
        return (
            "This is checked before the training. To train without the Hub, leave out `push_to_hub`; with it, the same command "
            "uploads the finished run later."
        )

    def _prepare_upload(self) -> None:
        """Creates the repository of a run that is not finished; an upload of a finished one follows at once."""
        if not self.arguments.push_to_hub or self._stored_result():
            return
        with hub_connection(self._without_hub):
            prepare_repository(
                self._destination["repo_id"],
                private=self.arguments.hub_private_repo,
                token=self.arguments.hub_token,
                revision=self.arguments.hub_revision,
            )

    def _publish(
        self,
        scores: Mapping[str, TaskScore],
        training: Mapping[str, Any],
        datasets: Sequence[str],
        selections: SelectionRecords | None,
    ) -> str:
        """Uploads the model, and returns the name of its repository, which has the owner even if the option has not."""
        from peft import PeftModel

        base, processor = load_base(self._base, self.model)
        model: Any = base
        if self.adapter.adapter == "none":
            model = AudioListenForCausalLM.from_pretrained(self.model_dir)
        else:
            model = PeftModel.from_pretrained(base, str(self.model_dir))
            load_lora_beside(model, self.model_dir)
        with hub_connection(self._without_hub):
            commit = publish(
                model,
                processor,
                self._destination["repo_id"],
                include=self.arguments.hub_include,
                private=self.arguments.hub_private_repo,
                token=self.arguments.hub_token,
                revision=self.arguments.hub_revision,
                scores=scores,
                training=training,
                datasets=datasets,
                selections=selections,
            )
        return str(commit.repo_url.repo_id)

    def _log_history(self) -> list[dict[str, Any]] | None:
        history: list[dict[str, Any]] | None = self._stored_training().get("log_history")
        return history

    def _stored_card(self) -> dict[str, Any]:
        """Title and settings of the training in the card; empty for a run of an earlier version."""
        card: dict[str, Any] = self._stored_training().get("card", {})
        return card

    def _stored_training(self) -> dict[str, Any]:
        return _read_json(self._folder / "training.json")

    def _result(self) -> RunResult | None:
        stored = self._stored_result()
        if not stored:
            return None
        scores = {
            split: {task: TaskScore(**values) for task, values in tasks.items()}
            for split, tasks in stored["scores"].items()
        }
        return RunResult(self.model_dir, self._log_history() or [], scores, was_finished=True)

    def _stored_result(self) -> dict[str, Any]:
        return _read_json(self._folder / "result.json")


def _check(adapter: AdapterOptions, data: DataOptions, arguments: RunArguments) -> None:
    check_sharding(adapter, data, arguments)
    if arguments.resume_from_checkpoint is not None:
        raise ValueError("`resume_from_checkpoint` is not used: the same command resumes the run of its `output_dir`.")


def _trainer_arguments(arguments: RunArguments, checkpoints: Path) -> RunArguments:
    arguments = copy.copy(arguments)
    # The trainer would upload checkpoints; the run uploads the model at its end.
    arguments.push_to_hub = False
    # The integrations of `report_to` continue a run of the same name.
    arguments.run_name = arguments.run_name or checkpoints.parent.name
    arguments.output_dir = str(checkpoints)
    return arguments


def _read(files: Sequence[str]) -> list[Example]:
    return [example for path in files for example in read_examples(path)]


def _first_of_each_task(rows: Sequence[Example], limit: int | None) -> list[Example]:
    counts: dict[str, int] = {}
    kept = []
    for row in rows:
        counts[row["task"]] = counts.get(row["task"], 0) + 1
        if limit is None or counts[row["task"]] <= limit:
            kept.append(row)
    return kept


def _check_assigned(metrics: Mapping[str, Any], rows: Mapping[str, Sequence[Example]]) -> None:
    tasks = {row["task"] for each in rows.values() for row in each}
    if unknown := sorted(metrics.keys() - tasks):
        raise ValueError(
            f"Metrics are set for the tasks {unknown}, which have no rows; the tasks are {sorted(tasks)}."
        )


def _of_tasks(metrics: Mapping[str, list[MetricChoice]], rows: Sequence[Example]) -> dict[str, list[MetricChoice]]:
    tasks = {row["task"] for row in rows}
    return {task: choices for task, choices in metrics.items() if task in tasks}


def _shown(scores: Mapping[str, Mapping[str, TaskScore]]) -> Mapping[str, TaskScore]:
    """The scores that the card shows."""
    return scores.get("test") or scores.get("eval") or {}


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a file of the run; empty if there is none."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _free_memory() -> None:
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()

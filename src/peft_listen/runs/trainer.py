"""A `Trainer` that mixes tasks, scores generated answers in evaluations, and saves only what is trained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler
from transformers import Trainer, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from ..evaluation.answer_scores import row_scores
from ..evaluation.collated_answers import answer_batches
from ..files import write_errors
from ..metrics import MetricChoice, mean_quality, score_predictions
from ..metrics.scoring import compared_answers
from ..models.audio_listen import AudioListenForCausalLM
from ..training import TaskMixture
from .building import save_trained_base
from .checkpoints import is_whole
from .sharding import load_trained_state, trained_state_dict


class RunTrainer(Trainer):
    """
    Trainer of a run.

    An evaluation has, besides `eval_loss`, `eval_<task>_<metric>` for each value of the metrics of each task, and
    `eval_mean_quality`, from 0 to 1, for the generated answers to `scored_rows`. `metric_for_best_model` may be any of them.

    Args:
        mixture ([`TaskMixture`]): order of the training rows.
        scored_rows (`Sequence[Mapping]`): rows of the evaluation that are answered; may be empty.
        metrics (`Mapping[str, Sequence[MetricChoice]]`): see [`~peft_listen.metrics.score_predictions`].
        generate_kwargs (`Mapping[str, Any]`): arguments of `generate`.
        make_optimizer (`Callable`): creates the optimizer of a model.
        args, kwargs (`Any`): of [`~transformers.Trainer`]; the collator is an [`AudioListenCollator`].
    """

    def __init__(
        self,
        *args: Any,
        mixture: TaskMixture,
        scored_rows: Sequence[Mapping[str, Any]],
        metrics: Mapping[str, Sequence[MetricChoice]],
        generate_kwargs: Mapping[str, Any],
        make_optimizer: Callable[[Any], torch.optim.Optimizer],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mixture = mixture
        self.scored_rows = scored_rows
        self.metrics = metrics
        self.generate_kwargs = generate_kwargs
        self.make_optimizer = make_optimizer

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        # `Trainer` accepts no `optimizers` under FSDP.
        if self.optimizer is None:
            self.optimizer = self.make_optimizer(self.model if model is None else model)
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.is_fsdp_enabled:  # `Trainer` would gather the frozen parts too
            self._save(output_dir, state_dict=trained_state_dict(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def restore(self, state: TrainerState, checkpoint: str) -> None:
        """
        Restores the end of a training: the best model, if it is to be kept, or the last one.

        Args:
            state ([`~transformers.TrainerState`]): the state in the last checkpoint.
            checkpoint (`str`): the last checkpoint.

        Raises:
            OSError: if the best checkpoint is not beside the last one, or a checkpoint of FSDP is not whole.
        """
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            # Its folder may have been moved with that of the run.
            best = Path(checkpoint).with_name(Path(state.best_model_checkpoint).name)
            if not is_whole(best):
                raise OSError(
                    f"The best checkpoint, {best}, is missing or not whole. Restore it, or delete {checkpoint} to train from the "
                    "checkpoint before it."
                )
            state.best_model_checkpoint = str(best)
            self._load_best_model()
        elif self.is_fsdp_enabled:
            # The model is sharded when the training begins, so that it is still whole, in every process.
            load_trained_state(self.model, Path(checkpoint))
        else:
            self._load_from_checkpoint(checkpoint)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        return self.mixture

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        if self.scored_rows and output.metrics is not None:
            prefix = kwargs.get("metric_key_prefix", "eval")
            # Before the trainer passes them to the callbacks, among them early stopping.
            output.metrics.update({f"{prefix}_{name}": value for name, value in self._scores().items()})
        return output

    def _scores(self) -> dict[str, float]:
        index, count = self.args.process_index, self.args.world_size
        numbers = range(len(self.scored_rows))[index::count]
        collator: Any = self.data_collator
        chosen = {
            task: choices for task, choices in self.metrics.items() if any(r["task"] == task for r in self.scored_rows)
        }
        model = self.accelerator.unwrap_model(self.model)
        rows, batch_size = [self.scored_rows[number] for number in numbers], self.args.per_device_eval_batch_size
        answers = answer_batches(model, collator, rows, batch_size, **self.generate_kwargs)
        compared = row_scores(model, collator, rows, compared_answers(self.scored_rows, chosen), batch_size)
        found = list(zip(numbers, answers, compared, strict=True))
        if count > 1:
            found = gather_object(found)
        results = {number: {"generated": answer, "score": score} for number, answer, score in found}
        predictions = [{**row, **results[number]} for number, row in enumerate(self.scored_rows)]
        scores = score_predictions(predictions, chosen)
        values = {
            f"{task}_{name}": value
            for task, score in scores.items()
            for name, value in score.values.items()
            if name == score.metric or not isinstance(value, int)  # no counts, such as that of substitutions
        }
        return {**values, "mean_quality": mean_quality(scores)}

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir or "", f"checkpoint-{self.state.global_step}")
        try:
            with write_errors(folder):
                super()._save_checkpoint(*args, **kwargs)
        except OSError as error:
            if self.args.should_save and not is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise OSError(
                f"The checkpoint of step {self.state.global_step} is not saved. {error}\nWhen this is mended, run the same "
                "command again: it continues from the last checkpoint."
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, AudioListenForCausalLM):  # an adapter saves itself alone
            return super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = output_dir or self.args.output_dir or ""
            os.makedirs(folder, exist_ok=True)
            save_trained_base(model, folder)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, AudioListenForCausalLM):
            return super()._issue_warnings_after_load(load_result)
        # The frozen parts are not in the checkpoint.
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if missing := sorted(trained.intersection(load_result.missing_keys)):
            raise ValueError(f"The checkpoint lacks {', '.join(missing)}. Delete it, and run the command again.")

    def _load_best_model(self) -> None:
        if len(getattr(self.model, "peft_config", {})) > 1:
            # `Trainer` would load the first of the adapters only.
            self._load_from_checkpoint(self.state.best_model_checkpoint or "")
        else:
            super()._load_best_model()

"""What a Trainer has to tell the adapter, and what the adapter has to tell the user."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..tuners.listen import ListenModel, SelectionRecord
from ..tuners.listen.running_statistics import gather_rows
from .checks import check_trainer_arguments
from .collapse import MIN_ROWS, collapse_measures, collapse_warnings
from .collator import AudioListenCollator


# The measures of collapse are taken over so many rows.
_RECENT_ROWS = 64


class ListenCallback(TrainerCallback):
    """
    Connects a LISTEN adapter to a `Trainer` or `SFTTrainer`.

    - Tells the adapter the optimizer step, from which the stochastic prompt length follows, so that a resumed run draws
      what the uninterrupted one would have drawn.
    - Warns of trainer options that drop or distort the key loss.
    - Starts the keys at real queries after a few steps, and again later if asked, since the projector that makes the
      queries moves (ours).
    - Logs `key_loss`, `prompt_length`, `live_prompts` (how many of the pool were chosen since the last log) and the
      measures of collapse (`query_cosine`, `key_cosine`, `top_prompt_share`), and warns once of each that has gone
      beyond the threshold. They are in `trainer.state.log_history` and on the progress bar. Integrations given by `report_to` run before other callbacks; for them, put this one first:
      `trainer.callback_handler.callbacks.insert(0, ListenCallback())` in place of `callbacks=[...]`.

    While keys are still to be started, the queries are saved in the Trainer's checkpoints
    (`listen_queries_<process>.safetensors`), so that a resumed run starts them from the same ones.

    Args:
        init_keys_at_steps (`Sequence[int]`, defaults to `()`):
            Optimizer steps, from 1, before which the keys are set to the centres of a k-means clustering of the queries
            of the last `num_queries` rows. E.g. `(8, 64)`.
        num_queries (`int`, defaults to 2048):
            Queries remembered for that, per process.
        collapse_threshold (`float`, defaults to 0.95):
            Value of a measure of collapse above which the warning is given; see
            [`~peft_listen.training.collapse.collapse_measures`]. Above 1 never.

    Raises:
        ValueError: for steps or a number of queries below 1; when training begins, for a model without an adapter, and
            for an [`AudioListenCollator`] with `supervised_logits_only=True` under `SFTTrainer`.
    """

    def __init__(
        self, init_keys_at_steps: Sequence[int] = (), num_queries: int = 2048, collapse_threshold: float = 0.95
    ) -> None:
        if any(step < 1 for step in init_keys_at_steps):
            raise ValueError(
                f"`init_keys_at_steps` must hold steps of at least 1, got {tuple(init_keys_at_steps)}: before the first "
                "step there are no queries to start the keys from."
            )
        if num_queries < 1:
            raise ValueError(f"`num_queries` must be at least 1, got {num_queries}.")
        self.init_keys_at_steps = frozenset(init_keys_at_steps)
        self.collapse_threshold = collapse_threshold
        self._queries: deque[torch.Tensor] = deque(maxlen=num_queries)
        self._best: deque[int] = deque(maxlen=_RECENT_ROWS)
        self._chosen: set[int] = set()
        self._prompt_length = 0
        self._tuner: ListenModel | None = None
        self._warned: set[str] = set()
        self._recording = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tuner = find_tuner(kwargs["model"])
        check_trainer_arguments(args)
        collator = getattr(kwargs.get("train_dataloader"), "collate_fn", None)
        if hasattr(args, "packing") and getattr(collator, "supervised_logits_only", False):
            raise ValueError(
                "`SFTTrainer` has a head of its own that leaves out unsupervised positions, and takes no batches in which "
                "they are left out already. Use `AudioListenCollator(processor, supervised_logits_only=False)`."
            )
        if isinstance(collator, AudioListenCollator):
            collator.check_generation(kwargs["model"])
        self._queries.clear()
        self._best.clear()
        self._chosen.clear()
        self._recording.close()  # a run before this one may have ended with an exception
        self._recording.enter_context(self._tuner.layer.recording(self._record))
        if state.global_step > 0 and self._starts_keys_from(state.global_step):
            self._restore_queries(_queries_file(args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._recording.close()
        self._connected.begin_step(None)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        tuner = self._connected
        tuner.begin_step(state.global_step)
        if state.global_step in self.init_keys_at_steps and self._queries:
            tuner.init_keys_from(gather_rows(torch.stack(list(self._queries))))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Here and not at the next step's beginning: the query mean must have seen this step's queries when a checkpoint
        # is written.
        self._connected.begin_step(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        path = _queries_file(args, state)
        if self._queries and self._starts_keys_from(state.global_step) and path.parent.is_dir():
            temporary = path.with_suffix(".tmp")
            save_file({"queries": torch.stack(list(self._queries))}, temporary)
            os.replace(temporary, path)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        tuner = self._tuner
        if tuner is None or logs is None or "loss" not in logs or not self._queries:
            return
        extra: dict[str, Any] = {"prompt_length": self._prompt_length, "live_prompts": len(self._chosen)}
        if tuner.key_loss is not None:
            extra["key_loss"] = round(float(tuner.key_loss.detach()), 4)
        pool = tuner.layer.pool_of()
        queries = pool.normalize_query(torch.stack(list(self._queries)[-_RECENT_ROWS:]))
        keys = pool.keys.detach().float()
        measures = collapse_measures(queries, keys, torch.tensor(list(self._best), dtype=torch.long))
        extra.update(measures)
        logs.update(extra)
        if state.log_history:
            state.log_history[-1].update(extra)
        self._chosen.clear()
        if len(self._queries) >= MIN_ROWS:
            self._warn_of_collapse(measures)

    @property
    def _connected(self) -> ListenModel:
        if self._tuner is None:
            raise RuntimeError("`ListenCallback` was called outside a training run.")
        return self._tuner

    def _starts_keys_from(self, global_step: int) -> bool:
        return any(step >= global_step for step in self.init_keys_at_steps)

    def _restore_queries(self, path: Path) -> None:
        if path.is_file():
            self._queries.extend(load_file(path)["queries"])
            return
        warnings.warn(
            f"{path} is missing, so the keys will be started from the queries since the resume alone, and not as in a "
            "run that was not interrupted. Resume from a checkpoint in the trainer's own `output_dir`, with as many "
            "processes as before.",
            UserWarning,
            stacklevel=2,
        )

    def _record(self, record: SelectionRecord) -> None:
        if not self._connected.layer.pool_of().is_training_step:
            return
        self._queries.extend(record.query.float().cpu())
        self._best.extend(record.indices[:, 0].tolist())
        self._chosen.update(record.indices.unique().tolist())
        self._prompt_length = record.indices.shape[1]

    def _warn_of_collapse(self, measures: dict[str, float]) -> None:
        for measure, message in collapse_warnings(measures, self.collapse_threshold).items():
            if measure not in self._warned:
                self._warned.add(measure)
                warnings.warn(message, UserWarning, stacklevel=2)


def find_tuner(model: Any) -> ListenModel:
    """
    The [`ListenModel`] inside whatever a trainer wraps around it.

    Raises:
        ValueError: if there is none.
    """
    for module in model.modules():
        if isinstance(module, ListenModel):
            return module
    raise ValueError(
        f"There is no LISTEN adapter in {type(model).__name__}. Make one with `get_peft_model(model, ListenConfig())`."
    )


def _queries_file(args: TrainingArguments, state: TrainerState) -> Path:
    checkpoint = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    return checkpoint / f"listen_queries_{args.process_index}.safetensors"

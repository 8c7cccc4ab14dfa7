"""Trainer callback: optimizer steps, initialization of the keys, logging, and warnings about collapse."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from ..tuners.listen import ListenModel, PromptPool, SelectionRecord
from ..tuners.listen.running_statistics import gather_rows
from .checks import check_trainer_arguments
from .collapse import MIN_ROWS, collapse_warnings
from .collator import AudioListenCollator
from .log_order import LogValuesCallback
from .measured_rows import MeasuredRows
from .unread_key_loss import UnreadKeyLoss


class ListenCallback(LogValuesCallback):
    """
    Connects a LiSTEN adapter to a `Trainer` or to one of TRL's.

    - Passes the optimizer step to the adapter, which determines the stochastic prompt length. A resumed run draws the
      same prompt lengths as an uninterrupted one.
    - Warns about trainer options that drop or distort the key loss.
    - Trains the keys by the key loss under trainers that do not read `outputs.loss`, such as TRL's `DPOTrainer` and
      `GRPOTrainer`; its gradient is not clipped. Not under FSDP, DeepSpeed, or float16 without clipping, where a warning says
      that the keys keep their values.
    - Initializes the keys from real queries after a few steps, and again later if requested, since the queries change
      while the projector is trained (ours).
    - Logs `key_loss`, `prompt_length` and `live_prompts` (number of prompts of the pool that were selected, in training,
      since the last log).
    - Logs the measures of collapse (`query_cosine`, `key_cosine`, `top_prompt_share`), and warns once about each that is
      above the threshold. They are computed at the time of the log for 32 rows of the training data, evenly spaced, or
      for all if there are fewer, in evaluation mode, as those of the report: for the same rows, both are equal. The
      language model does not run for them. An iterable dataset is measured on its first rows. Under FSDP and DeepSpeed
      ZeRO-3, whose parameters are only complete during a forward pass of the whole model, they are left out.
    - The logged values are in `trainer.state.log_history`, on the progress bar, and in every integration that `report_to`
      names, wherever this callback stands among the others.

    While an initialization of the keys is pending, the recent queries of all processes are stored in a buffer of the
    adapter and therefore in every checkpoint. A resumed run initializes the keys from the same queries.

    Args:
        init_keys_at_steps (`Sequence[int]`, defaults to `()`):
            Optimizer steps, from 1, before which the keys are set to the centers of a k-means clustering of the queries
            of the last `num_queries` rows. E.g. `(8, 64)`.
        num_queries (`int`, defaults to 2048):
            Number of queries stored for the initialization, over all processes.
        collapse_threshold (`float`, defaults to 0.95):
            Value of a measure of collapse above which a warning is given; see
            [`~peft_listen.analysis.collapse.collapse_measures`]. With a value above 1, there are no warnings.

    Raises:
        ValueError: for steps or a number of queries below 1; when training begins, for a model without an adapter, and
            for an [`AudioListenCollator`] with `supervised_logits_only=True` under `SFTTrainer`.
    """

    def __init__(
        self, init_keys_at_steps: Sequence[int] = (), num_queries: int = 2048, collapse_threshold: float = 0.95
    ) -> None:
        if any(step < 1 for step in init_keys_at_steps):
            raise ValueError(
                f"`init_keys_at_steps` must contain steps of at least 1, got {tuple(init_keys_at_steps)}: before the first "
                "step there are no queries to initialize the keys from."
            )
        if num_queries < 1:
            raise ValueError(f"`num_queries` must be at least 1, got {num_queries}.")
        super().__init__()
        self.init_keys_at_steps = frozenset(init_keys_at_steps)
        self.num_queries = num_queries
        self.collapse_threshold = collapse_threshold
        self._step_queries: list[torch.Tensor] = []  # of the running step, in this process
        self._measured_rows: MeasuredRows | None = None
        self._unread_key_loss: UnreadKeyLoss | None = None
        self._is_selected: torch.Tensor | None = None  # [pool_size], since the last log
        self._prompt_length = 0
        self._tuner: ListenModel | None = None
        self._warned: set[str] = set()
        self._recording = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tuner = find_tuner(kwargs["model"])
        check_trainer_arguments(args, config=self._pool.config)
        collator = getattr(kwargs.get("train_dataloader"), "collate_fn", None)
        if hasattr(args, "packing") and getattr(collator, "supervised_logits_only", False):
            raise ValueError(
                "The head of `SFTTrainer` skips unsupervised positions itself, and does not support batches without them. "
                "Use `AudioListenCollator(processor, supervised_logits_only=False)`."
            )
        if isinstance(collator, AudioListenCollator):
            collator.check_generation(kwargs["model"])
        self._step_queries.clear()
        self._is_selected = None
        self._recording.close()  # a previous run may have ended with an exception
        self._recording.enter_context(self._tuner.layer.recording(self._record))
        self._unread_key_loss = None
        if _gradients_are_complete(args):
            self._unread_key_loss = UnreadKeyLoss(self._pool)
            self._recording.enter_context(self._tuner.layer.receiving_key_loss(self._unread_key_loss.add))
        self._measured_rows = None
        if not _parameters_are_sharded():
            self._measured_rows = MeasuredRows(self._tuner, kwargs.get("train_dataloader"))
            self._recording.callback(self._measured_rows.close)
        self._resume_queries(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._recording.close()
        self._pool.begin_step(None)
        self._pool.forget_queries()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        pool = self._pool
        pool.begin_step(state.global_step)
        if state.global_step in self.init_keys_at_steps and pool.recent_queries is not None:
            pool.init_keys_from(pool.recent_queries)
            if not self._is_pending(state.global_step + 1):
                pool.forget_queries()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._unread_key_loss is not None:
            self._unread_key_loss.add_to_gradient()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Here and not at the beginning of the next step: a checkpoint is written in between, and must contain the
        # queries of this step.
        pool = self._pool
        queries, self._step_queries = self._step_queries, []
        if self._is_pending(state.global_step):
            rows = torch.cat(queries) if queries else pool.query_mean.new_zeros(0, len(pool.query_mean))
            pool.remember_queries(gather_rows(rows), self.num_queries)
        pool.reduce_queries()  # for wrappers other than DistributedDataParallel and FSDP2
        pool.begin_step(state.global_step)

    def values_to_log(self, args: TrainingArguments, state: TrainerState, logs: dict[str, Any]) -> dict[str, Any]:
        tuner = self._tuner
        if tuner is None or "loss" not in logs:
            return {}
        pool = self._pool
        pool.warn_of_skipped_rows()
        selected = 0 if self._is_selected is None else int(self._is_selected.sum())
        values: dict[str, Any] = {"prompt_length": self._prompt_length, "live_prompts": selected}
        if tuner.key_loss is not None:
            values["key_loss"] = round(float(tuner.key_loss.detach()), 4)
        measures = {} if self._measured_rows is None else self._measured_rows.measures(_autocast_dtype(args))
        values.update(measures)
        self._is_selected = None
        if self._measured_rows is not None and measures and len(self._measured_rows) >= MIN_ROWS:
            self._warn_of_collapse(measures)
        return values

    @property
    def _pool(self) -> PromptPool:
        if self._tuner is None:
            raise RuntimeError("`ListenCallback` was called outside a training run.")
        return self._tuner.layer.pool_of()

    def _is_pending(self, global_step: int) -> bool:
        """Whether the keys will be initialized at this step or later."""
        return any(step >= global_step for step in self.init_keys_at_steps)

    def _resume_queries(self, state: TrainerState) -> None:
        pool = self._pool
        if state.global_step == 0:
            pool.forget_queries()
        elif pool.recent_queries is None and self._is_pending(state.global_step):
            warnings.warn(
                "The checkpoint contains no queries, so the keys will be initialized only from queries after the resume, "
                "unlike in an uninterrupted run. Resume from a checkpoint that was written with the same "
                "`init_keys_at_steps`.",
                UserWarning,
                stacklevel=2,
            )

    def _record(self, record: SelectionRecord) -> None:
        # The values stay on the device: reading them here would synchronize in every step.
        pool = self._pool
        if not pool.is_training_step:
            return
        self._step_queries.append(record.query.float())
        if self._is_selected is None:
            self._is_selected = torch.zeros(pool.config.pool_size, dtype=torch.bool, device=record.indices.device)
        self._is_selected[record.indices.flatten()] = True
        self._prompt_length = record.indices.shape[1]

    def _warn_of_collapse(self, measures: dict[str, float]) -> None:
        config = {**vars(self._pool.config), "init_keys_at_steps": sorted(self.init_keys_at_steps)}
        for measure, message in collapse_warnings(measures, self.collapse_threshold, config).items():
            if measure not in self._warned:
                self._warned.add(measure)
                warnings.warn(message, UserWarning, stacklevel=2)


def _gradients_are_complete(args: TrainingArguments) -> bool:
    """Whether every process has the whole and unscaled gradient of the keys before the optimizer's step."""
    is_scaled = args.fp16 and not args.max_grad_norm  # clipping divides by the scale
    sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED)
    return not is_scaled and AcceleratorState().distributed_type not in sharded


def _parameters_are_sharded() -> bool:
    distributed_type = AcceleratorState().distributed_type
    return distributed_type == DistributedType.FSDP or is_deepspeed_zero3_enabled()


def find_tuner(model: Any) -> ListenModel:
    """
    Finds the [`ListenModel`] inside the wrappers of a trainer.

    Args:
        model (`nn.Module`): the model of the trainer.

    Raises:
        ValueError: if there is none.
    """
    for module in model.modules():
        if isinstance(module, ListenModel):
            return module
    raise ValueError(
        f"There is no LiSTEN adapter in {type(model).__name__}. Create one with `get_peft_model(model, ListenConfig())`."
    )


def _autocast_dtype(args: TrainingArguments) -> torch.dtype | None:
    """The dtype of the trainer's autocast, which it enters around the forward passes of the training only."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None

"""Configuration of dynamic prompt selection."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

from peft.config import PeftConfig
from peft.utils import PeftType


@dataclass
class ListenConfig(PeftConfig):
    """
    Configuration of a [`ListenModel`]: dynamic prompt selection, LiSTEN (https://arxiv.org/abs/2505.18517).

    A pool of `pool_size` learnable key-value pairs sits before a frozen decoder. For every input the keys that match
    it best are chosen, and their values are prepended as soft prompts. The trainable parameters are exactly
    `2 * pool_size * embedding_size`.

    Fields marked *(ours)* are choices of this library where the paper is silent, or remedies for its collapse.

    Args:
        pool_size (`int`, defaults to 400):
            Number of key-value pairs in the pool, P in the paper.
        selector (`str`, defaults to `"similarity"`):
            Name of a registered selector: `"similarity"`, `"attention"`, `"residual"`, or one that you added with
            [`register_selector`].
        selector_kwargs (`dict`, *optional*):
            Keyword arguments for the selector's constructor.
        prompt_length (`int`, defaults to 10):
            Number of prompts prepended in evaluation and generation, k in the paper.
        stochastic_prompt_length (`bool`, defaults to `True`):
            Draw the number of prompts uniformly from 1 to `max_train_prompt_length`, once per optimizer step. If
            `False`, `prompt_length` prompts are used in training too.
        max_train_prompt_length (`int`, *optional*):
            Upper end of the draw. Defaults to `pool_size`, as in the paper.
        key_loss_weight (`float`, defaults to 0.1):
            Weight of the key loss that pulls the chosen keys towards their queries. At 0 the keys of the similarity
            and residual selectors stay where they began. *(ours: the paper does not give its value)*
        key_loss_reduction (`"mean"` or `"sum"`, defaults to `"mean"`):
            Whether the distances of one row's chosen keys are averaged or summed. The paper sums; with a stochastic
            prompt length the sum varies a hundredfold from step to step, hence `"mean"` *(ours)*.
        detach_query (`bool`, defaults to `True`):
            Stop the key loss' gradient at the query, so that it moves the keys and not the audio encoder. *(ours)*
        center_queries (`bool`, defaults to `True`):
            Subtract a running mean of all training queries from the query before it meets the keys. Raw means of
            embeddings share one large direction, which makes every input choose the same prompts. `False` is the
            paper's plain form. *(ours)*
        query_mean_momentum (`float`, defaults to 0.9):
            Momentum of that running mean over optimizer steps, in [0, 1). The first steps use a cumulative average.
            The mean must keep up with a projector that is being trained: at 0.99 it lagged behind, and the queries
            fell into one direction again. *(ours)*
        init_weights (`bool`, `"vocab"` or `"normal"`, defaults to `True`):
            `True` or `"vocab"`: keys and values start as embeddings of random ordinary tokens. `"normal"`: normally
            distributed with the embeddings' standard deviation. `False`: random and large on purpose, for tests, so
            that prompts visibly act.
        backbone (`str`, *optional*):
            Dotted path of the module that turns `inputs_embeds` into `last_hidden_state`, relative to the model that
            is adapted. Found through `get_decoder()` when not given.
        modules_to_save (`list[str]`, *optional*):
            Further modules to train and to save with the adapter, e.g. `["multi_modal_projector"]`.
        seed (`int`, defaults to 0):
            Seed of the initialisation and of the drawn prompt lengths.

    Raises:
        ValueError: for a value outside its range; the message names the field, the value and what is allowed.
    """

    pool_size: int = field(default=400, metadata={"help": "Number of key-value pairs in the pool."})
    selector: str = field(default="similarity", metadata={"help": "Name of a registered selector."})
    selector_kwargs: Optional[dict[str, Any]] = field(
        default=None, metadata={"help": "Keyword arguments for the selector's constructor."}
    )
    prompt_length: int = field(
        default=10, metadata={"help": "Number of prompts prepended in evaluation and generation."}
    )
    stochastic_prompt_length: bool = field(
        default=True, metadata={"help": "Draw the number of prompts anew for every optimizer step of the training."}
    )
    max_train_prompt_length: Optional[int] = field(
        default=None, metadata={"help": "Largest number of prompts drawn in training; defaults to `pool_size`."}
    )
    key_loss_weight: float = field(default=0.1, metadata={"help": "Weight of the key loss."})
    key_loss_reduction: Literal["mean", "sum"] = field(
        default="mean", metadata={"help": "Whether one row's distances are averaged ('mean') or summed ('sum')."}
    )
    detach_query: bool = field(
        default=True, metadata={"help": "Stop the gradient of the key loss at the query, so that it moves keys only."}
    )
    center_queries: bool = field(
        default=True, metadata={"help": "Subtract the running mean of the training queries before matching."}
    )
    query_mean_momentum: float = field(
        default=0.9, metadata={"help": "Momentum of the running mean of the queries, in [0, 1)."}
    )
    init_weights: Union[bool, Literal["vocab", "normal"]] = field(
        default=True,
        metadata={
            "help": "True or 'vocab': embeddings of random tokens; 'normal': normally distributed at the embeddings' "
            "scale; False: random and large, for tests."
        },
    )
    backbone: Optional[str] = field(
        default=None, metadata={"help": "Dotted path of the decoder; found through `get_decoder()` if not given."}
    )
    modules_to_save: Optional[list[str]] = field(
        default=None, metadata={"help": "Further modules to train and to save with the adapter."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the initialisation and of the drawn prompt lengths."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["LISTEN"]
        if not _is_integer(self.pool_size) or self.pool_size < 1:
            raise ValueError(f"`pool_size` must be an integer of at least 1, got {self.pool_size!r}.")
        for name in ("prompt_length", "max_train_prompt_length"):
            value = getattr(self, name)
            if name == "max_train_prompt_length" and value is None:
                continue
            check_prompt_length(name, value, self.pool_size)
        if not isinstance(self.key_loss_weight, (int, float)) or not 0 <= self.key_loss_weight < math.inf:
            raise ValueError(f"`key_loss_weight` must be a finite number of at least 0, got {self.key_loss_weight!r}.")
        if self.key_loss_reduction not in ("mean", "sum"):
            raise ValueError(f"`key_loss_reduction` must be 'mean' or 'sum', got {self.key_loss_reduction!r}.")
        if not 0 <= self.query_mean_momentum < 1:
            raise ValueError(f"`query_mean_momentum` must be in [0, 1), got {self.query_mean_momentum!r}.")
        if self.init_weights not in (True, False, "vocab", "normal"):
            raise ValueError(f"`init_weights` must be True, False, 'vocab' or 'normal', got {self.init_weights!r}.")
        if not _is_integer(self.seed) or self.seed < 0:
            raise ValueError(f"`seed` must be an integer of at least 0, got {self.seed!r}.")

    @property
    def target_modules(self) -> Optional[str]:
        """The backbone, under the name by which PEFT's injection asks for what is adapted."""
        return self.backbone


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_prompt_length(name: str, value: Any, pool_size: int) -> None:
    """Raises a `ValueError` that names the field and both numbers unless `1 <= value <= pool_size`."""
    if not _is_integer(value) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    if value > pool_size:
        raise ValueError(
            f"`{name}`={value} is more than the pool holds (`pool_size`={pool_size}). "
            f"Choose at most {pool_size}, or a larger pool."
        )

"""Configuration of dynamic prompt selection."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

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
            Name of a registered selector: `"similarity"`, `"attention"`, `"residual"`, those of ours `"hybrid"` and
            `"grouped"`, or one that you added with [`register_selector`].
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
        standardize_queries (`bool`, defaults to `False`):
            Divide the centred query by the running standard deviation of the training queries, dimension by
            dimension: a whitening that needs as many numbers as the mean. *(ours)*
        query_pooling (`"modality_mean"` or `"mean"`, defaults to `"modality_mean"`):
            `"modality_mean"` averages the positions of audio (and of images and video, if the model has them) and those
            of text apart, and takes the mean of both at equal length, so that a long clip or a loud projector does not
            drown the instruction. For text alone it is the plain mean. *(ours)* `"mean"` averages all positions of the
            prompt, as in the paper.
        query_ignored_token_ids (`list[int]`, *optional*):
            Tokens left out of the query: those of the chat template, which are the same in every input; see
            [`~peft_listen.training.chat_template_token_ids`]. *(ours)*
        query_dropout (`float`, defaults to 0.0):
            Share of the prompt's positions, in [0, 1), that are left out of the query at random in training, so that the
            choice learns to do with some of an instruction's words: another wording has only some of them. *(ours, after
            the word dropout of Iyyer et al., 2015)*
        num_shared_prompts (`int`, defaults to 0):
            Prompts that every input gets beside its chosen ones: general knowledge beside the task-specific. They
            are not in the pool, and add `num_shared_prompts * embedding_size` parameters. *(ours)*
        shared_prompt_mode (`"prepend"` or `"add"`, defaults to `"prepend"`):
            `"prepend"` puts the shared prompts before the chosen ones. `"add"` adds the j-th of them to the j-th chosen
            value: the prompt gets no longer, what inputs have in common is learned from all of them, and the values,
            which then start at zero, learn what they differ in. There must be as many as prompts can be chosen. *(ours)*
        usage_balance (`float`, defaults to 0.0):
            Lowers the score of a prompt that is chosen more often than the average of the pool, and raises that of one
            that is chosen less: by this number, in the selector's unit of scores, for a prompt that is chosen twice
            as often as the average. Needs a selector that takes a `bias`, as all built-in ones do. *(ours)*
        reseed_every (`int`, defaults to 0):
            Every so many optimizer steps, prompts that are hardly ever chosen are moved to queries of the step that
            are far from all keys. 0 never does. *(ours)*
        exploration (`float`, defaults to 0.0):
            Scale of random noise on the scores in training, in the selector's unit, so that the pool is chosen from
            widely. Falls linearly to 0 over `exploration_steps`. *(ours)*
        exploration_steps (`int`, defaults to 0):
            Optimizer steps until the choice is sharp. Must be above 0 where `exploration` is.
        paper_form (`bool`, defaults to `False`):
            The paper's plain form: turns every remedy for collapse above off (`center_queries`, `standardize_queries`,
            `query_pooling`, `query_ignored_token_ids`, `query_dropout`, `num_shared_prompts`, `usage_balance`,
            `reseed_every`, `exploration`), and sums the key loss.
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
    selector_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Keyword arguments for the selector's constructor."}
    )
    prompt_length: int = field(
        default=10, metadata={"help": "Number of prompts prepended in evaluation and generation."}
    )
    stochastic_prompt_length: bool = field(
        default=True, metadata={"help": "Draw the number of prompts anew for every optimizer step of the training."}
    )
    max_train_prompt_length: int | None = field(
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
    standardize_queries: bool = field(
        default=False, metadata={"help": "Divide the centred query by the queries' running standard deviation."}
    )
    query_pooling: Literal["mean", "modality_mean"] = field(
        default="modality_mean",
        metadata={"help": "One mean each of audio and text ('modality_mean'), or one over the whole prompt ('mean')."},
    )
    query_ignored_token_ids: list[int] | None = field(
        default=None, metadata={"help": "Tokens left out of the query, such as those of the chat template."}
    )
    query_dropout: float = field(
        default=0.0, metadata={"help": "Share of the positions that are left out of the query at random in training."}
    )
    num_shared_prompts: int = field(
        default=0, metadata={"help": "Number of prompts that every input gets beside its chosen ones."}
    )
    shared_prompt_mode: Literal["prepend", "add"] = field(
        default="prepend",
        metadata={"help": "Whether the shared prompts stand before the chosen ones, or are added to them."},
    )
    usage_balance: float = field(
        default=0.0, metadata={"help": "How much the score of a prompt falls for being chosen twice the average."}
    )
    reseed_every: int = field(
        default=0, metadata={"help": "Optimizer steps between moves of unused prompts to real queries; 0 for never."}
    )
    exploration: float = field(default=0.0, metadata={"help": "Scale of the noise on the scores as training begins."})
    exploration_steps: int = field(default=0, metadata={"help": "Optimizer steps until that noise has gone."})
    paper_form: bool = field(
        default=False, metadata={"help": "The paper's plain form: without any remedy for collapse."}
    )
    init_weights: bool | Literal["vocab", "normal"] = field(
        default=True,
        metadata={
            "help": "True or 'vocab': embeddings of random tokens; 'normal': normally distributed at the embeddings' "
            "scale; False: random and large, for tests."
        },
    )
    backbone: str | None = field(
        default=None, metadata={"help": "Dotted path of the decoder; found through `get_decoder()` if not given."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train and to save with the adapter."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the initialisation and of the drawn prompt lengths."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["LISTEN"]
        if self.paper_form:
            self.__dict__.update(_PAPER_FORM)
        if not is_integer(self.pool_size) or self.pool_size < 1:
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
        if self.standardize_queries and not self.center_queries:
            raise ValueError(
                "`standardize_queries=True` divides what `center_queries` has centred. Set `center_queries=True` too."
            )
        if self.query_pooling not in ("mean", "modality_mean"):
            raise ValueError(f"`query_pooling` must be 'mean' or 'modality_mean', got {self.query_pooling!r}.")
        if self.query_ignored_token_ids is not None:
            if not all(is_integer(token_id) and token_id >= 0 for token_id in self.query_ignored_token_ids):
                raise ValueError(
                    f"`query_ignored_token_ids` must hold token ids, got {self.query_ignored_token_ids!r}."
                )
            self.query_ignored_token_ids = sorted(set(self.query_ignored_token_ids))
        if not isinstance(self.query_dropout, (int, float)) or not 0 <= self.query_dropout < 1:
            raise ValueError(f"`query_dropout` must be in [0, 1), got {self.query_dropout!r}.")
        for name in ("num_shared_prompts", "reseed_every", "exploration_steps"):
            if not is_integer(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be an integer of at least 0, got {getattr(self, name)!r}.")
        if self.shared_prompt_mode not in ("prepend", "add"):
            raise ValueError(f"`shared_prompt_mode` must be 'prepend' or 'add', got {self.shared_prompt_mode!r}.")
        if self.adds_shared_prompts:
            self._check_shared_prompts_reach()
        for name in ("usage_balance", "exploration"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}.")
        if self.exploration > 0 and self.exploration_steps == 0:
            raise ValueError(
                f"`exploration`={self.exploration} never ends with `exploration_steps=0`. Set the number of steps over "
                "which it falls to 0."
            )
        if self.init_weights not in (True, False, "vocab", "normal"):
            raise ValueError(f"`init_weights` must be True, False, 'vocab' or 'normal', got {self.init_weights!r}.")
        if not is_integer(self.seed) or self.seed < 0:
            raise ValueError(f"`seed` must be an integer of at least 0, got {self.seed!r}.")

    def _check_shared_prompts_reach(self) -> None:
        longest = {"prompt_length": self.prompt_length}
        if self.stochastic_prompt_length:
            longest["max_train_prompt_length"] = self.max_train_prompt_length or self.pool_size
        for name, value in longest.items():
            if value > self.num_shared_prompts:
                raise ValueError(
                    f"`num_shared_prompts`={self.num_shared_prompts} are too few to be added to `{name}`={value} chosen "
                    f"ones. Set `num_shared_prompts={value}`, or a smaller `{name}`."
                )

    @property
    def adds_shared_prompts(self) -> bool:
        """Whether shared prompts are added to the chosen ones."""
        return self.num_shared_prompts > 0 and self.shared_prompt_mode == "add"

    @property
    def target_modules(self) -> str | None:
        """The backbone, under the name by which PEFT's injection asks for what is adapted."""
        return self.backbone


_PAPER_FORM: dict[str, Any] = {
    "center_queries": False,
    "standardize_queries": False,
    "query_pooling": "mean",
    "query_ignored_token_ids": None,
    "query_dropout": 0.0,
    "num_shared_prompts": 0,
    "usage_balance": 0.0,
    "reseed_every": 0,
    "exploration": 0.0,
    "key_loss_reduction": "sum",
}


def is_integer(value: Any) -> bool:
    """Whether a setting is an integer, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_prompt_length(name: str, value: Any, pool_size: int) -> None:
    """Raises a `ValueError` that names the field and both numbers unless `1 <= value <= pool_size`."""
    if not is_integer(value) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    if value > pool_size:
        raise ValueError(
            f"`{name}`={value} is more than the pool holds (`pool_size`={pool_size}). "
            f"Choose at most {pool_size}, or a larger pool."
        )

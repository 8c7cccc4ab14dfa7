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

    A pool of `pool_size` learnable key-value pairs is added to a frozen decoder. For every input, the best-matching keys
    are selected, and their values are prepended as soft prompts. The trainable parameters are exactly
    `(2 * pool_size + num_shared_prompts) * embedding_size`, without `value_layers`.

    The defaults are a form that learns in few steps: a fixed number of prompts, and shared prompts that are added to the
    selected ones. Fields marked *(ours)* are choices of this library where the paper gives no details, or remedies for
    collapse.
    docs/method.md lists their measured effects. [`ListenConfig.paper`] gives the form of the paper.

    Args:
        pool_size (`int`, defaults to 400):
            Number of key-value pairs in the pool, P in the paper.
        selector (`str`, defaults to `"similarity"`):
            Name of a registered selector: `"similarity"`, `"attention"`, `"residual"`, the additional `"hybrid"` and
            `"grouped"`, or one that you added with [`register_selector`].
        selector_kwargs (`dict`, *optional*):
            Keyword arguments for the selector's constructor.
        prompt_length (`int`, defaults to 10):
            Number of prompts prepended in evaluation and generation, k in the paper.
        stochastic_prompt_length (`bool`, *optional*):
            Draw the number of prompts uniformly from 1 to `max_train_prompt_length`, once per optimizer step, so that
            shorter prompts work at inference too. If `False`, training uses `prompt_length` prompts as well. Defaults to
            `True` if `max_train_prompt_length` is given, and to `False` otherwise. The paper draws.
        max_train_prompt_length (`int`, *optional*):
            Largest number of prompts in training. Defaults to twice `prompt_length` (at most `pool_size`) if they are
            drawn. If they are not, it is `prompt_length`, whatever is given. In the paper it is `pool_size`.
        key_loss_weight (`float`, defaults to 0.1):
            Weight of the key loss, which pulls the selected keys toward their queries. At 0, the keys of the
            similarity, residual and grouped selectors keep their initial values. *(ours: the paper does not give its
            value)*
        key_loss_reduction (`"mean"` or `"sum"`, defaults to `"mean"`):
            Whether the distances of one row's selected keys are averaged or summed. The paper uses the sum. With a
            stochastic prompt length, the sum varies a hundredfold between steps, so the default is `"mean"` *(ours)*.
        center_queries (`bool`, defaults to `True`):
            Subtract a running mean of all training queries from the query before it is compared with the keys. Raw means
            of embeddings share one large direction, which makes every input select the same prompts. `False` is the
            paper's form. *(ours)*
        query_mean_momentum (`float`, defaults to 0.9):
            Momentum of that running mean over optimizer steps, in [0, 1). The first steps use a cumulative average.
            Larger values lag behind a projector that is being trained. *(ours)*
        standardize_queries (`bool`, defaults to `False`):
            Divide the centered query by the running standard deviation of the training queries, per dimension. *(ours)*
        query_pooling (`"modality_mean"` or `"mean"`, defaults to `"modality_mean"`):
            `"modality_mean"` averages the positions of audio (and of images and video, if the model has them) and those
            of text separately, and takes the mean of both at equal norm; a long clip or a projector with large outputs
            then does not dominate the instruction. For text alone it is the plain mean. *(ours)* `"mean"` averages all
            positions of the prompt, as in the paper.
        query_ignored_token_ids (`list[int]`, *optional*):
            Tokens excluded from the query: those of the chat template, which are the same in every input; see
            [`~peft_listen.training.chat_template_token_ids`]. *(ours)*
        query_layer (`int`, defaults to 0):
            Number of layers of the frozen decoder that the text of the query has passed, in a forward pass of the text alone,
            without audio and prompts. At 0, it is the mean of the embeddings. A running mean is subtracted from the text half
            and the audio half each, both are scaled to unit length, and added. Needs `query_pooling="modality_mean"`.
            *(ours)*
        query_text (`"mean"` or `"last"`, defaults to `"mean"`):
            Whether the text half is the mean over the text's positions, or its last position. `"last"` needs a
            `query_layer`. *(ours)*
        query_audio_weight (`float`, defaults to 1.0):
            Factor of the audio half, with a `query_layer`. At 0, the text alone is the query. *(ours)*
        num_shared_prompts (`int`, *optional*):
            Number of prompts that every input gets in addition to its selected ones. They are not in the pool, and add
            `num_shared_prompts * embedding_size` parameters. Defaults to the largest number of selected prompts if they
            are added to these, and to 0 if they are prepended. The paper has none. *(ours)*
        shared_prompt_mode (`"add"` or `"prepend"`, defaults to `"add"`):
            `"add"` adds the j-th shared prompt to the j-th selected value: the prompt keeps its length, the shared
            prompts learn what inputs have in common, and the values, which are then initialized with zeros, learn the
            differences. Needs at least as many shared prompts as prompts can be selected. `"prepend"` puts the shared
            prompts before the selected ones. *(ours)*
        value_layers (`list[int]`, *optional*):
            Decoder layers, numbered from 0, at whose inputs the prompts get further trained vectors: one for each value of
            the pool and, where shared prompts are added, one for each of these. They are initially zero, follow the
            selection of the values, and are scaled to the hidden states of the layer. Adds `len(value_layers) * (pool_size
            + num_shared_prompts) * hidden_size` parameters, without `num_shared_prompts` where shared prompts are
            prepended. *(ours, after deep prompt tuning, https://arxiv.org/abs/2110.07602)*
        init_weights (`bool`, `"vocab"` or `"normal"`, defaults to `True`):
            `True` or `"vocab"`: keys and values are initialized with embeddings of random ordinary tokens. `"normal"`:
            normally distributed with the standard deviation of the embeddings. `False`: random and deliberately large,
            for tests in which the prompts must have a visible effect.
        backbone (`str`, *optional*):
            Dotted path of the module that maps `inputs_embeds` to `last_hidden_state`, relative to the adapted model.
            If not given, it is found by `get_decoder()`.
        modules_to_save (`list[str]`, *optional*):
            Further modules to train and to save with the adapter, e.g. `["multi_modal_projector"]`.
        seed (`int`, defaults to 0):
            Seed of the initialization and of the drawn prompt lengths.

    Raises:
        ValueError: for a value outside its range; the message names the field, the value and the allowed values. Also
            for a field of an earlier version that was removed, unless it is switched off.
    """

    pool_size: int = field(default=400, metadata={"help": "Number of key-value pairs in the pool."})
    selector: str = field(default="similarity", metadata={"help": "Name of a registered selector."})
    selector_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Keyword arguments for the selector's constructor."}
    )
    prompt_length: int = field(
        default=10, metadata={"help": "Number of prompts prepended in evaluation and generation."}
    )
    # `None` is replaced in `__post_init__`, so these fields always have a value.
    stochastic_prompt_length: bool = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Draw the number of prompts for every optimizer step of the training; defaults to whether "
            "`max_train_prompt_length` is given."
        },
    )
    max_train_prompt_length: int = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Largest number of prompts in training; defaults to `prompt_length`, or twice as many if drawn."
        },
    )
    key_loss_weight: float = field(default=0.1, metadata={"help": "Weight of the key loss."})
    key_loss_reduction: Literal["mean", "sum"] = field(
        default="mean", metadata={"help": "Whether one row's distances are averaged ('mean') or summed ('sum')."}
    )
    center_queries: bool = field(
        default=True, metadata={"help": "Subtract the running mean of the training queries before the comparison."}
    )
    query_mean_momentum: float = field(
        default=0.9, metadata={"help": "Momentum of the running mean of the queries, in [0, 1)."}
    )
    standardize_queries: bool = field(
        default=False, metadata={"help": "Divide the centered query by the queries' running standard deviation."}
    )
    query_pooling: Literal["mean", "modality_mean"] = field(
        default="modality_mean",
        metadata={
            "help": "Separate means of audio and text ('modality_mean'), or one over the whole prompt ('mean')."
        },
    )
    query_ignored_token_ids: list[int] | None = field(
        default=None, metadata={"help": "Tokens excluded from the query, such as those of the chat template."}
    )
    query_layer: int = field(
        default=0, metadata={"help": "Number of decoder layers that the text of the query has passed; 0 for none."}
    )
    query_text: Literal["mean", "last"] = field(
        default="mean", metadata={"help": "Mean over the text's positions, or its last position, after these layers."}
    )
    query_audio_weight: float = field(
        default=1.0, metadata={"help": "Factor of the audio in a query whose text has passed layers."}
    )
    num_shared_prompts: int = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Number of prompts that every input gets in addition to its selected ones; defaults to the largest "
            "number of these if the shared prompts are added to them, and to 0 otherwise."
        },
    )
    shared_prompt_mode: Literal["prepend", "add"] = field(
        default="add",
        metadata={"help": "Whether the shared prompts are added to the selected ones, or put before them."},
    )
    value_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Decoder layers, from 0, at whose inputs the prompts get further trained vectors."},
    )
    init_weights: bool | Literal["vocab", "normal"] = field(
        default=True,
        metadata={
            "help": "True or 'vocab': embeddings of random tokens; 'normal': normally distributed at the embeddings' "
            "scale; False: random and large, for tests."
        },
    )
    backbone: str | None = field(
        default=None, metadata={"help": "Dotted path of the decoder; found by `get_decoder()` if not given."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train and to save with the adapter."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the initialization and of the drawn prompt lengths."})

    # Without annotations, so that they are not fields.
    _is_saved = False
    _without_value = frozenset[str]()

    def __new__(cls, *args: Any, **kwargs: Any) -> ListenConfig:
        # Checked here because all of PEFT's ways of loading a configuration call the constructor. PEFT ignores removed
        # fields with a warning, which is correct for fields that are switched off.
        for name, (off, remedy) in _REMOVED_FIELDS.items():
            if name in kwargs and kwargs[name] != off:
                raise ValueError(
                    f"`{name}`={kwargs[name]!r} is no longer supported. {remedy} To load an adapter that was saved "
                    f"with it, set `{name}` to {off!r} in its `adapter_config.json`."
                )
        config = super().__new__(cls)
        # PEFT writes its version into every configuration that it saves. Each has all fields with their values, so a
        # field without a value is from a version in which the default was another one, or which did not have the field.
        # In a file `peft_type` is a plain string; the fields of a configuration in memory, which `to_dict` and
        # `dataclasses.replace` pass, contain the member of the enumeration.
        config._is_saved = "peft_version" in kwargs and type(kwargs.get("peft_type")) is str
        config._without_value = frozenset(name for name in _FORMER_DEFAULTS if kwargs.get(name) is None)
        return config

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["LISTEN"]
        if self._is_saved:
            for name in self._without_value:
                setattr(self, name, _FORMER_DEFAULTS[name])
        if self.stochastic_prompt_length is None:
            self.stochastic_prompt_length = self.max_train_prompt_length is not None
        self._check_types()
        if not is_integer(self.pool_size) or self.pool_size < 1:
            raise ValueError(f"`pool_size` must be an integer of at least 1, got {self.pool_size!r}.")
        check_prompt_length("prompt_length", self.prompt_length, self.pool_size)
        if self.max_train_prompt_length is None:
            drawn = self.pool_size if self._is_saved else min(2 * self.prompt_length, self.pool_size)
            self.max_train_prompt_length = drawn if self.stochastic_prompt_length else self.prompt_length
        check_prompt_length("max_train_prompt_length", self.max_train_prompt_length, self.pool_size)
        # In a saved configuration it is the number of the training, and `set_prompt_length` may have set another one since.
        if not self.stochastic_prompt_length and not self._is_saved:
            self.max_train_prompt_length = self.prompt_length
        if not is_number(self.key_loss_weight) or not 0 <= self.key_loss_weight < math.inf:
            raise ValueError(f"`key_loss_weight` must be a finite number of at least 0, got {self.key_loss_weight!r}.")
        if self.key_loss_reduction not in ("mean", "sum"):
            raise ValueError(f"`key_loss_reduction` must be 'mean' or 'sum', got {self.key_loss_reduction!r}.")
        if not is_number(self.query_mean_momentum) or not 0 <= self.query_mean_momentum < 1:
            raise ValueError(f"`query_mean_momentum` must be a number in [0, 1), got {self.query_mean_momentum!r}.")
        if self.standardize_queries and not self.center_queries:
            raise ValueError("`standardize_queries=True` divides the centered query. Set `center_queries=True` too.")
        if self.query_pooling not in ("mean", "modality_mean"):
            raise ValueError(f"`query_pooling` must be 'mean' or 'modality_mean', got {self.query_pooling!r}.")
        self._check_query_layer()
        if self.query_ignored_token_ids is not None:
            self.query_ignored_token_ids = sorted(set(self.query_ignored_token_ids))
        if self.shared_prompt_mode not in ("prepend", "add"):
            raise ValueError(f"`shared_prompt_mode` must be 'prepend' or 'add', got {self.shared_prompt_mode!r}.")
        if self.num_shared_prompts is None:
            longest = max(self.prompt_length, self._longest_in_training)
            self.num_shared_prompts = longest if self.shared_prompt_mode == "add" else 0
        if not is_integer(self.num_shared_prompts) or self.num_shared_prompts < 0:
            raise ValueError(
                f"`num_shared_prompts` must be an integer of at least 0, got {self.num_shared_prompts!r}."
            )
        # After training, `set_prompt_length` may have set more prompts than there are shared ones.
        if not self._is_saved:
            self.check_enough_shared_prompts()
        if self.value_layers is not None:
            self.value_layers = sorted(set(self.value_layers)) or None
        if self.init_weights not in (True, False, "vocab", "normal"):
            raise ValueError(f"`init_weights` must be True, False, 'vocab' or 'normal', got {self.init_weights!r}.")
        if not is_integer(self.seed) or self.seed < 0:
            raise ValueError(f"`seed` must be an integer of at least 0, got {self.seed!r}.")

    @classmethod
    def paper(cls, **overrides: Any) -> ListenConfig:
        """
        Creates the form of the paper: the number of prompts in training is drawn from 1 to `pool_size`, there are no
        shared prompts, the query is a plain mean, the key loss is summed, and all remedies for collapse are off.

        Args:
            overrides: other fields of [`ListenConfig`], e.g. `prompt_length=160`.

        Returns:
            [`ListenConfig`]

        Raises:
            ValueError: for a value outside its range, as in the constructor.

        ```python
        >>> from peft_listen import ListenConfig
        >>> config = ListenConfig.paper(selector="residual")
        >>> config.center_queries, config.query_pooling, config.key_loss_reduction
        (False, 'mean', 'sum')

        ```
        """
        form = {**_PAPER_FORM, **overrides}
        if form["stochastic_prompt_length"]:
            form.setdefault("max_train_prompt_length", form.get("pool_size", cls.pool_size))
        return cls(**form)

    def _check_types(self) -> None:
        # A configuration may come from a file, where type hints have no effect.
        for name in ("stochastic_prompt_length", "center_queries", "standardize_queries"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        if not isinstance(self.selector, str):
            raise ValueError(f"`selector` must be the name of a registered selector, got {self.selector!r}.")
        if self.selector_kwargs is not None and not (
            isinstance(self.selector_kwargs, dict) and all(isinstance(name, str) for name in self.selector_kwargs)
        ):
            raise ValueError(
                f"`selector_kwargs` must be a dictionary of keyword arguments, got {self.selector_kwargs!r}."
            )
        if self.backbone is not None and not isinstance(self.backbone, str):
            raise ValueError(f"`backbone` must be the dotted path of a module, got {self.backbone!r}.")
        if self.query_ignored_token_ids is not None and not (
            isinstance(self.query_ignored_token_ids, (list, tuple, set))
            and all(is_integer(token_id) and token_id >= 0 for token_id in self.query_ignored_token_ids)
        ):
            raise ValueError(
                f"`query_ignored_token_ids` must contain token ids, got {self.query_ignored_token_ids!r}."
            )
        if self.value_layers is not None and not (
            isinstance(self.value_layers, (list, tuple, set))
            and all(is_integer(layer) and layer >= 0 for layer in self.value_layers)
        ):
            raise ValueError(
                f"`value_layers` must be a list of numbers of decoder layers, from 0, got {self.value_layers!r}."
            )
        if self.modules_to_save is not None and not (
            isinstance(self.modules_to_save, (list, tuple, set))
            and all(isinstance(name, str) for name in self.modules_to_save)
        ):
            raise ValueError(f"`modules_to_save` must be a list of module names, got {self.modules_to_save!r}.")

    def _check_query_layer(self) -> None:
        if not is_integer(self.query_layer) or self.query_layer < 0:
            raise ValueError(f"`query_layer` must be an integer of at least 0, got {self.query_layer!r}.")
        if self.query_text not in ("mean", "last"):
            raise ValueError(f"`query_text` must be 'mean' or 'last', got {self.query_text!r}.")
        if not is_number(self.query_audio_weight) or not 0 <= self.query_audio_weight < math.inf:
            raise ValueError(
                f"`query_audio_weight` must be a finite number of at least 0, got {self.query_audio_weight!r}."
            )
        if self.query_layer == 0 and (self.query_text != "mean" or self.query_audio_weight != 1.0):
            raise ValueError(
                f"`query_text`={self.query_text!r} and `query_audio_weight`={self.query_audio_weight!r} have an effect only "
                "with a `query_layer` of at least 1. Set it, or leave them out."
            )
        if self.query_layer > 0 and self.query_pooling != "modality_mean":
            raise ValueError(
                f"`query_layer`={self.query_layer} reads the text without the audio, so it needs "
                f"`query_pooling='modality_mean'`, got {self.query_pooling!r}."
            )

    def check_enough_shared_prompts(self) -> None:
        """Raises a `ValueError` if shared prompts are added to the selected ones, and there are fewer of them."""
        if not self.adds_shared_prompts:
            return
        longest = {"prompt_length": self.prompt_length, "max_train_prompt_length": self._longest_in_training}
        for name, value in longest.items():
            if value > self.num_shared_prompts:
                raise ValueError(
                    f"`num_shared_prompts`={self.num_shared_prompts} is too small to add a shared prompt to each of the "
                    f"`{name}`={value} selected ones. Set `num_shared_prompts={value}`, a smaller `{name}`, or "
                    "`shared_prompt_mode='prepend'`."
                )

    @property
    def _longest_in_training(self) -> int:
        return self.max_train_prompt_length if self.stochastic_prompt_length else self.prompt_length

    @property
    def adds_shared_prompts(self) -> bool:
        """Whether shared prompts are added to the selected values."""
        return self.num_shared_prompts > 0 and self.shared_prompt_mode == "add"

    @property
    def target_modules(self) -> str | None:
        """The backbone, under the name that PEFT uses for the modules to adapt."""
        return self.backbone


_PAPER_FORM: dict[str, Any] = {
    "stochastic_prompt_length": True,
    "shared_prompt_mode": "prepend",
    "center_queries": False,
    "standardize_queries": False,
    "query_pooling": "mean",
    "query_ignored_token_ids": None,
    "num_shared_prompts": 0,
    "key_loss_reduction": "sum",
}

# Values of fields whose default has changed or that are newer than the first version, for saved configurations in which
# they have no value. In these, `max_train_prompt_length` was `pool_size`.
_FORMER_DEFAULTS: dict[str, Any] = {
    "stochastic_prompt_length": True,
    "num_shared_prompts": 0,
    "shared_prompt_mode": "prepend",
    "query_pooling": "mean",
}

_WITHOUT_GAIN = "It did not lower the loss in any benchmark run."

# Fields of earlier versions, with the value at which they had no effect and advice for users of other values.
_REMOVED_FIELDS: dict[str, tuple[Any, str]] = {
    "usage_balance": (0.0, _WITHOUT_GAIN),
    "reseed_every": (0, _WITHOUT_GAIN),
    "exploration": (0.0, _WITHOUT_GAIN),
    "query_dropout": (0.0, _WITHOUT_GAIN),
    "detach_query": (True, "The key loss always stops its gradient at the query."),
    "paper_form": (False, "`ListenConfig.paper()` gives the same form."),
}


def is_integer(value: Any) -> bool:
    """Whether a setting is an integer and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a setting is a number and not a boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_prompt_length(name: str, value: Any, pool_size: int) -> None:
    """Raises a `ValueError` that names the field and both numbers unless `1 <= value <= pool_size`."""
    if not is_integer(value) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    if value > pool_size:
        raise ValueError(
            f"`{name}`={value} exceeds the size of the pool (`pool_size`={pool_size}). "
            f"Set at most {pool_size}, or use a larger pool."
        )

"""Options of a training run, as dataclasses whose fields are names in a YAML file and on the command line."""

# No postponed annotations: the parser of the command line reads the types of the fields.

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from ..mappings import parse_mapping
from ..metrics.registry import available_metrics, metric_class
from ..metrics.tasks import parse_task_metrics
from ..training.mixture import parse_weights
from ..tuners.listen import ListenConfig


ADAPTERS = ("listen", "lora", "listen+lora", "none")

# Fields of `ListenConfig` that other options set, or that are not meant for a configuration file.
_NOT_OPTIONS = {"query_ignored_token_ids", "backbone", "modules_to_save", "seed"}


@dataclass
class ModelOptions:
    """
    The base model: a folder or a repository, or parts that are put together.

    Attributes:
        model (`str`, *optional*): folder or Hub name of a base model, of this package or another audio language model of
            transformers.
        speech, sound, llm (`str`, *optional*): the parts, see [`AudioListenForCausalLM.from_sub_models_pretrained`].
        dtype (`str`, *optional*): data type of the frozen parts.
        speech_chunk_multiple (`int`, *optional*): see [`AudioListenConfig`]; for a model from parts.
        standardize_frames (`bool`): whether a new projector is prepared for the clips, see
            [`AudioListenForCausalLM.init_projector_from`].

    Raises:
        ValueError: unless either `model` or both `speech` and `llm` are given.
    """

    _argument_group_name = "base model: --model, or its parts"

    model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub name of a base model, with its projector and processor. It may be another audio language "
            "model of transformers, such as Qwen2-Audio."
        },
    )
    speech: str | None = field(default=None, metadata={"help": "Folder or Hub name of a Whisper checkpoint."})
    sound: str | None = field(
        default=None, metadata={"help": "Folder of a BEATs model or an original checkpoint of BEATs. By default none."}
    )
    llm: str | None = field(default=None, metadata={"help": "Folder or Hub name of a causal language model."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = field(
        default=None,
        metadata={
            "help": "Data type of the frozen parts. By default that of the checkpoint, and float32 for parts on a machine "
            "without an accelerator."
        },
    )
    speech_chunk_multiple: int | None = field(
        default=None,
        metadata={"help": "For parts: multiple of seconds to which clips are padded, instead of Whisper's 30."},
    )
    standardize_frames: bool = field(
        default=True,
        metadata={
            "help": "Before the training of a new projector, set its first layers so that each channel of the encoders' frames "
            "has the mean 0 and the deviation 1 over the clips of at most 256 rows. It is not part of the paper."
        },
    )

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("speech", "sound", "llm", "speech_chunk_multiple")}
        given = [name for name, value in parts.items() if value is not None]
        if self.model is not None and given:
            raise ValueError(
                f"`model` is a whole base model, but {', '.join(f'`{name}`' for name in given)} would build another one. "
                "Leave out one of the two."
            )
        missing = [name for name in ("speech", "llm") if parts[name] is None]
        if self.model is None and missing:
            raise ValueError(
                "There is no base model: set `model` to a folder or a Hub name, or both `speech` and `llm`, from which it "
                f"is built; {', '.join(f'`{name}`' for name in missing)} missing."
            )


def _listen_fields() -> list[tuple[str, Any, Any]]:
    """An option for each field of `ListenConfig`, without a value by default: the two forms have different defaults."""
    found: list[tuple[str, Any, Any]] = []
    inherited = {
        each.name
        for base in ListenConfig.__mro__[1:]
        if dataclasses.is_dataclass(base)
        for each in dataclasses.fields(base)
    }
    # The parser accepts one type beside None.
    replaced: dict[str, Any] = {
        "selector_kwargs": str,  # a text on the command line, a mapping in a file
        "init_weights": Literal["vocab", "normal"],
    }
    types = {**typing.get_type_hints(ListenConfig), **replaced}
    for each in dataclasses.fields(ListenConfig):
        if each.name in inherited - {"modules_to_save"} or each.name in _NOT_OPTIONS:
            continue
        default = (
            ""
            if each.default is None
            else f" (default: {'vocab' if each.default is True and 'Literal' in str(each.type) else each.default})"
        )
        text = str(each.metadata["help"]).replace("%", "%%").removesuffix(".")
        text = f"{text}{default}."
        found.append((f"listen_{each.name}", types[each.name] | None, field(default=None, metadata={"help": text})))
    return found


_ListenFields = dataclasses.make_dataclass("_ListenFields", _listen_fields())


@dataclass
class ListenOptions(_ListenFields):  # type: ignore[valid-type, misc]
    """
    The pool of prompts: `listen_` and the name of a field of [`ListenConfig`]; what is not set has the default of the form.

    Attributes:
        listen_form (`"default"` or `"paper"`): the defaults, those of `ListenConfig` or of [`ListenConfig.paper`].
        listen_ignore_template (`bool`, *optional*): exclude the tokens of the chat template from the query.
        init_keys_at_steps (`list[int]`): see [`~peft_listen.training.ListenCallback`].

    Raises:
        ValueError: if `listen_selector_kwargs` is neither a mapping nor a JSON object as text.
    """

    _argument_group_name = "pool of prompts (adapter: listen), the fields of ListenConfig"
    _VALID_DICT_FIELDS = ("listen_selector_kwargs",)

    listen_form: Literal["default", "paper"] = field(
        default="default", metadata={"help": "Whose defaults are used: those of ListenConfig, or those of the paper."}
    )
    listen_ignore_template: bool | None = field(
        default=None,
        metadata={
            "help": "Exclude the tokens of the chat template from the query. By default, except in the paper's form."
        },
    )
    init_keys_at_steps: list[int] = field(
        default_factory=list,
        metadata={"help": "Optimizer steps, from 1, before which the keys are initialized from real queries."},
    )

    def __post_init__(self) -> None:
        name = "listen_selector_kwargs"
        setattr(self, name, parse_mapping(name, vars(self)[name]))

    def config_values(self) -> dict[str, Any]:
        """The values that are set, by the names of the fields of [`ListenConfig`]."""
        prefix = "listen_"
        names = [each.name for each in dataclasses.fields(_ListenFields)]
        return {name.removeprefix(prefix): getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class AdapterOptions:
    """
    What is trained besides the projector.

    Attributes:
        adapter (`str`): `"listen"`, `"lora"`, `"listen+lora"`, or `"none"` for the projector alone.
        lora_r, lora_alpha, lora_dropout, lora_target_modules: see [`~peft.LoraConfig`]; the modules are those of the language
            model.
    """

    _argument_group_name = "adapter"

    adapter: Literal["listen", "lora", "listen+lora", "none"] = field(
        default="listen",
        metadata={"help": "The adapter of the language model, which is trained together with the projector."},
    )
    lora_r: int = field(default=8, metadata={"help": "LoRA: rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA: scaling, relative to the rank."})
    lora_dropout: float = field(default=0.1, metadata={"help": "LoRA: dropout."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"],
        metadata={"help": "LoRA: names of modules of the language model; all-linear for all linear layers."},
    )

    @property
    def has_listen(self) -> bool:
        """Whether a pool of prompts is trained."""
        return self.adapter in ("listen", "listen+lora")

    @property
    def has_lora(self) -> bool:
        """Whether LoRA is trained."""
        return self.adapter in ("lora", "listen+lora")


@dataclass
class DataOptions:
    """
    The data, the mixture of the tasks, and how they are scored.

    Attributes:
        train_data, eval_data, test_data (`list[str]`): data files; the first are required.
        temperature (`float`), task_weights (`list[str]`): see [`~peft_listen.training.TaskMixture`].
        feature_cache (`str`, *optional*): folder of a [`~peft_listen.training.FeatureCache`].
        metrics (`list[str]`): `TASK=METRIC`.
        eval_rows_per_task (`int`, *optional*): rows of each task that are answered in an evaluation during training.
        max_new_tokens, num_beams (`int`): settings of generation.
        chat_template_kwargs (`dict`, *optional*), trained_answers (`str`): see [`~peft_listen.training.AudioListenCollator`];
            the former are used for generation too.
        on_bad_clip (`"error"` or `"skip"`): what is done about a row with a clip that cannot be loaded.

    Raises:
        ValueError: for no training data, or a value of another form.
    """

    _argument_group_name = "data and scores"
    _VALID_DICT_FIELDS = ("chat_template_kwargs",)

    train_data: list[str] = field(
        default_factory=list,
        metadata={"help": "Data files for training: JSON lines with audio, instruction, answer, task."},
    )
    eval_data: list[str] = field(
        default_factory=list,
        metadata={"help": "Data files to score during training (--eval-strategy) and at its end."},
    )
    test_data: list[str] = field(default_factory=list, metadata={"help": "Data files to score at the end only."})
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "A task with n rows has a share proportional to n to the power of 1 / temperature: 1 uses every row "
            "once per epoch, large values make the tasks equally frequent."
        },
    )
    task_weights: list[str] = field(
        default_factory=list, metadata={"help": "TASK=WEIGHT, factors of these shares; 0 leaves a task out."}
    )
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder in which the outputs of the frozen encoders are stored, so that they run once."},
    )
    metrics: list[str] = field(
        default_factory=list,
        metadata={
            "help": "TASK=METRIC, as in peft-listen evaluate. By default those of the rows or of the task's name."
        },
    )
    eval_rows_per_task: int | None = field(
        default=None,
        metadata={
            "help": "In an evaluation during training, answer the first rows of each task only, 0 for the loss alone. By "
            "default all."
        },
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Maximum length of an answer in tokens."})
    num_beams: int = field(default=1, metadata={"help": "Beams of the search; 1 is greedy."})
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={"help": "Variables for the chat template, in training and generation: a mapping, or a JSON object."},
    )
    trained_answers: Literal["all", "last"] = field(
        default="all", metadata={"help": "Answers of a conversation of several turns that are trained."}
    )
    on_bad_clip: Literal["error", "skip"] = field(
        default="error",
        metadata={
            "help": "A row whose clip is missing, damaged, empty or too long ends the run, or is left out and counted: then all "
            "clips are checked before the training."
        },
    )

    def __post_init__(self) -> None:
        name = "chat_template_kwargs"
        setattr(self, name, parse_mapping(name, vars(self)[name]))
        if not self.train_data:
            raise ValueError("There is no training data: set `train_data` to one or more data files.")
        if self.eval_rows_per_task is not None and self.eval_rows_per_task < 0:
            raise ValueError(f"`eval_rows_per_task` must be at least 0, got {self.eval_rows_per_task}.")
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        parse_task_metrics(self.metrics)
        parse_weights(self.task_weights)

    @property
    def template_variables(self) -> dict[str, Any]:
        """Variables for the chat template; may be empty."""
        return parse_mapping("chat_template_kwargs", self.chat_template_kwargs) or {}


@dataclass
class RunArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] with defaults for adapters of audio models, learning rates of the pool, and early
    stopping.

    Attributes:
        value_learning_rate, shared_value_learning_rate, key_learning_rate (`float`, *optional*):
            see [`~peft_listen.training.parameter_groups`].
        early_stopping_patience (`int`, *optional*): evaluations without a better value of `metric_for_best_model` after which
            the training ends.
        early_stopping_threshold (`float`): least improvement that counts.
        hub_include (`list[str]`): `include` of [`~peft_listen.publish`].

    Raises:
        ValueError: for values that do not fit together.
    """

    _argument_group_name = "training"
    # Those that the help shows under this heading, in this order; the others follow at its end.
    _first_options = (
        "output_dir",
        "max_steps",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "value_learning_rate",
        "shared_value_learning_rate",
        "key_learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "bf16",
        "eval_strategy",
        "eval_steps",
        "per_device_eval_batch_size",
        "metric_for_best_model",
        "early_stopping_patience",
        "early_stopping_threshold",
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "report_to",
        "seed",
        "push_to_hub",
        "hub_model_id",
        "hub_include",
    )

    output_dir: str | None = field(
        default="output",
        metadata={"help": "Folder of everything that is written. The same command resumes what was begun there."},
    )
    learning_rate: float = field(
        default=3e-4,
        metadata={"help": "Of the projector, of LoRA, of the keys and of values with added shared prompts."},
    )
    value_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Of the pool's values. By default 10 times the learning rate, or once with added shared prompts."
        },
    )
    shared_value_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Of the shared prompts. By default that of the values, or 10 times the learning rate."},
    )
    key_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the keys. By default the learning rate."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rates."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of linear warm-up; below 1, a fraction of all steps."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps; below 1, a fraction of all."})
    log_level: str = field(
        default="warning",
        metadata={
            "help": "Messages of the libraries that are shown.",
            "choices": ["detail", "debug", "info", "warning", "error", "critical", "passive"],
        },
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints that are kept; the best one in addition."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the collator needs all fields of the rows."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Evaluations without a better value of --metric-for-best-model after which the training ends. The best "
            "model is kept."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "Improvement that counts as a better value, for early stopping."}
    )
    hub_include: list[str] = field(
        default_factory=list,
        metadata={"help": "With --push-to-hub, parts whose weights are uploaded too: speech, sound, llm."},
    )

    def __post_init__(self) -> None:
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be false: the collator needs all fields of the rows.")
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1:
                raise ValueError(f"`early_stopping_patience` must be at least 1, got {self.early_stopping_patience}.")
            self.load_best_model_at_end = True
            # The number of evaluations without improvement is in the checkpoint.
            self.restore_callback_states_from_checkpoint = True
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = _is_better_if_greater(self.metric_for_best_model)
        # Without an accelerator, pinned memory has no use, and the data loader warns of it in every epoch.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        super().__post_init__()


def _is_better_if_greater(name: str) -> bool:
    if name.endswith("loss"):
        return False
    for metric in available_metrics():
        if name == metric or name.endswith(f"_{metric}"):
            return bool(getattr(metric_class(metric), "higher_is_better", True))
    return True

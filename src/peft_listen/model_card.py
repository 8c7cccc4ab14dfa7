"""
Model cards of adapters and audio models. Those that PEFT and transformers generate lack the `import peft_listen` that
loading requires.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import GenerationMixin

from . import __version__
from .card_picture import save_prompt_picture
from .card_sections import parts_table, put_section, scores_table, training_text
from .files import atomic_path, check_output_file
from .hub_connection import hub_connection
from .hub_names import base_names, warn_of_local_base


if TYPE_CHECKING:
    from peft import PeftModel

    from .analysis import SelectionRecords
    from .metrics import TaskScore

# Sentence in the cards that transformers generates for repositories without one.
GENERATED_MARK = "This model card has been automatically generated."
_SNIPPET_MARK = "import peft_listen"
# Advice of `push_to_hub` where the Hub cannot be reached.
WITHOUT_HUB = "`save_pretrained` writes the same files to a folder, which can be uploaded later with `hf upload`."

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ description }}

## How to use it

{{ snippet }}

## Limits

{{ limits }}

## Citation

```bibtex
@inproceedings{mousavi2025listen,
  title = {LiSTEN: Learning Soft Token Embeddings for Neural Audio LLMs},
  author = {Mousavi, Pooneh and Gupta, Shubham and Subakan, Cem and Ravanelli, Mirco},
  booktitle = {Interspeech},
  year = {2025}
}
```

### Framework versions

- peft-listen {{ version }}
"""

_REPOSITORY = "git+https://github.com/peft-listen/peft-listen"

_AUDIO_SNIPPET = """\
```bash
pip install {package}
```

```python
import peft_listen  # registers the model and adapter classes
from transformers import pipeline

pipe = pipeline("audio-text-to-text", model="{name}")
pipe("clip.wav", text="What do you hear?")
```"""

_TEXT_SNIPPET = """\
```bash
pip install {package}
```

```python
import peft_listen  # registers the model and adapter classes
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
```"""


def install(peft_model_class: type[PeftModel]) -> None:
    """
    Makes `save_pretrained` and `push_to_hub` of a PEFT model write the cards of this module, for LiSTEN adapters and for
    any adapter on a model of this package. `push_to_hub` also warns of a base model that others cannot load, before the Hub
    is asked, and says what to do if the Hub cannot be reached. Other adapters keep PEFT's cards and errors.

    The methods of the class are replaced because PEFT has no hook for a method-specific card, and because `push_to_hub`
    replaces PEFT's card by one that transformers generates. Calling this function again has no effect.

    Args:
        peft_model_class (`type[PeftModel]`): class whose methods are replaced.
    """
    write, upload = peft_model_class.create_or_update_model_card, peft_model_class._upload_modified_files
    push = peft_model_class.push_to_hub
    if write.__module__ == __name__:
        return

    @functools.wraps(write, assigned=("__name__", "__qualname__", "__doc__"))
    def create_or_update_model_card(self: PeftModel, output_dir: str) -> None:
        if _is_own(self):
            _write_card(self, Path(output_dir) / "README.md", Path(output_dir).name, functools.partial(write, self))
        else:
            write(self, output_dir)

    @functools.wraps(upload, assigned=("__name__", "__qualname__", "__doc__"))
    def _upload_modified_files(
        self: PeftModel, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        if _is_own(self):
            path = Path(working_dir) / "README.md"
            _write_card(self, path, repo_id, functools.partial(write, self), for_hub=True)
        return upload(self, working_dir, repo_id, *args, **kwargs)

    @functools.wraps(push)
    def push_to_hub(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        if not _is_own(self):
            return push(self, *args, **kwargs)
        for config in _configs(self):
            # What PEFT writes into the configuration of an adapter that names no base model.
            base_name = config.base_model_name_or_path or _base_of(self).__dict__.get("name_or_path")
            warn_of_local_base(base_name, _has_own_base(self))
        with hub_connection(WITHOUT_HUB):
            return push(self, *args, **kwargs)

    peft_model_class.create_or_update_model_card = create_or_update_model_card  # type: ignore[method-assign]
    peft_model_class._upload_modified_files = _upload_modified_files  # type: ignore[method-assign, assignment]
    peft_model_class.push_to_hub = push_to_hub  # type: ignore[method-assign, assignment]


def write_model_card(
    model: Any,
    path: Path,
    name: str,
    scores: Mapping[str, TaskScore] | None = None,
    training: Mapping[str, Any] | None = None,
    datasets: Sequence[str] = (),
    selections: SelectionRecords | None = None,
    title: str | None = None,
) -> None:
    """
    Writes the card of a repository that contains an audio model, and its adapter if it has one, or completes an existing
    card.

    Args:
        model ([`AudioListenForCausalLM`] or `PeftModel`): The model; if the base model is not of this package, the repository has
            its adapter alone.
        path (`pathlib.Path`): The file to write.
        name (`str`): Name of the repository or its folder, for the code snippet.
        scores (`Mapping[str, TaskScore]`, *optional*): Scores, which replace those of an older card.
        training (`Mapping[str, Any]`, *optional*): Settings of the training, see [`add_training`].
        datasets (`Sequence[str]`): Names on the Hub of the data sets, see [`add_training`].
        selections ([`SelectionRecords`], *optional*): Selections of the adapter, see [`add_prompts`].
        title (`str`, *optional*): Title of a new card; by default the name.

    Raises:
        OSError: `path` is a symbolic link, a device, a folder or another special file.
    """
    # A repository with an adapter alone has the metadata that PEFT writes.
    is_alone = bool(_configs(model)) and not _has_own_base(model)
    write: Any = type(model).create_or_update_model_card.__wrapped__ if is_alone else None
    _write_card(model, path, name, functools.partial(write, model) if is_alone else None, True, title)
    if training or datasets:
        add_training(path, training or {}, datasets)
    if selections is not None:
        add_prompts(path, selections)
    if scores:
        add_scores(path, scores, name)


def add_training(path: Path, training: Mapping[str, Any], datasets: Sequence[str] = ()) -> None:
    """
    Adds a table of the settings of the training to a card, in place of an older one, and the data sets to its metadata.

    Args:
        path (`pathlib.Path`): The card.
        training (`Mapping[str, Any]`): The settings by name. The item `"command"`, if there is one, is shown below the table.
        datasets (`Sequence[str]`): Names of the data sets on the Hub, which are added to those that the card has.

    Raises:
        OSError: `path` is a symbolic link, a device, a folder or another special file.
    """
    check_output_file(path)
    card = ModelCard.load(path)
    if training:
        put_section(card, "Training", training_text(training))
    known = card.data.datasets or []
    # A card that somebody else wrote may have a single name.
    known = [known] if isinstance(known, str) else list(known)
    card.data.datasets = list(dict.fromkeys([*known, *datasets])) or None
    with atomic_path(path) as temporary:
        card.save(temporary)


def add_prompts(path: Path, selections: SelectionRecords) -> None:
    """
    Adds a picture of the prompts that each task selects to a card, in place of an older one. The picture is the file
    `prompts_by_task.png` beside the card. Nothing is added, and the reason is logged, if there are fewer than 2 or more than
    100 tasks, or matplotlib is not installed.

    Args:
        path (`pathlib.Path`): The card.
        selections ([`SelectionRecords`]): The selections of the adapter.

    Raises:
        OSError: `path` or the picture is a symbolic link, a device, a folder or another special file.
    """
    check_output_file(path)
    section = save_prompt_picture(selections, path.parent)
    if section is None:
        return
    card = ModelCard.load(path)
    put_section(card, "Prompts by task", section)
    with atomic_path(path) as temporary:
        card.save(temporary)


def add_scores(path: Path, scores: Mapping[str, TaskScore], name: str) -> None:
    """
    Adds a table of scores to a card, and the main metric of each task to its metadata, from which the Hub makes its own
    table. Scores that this function has added before are replaced.

    Args:
        path (`pathlib.Path`): The card.
        scores (`Mapping[str, TaskScore]`): Scores by the name of the task.
        name (`str`): Name of the model.

    Raises:
        OSError: `path` is a symbolic link, a device, a folder or another special file.
    """
    check_output_file(path)
    card = ModelCard.load(path)
    put_section(card, "Scores", scores_table(scores))
    card.data.model_name = name
    card.data.eval_results = [
        EvalResult(
            task_type="audio-text-to-text",
            dataset_type=task,
            dataset_name=task,
            metric_type=score.metric,
            metric_value=score.value,
        )
        for task, score in scores.items()
    ]
    with atomic_path(path) as temporary:
        card.save(temporary)


def _is_own(model: PeftModel) -> bool:
    return _has_own_base(model) or _is_listen(model)


def _has_own_base(model: PeftModel) -> bool:
    return type(model.get_base_model()).__module__.partition(".")[0] == __name__.partition(".")[0]


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _configs(model: Any) -> list[Any]:
    """The configurations of the model's adapters."""
    return list(getattr(model, "peft_config", {}).values())


def _is_listen(model: Any) -> bool:
    return any(config.peft_type == "LISTEN" for config in _configs(model))


def _write_card(
    model: Any,
    path: Path,
    name: str,
    write: Callable[[str], None] | None,
    for_hub: bool = False,
    title: str | None = None,
) -> None:
    """
    Creates a card, or adds the missing parts to an existing one. `write` is PEFT's own method, which takes a folder, for a
    folder that contains an adapter alone. `name` is the model name in the code snippet. With `for_hub`, a `base_model` that
    is a local folder, as PEFT writes it, is removed. `title` is that of a new card, by default the name.

    Raises:
        OSError: `path` is a symbolic link, a device, a folder or another special file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_output_file(path)
    # Both libraries write to the path itself, even if it is a link, so they get another folder.
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        copy = Path(folder) / path.name
        if path.exists():
            shutil.copy(path, copy)
        _complete_card(model, copy, name, write, for_hub, title or name)
        shutil.copyfile(copy, temporary)


def _complete_card(
    model: Any, path: Path, name: str, write: Callable[[str], None] | None, for_hub: bool, title: str
) -> None:
    card = ModelCard.load(path) if path.exists() else None
    if card is None or GENERATED_MARK in card.text:
        # The only information in a generated card is the tags that were passed to `push_to_hub`.
        card = ModelCard.from_template(
            ModelCardData(tags=card and card.data.tags),
            template_str=_TEMPLATE,
            title=title,
            description=_describe(model),
            snippet=_snippet(model, name),
            limits=_limits(model),
            version=__version__,
        )
        card.save(path)
    tags = set(card.data.tags or [])
    if write is not None:
        write(str(path.parent))
        card = ModelCard.load(path)
    else:
        card.data.library_name = "transformers"
    base_models = base_names(_base_of(model))
    tags.update(tag for tag in card.data.tags or [] if not tag.startswith("base_model:adapter:"))
    if _configs(model):
        tags.update(f"base_model:adapter:{base_model}" for base_model in base_models)
    card.data.tags = sorted(tags | ({"listen"} if _is_listen(model) else set())) or None
    card.data.base_model = base_models or (None if for_hub else card.data.base_model)
    # PEFT sets "text-generation" for every causal language model.
    if card.data.pipeline_tag in (None, "text-generation") and isinstance(_base_of(model), GenerationMixin):
        card.data.pipeline_tag = "audio-text-to-text" if _accepts_audio(model) else "text-generation"
    if _SNIPPET_MARK not in card.text:
        card.text = f"{card.text.rstrip()}\n\n## How to use it\n\n{_snippet(model, name)}\n"
    if (parts := parts_table(_base_of(model))) is not None:
        put_section(card, "Parts", parts)
    card.save(path)


def _accepts_audio(model: Any) -> bool:
    return "audio" in getattr(_base_of(model), "input_modalities", ())


def _snippet(model: Any, name: str) -> str:
    snippet, package = (
        (_AUDIO_SNIPPET, "peft-listen[audio]") if _accepts_audio(model) else (_TEXT_SNIPPET, "peft-listen")
    )
    # A version under development is not on PyPI.
    source = f" @ {_REPOSITORY}" if ".dev" in __version__ else ""
    return snippet.format(name=name, package=shlex.quote(package + source).replace("'", '"'))


def _limits(model: Any) -> str:
    """What every user should know, apart from what the author of the card adds."""
    unheard = ", and it may describe speech or sounds that a clip does not contain" if _accepts_audio(model) else ""
    names = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in base_names(_base_of(model)))
    of_base = f" of {names}" if names else " of the models that it is made of"
    return (
        f"- The model may give wrong answers without any sign of doubt{unheard}.\n"
        "- Scores hold for data like those on which they were measured. Other tasks and languages were not tested unless this "
        "card says so.\n"
        f"- The licenses and the limits{of_base} apply to it too."
    )


def _describe(model: Any) -> str:
    names = base_names(_base_of(model))
    base = " and ".join(f"[{name}](https://huggingface.co/{name})" for name in names)
    if not _configs(model):
        made_of = f" made of {base}" if base else ""
        return f"An audio model{made_of}: a language model, audio encoders and a projector between them."
    base = base or "a base model"
    config: Any = model.active_peft_config
    if config.peft_type == "LISTEN":
        text = (
            f"A [LiSTEN](https://arxiv.org/abs/2505.18517) adapter on {base}. For every input, {config.prompt_length} "
            f"soft prompts are selected from a pool of {config.pool_size} (`selector={config.selector!r}`) and prepended."
        )
    else:
        text = f"A {config.peft_type.value} adapter on {base}."
    modules = ", ".join(f"`{name}`" for name in getattr(config, "modules_to_save", None) or ())
    return f"{text} It includes its own {modules}." if modules else text

"""The code in README, docs and docstrings runs as it stands.

A page's Python blocks and `peft-listen` commands run one after another, the blocks in one namespace, in a folder where
everything that they name lies as something small and random under the same path: models of the Hub, checkpoints, a base
model, an adapter, clips and data files. `peft-listen serve` and `demo` run on a free port until the page ends.
"""

import ast
import doctest
import importlib
import json
import re
import shlex
import shutil
import textwrap
import tomllib
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from datasets import Audio, Dataset, Features, Value
from peft import get_peft_model
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from peft_listen import (
    AudioListenConfig,
    AudioListenForCausalLM,
    AudioListenProcessor,
    BeatsConfig,
    BeatsModel,
    ListenConfig,
    WindowQFormerProjector,
)
from peft_listen.audio import AudioLimits, set_default_limits
from peft_listen.models.audio_listen.configuration_audio_listen import QFORMER_DEFAULTS
from peft_listen.models.audio_listen.convert_salmonn_projector import rename_salmonn_weights
from peft_listen.models.beats.convert_beats_original_checkpoint import to_original_checkpoint
from peft_listen_cli import COMMANDS, main
from tests import small_audio_llms
from tests.data.recipes.trees import write_iemocap, write_librispeech
from tests.pages import PAGES, ROOT, blocks
from tests.served import running_command


SOURCES = sorted((ROOT / "src").rglob("*.py"))
AUDIO_LLM = "Qwen/Qwen2-Audio-7B-Instruct"
LLM, SPEECH = "HuggingFaceTB/SmolLM2-135M-Instruct", "openai/whisper-tiny.en"
BEATS, SALMONN = "BEATs_iter3_plus_AS2M.pt", "salmonn_v1.pth"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
QFORMER = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
EXAMPLES = [
    {"audio": "dog.wav", "instruction": "What do you hear?", "answer": "a dog barking", "task": "sounds"},
    {"audio": "cat.wav", "instruction": "Which animal is it?", "answer": "a cat", "task": "sounds"},
    {"audio": "dog.wav", "instruction": "Is it loud?", "answer": "yes", "task": "questions"},
    {"audio": None, "instruction": "What is the capital of France?", "answer": "Paris", "task": "questions"},
]


# Of `peft-listen serve`.
DOCUMENTED_ADDRESS = "http://127.0.0.1:8000/v1"


def commands(block: str) -> list[list[str]]:
    """The arguments of the `peft-listen` commands in a block for the shell."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("peft-listen ")]


def write_salmonn_checkpoint() -> None:
    """A checkpoint with SALMONN's names, and the sizes that docs/convert.md states."""
    qformer = {"hidden_size": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    config = AudioListenConfig(
        speech_config=WhisperConfig(d_model=1280, encoder_attention_heads=1, decoder_attention_heads=1),
        sound_config=BeatsConfig(),
        qformer_config=qformer,
    )
    weights = WindowQFormerProjector(config).state_dict()
    names = torch.load(ROOT / "tests/fixtures/qformer/tiny.pt", weights_only=True)["model"]
    originals = rename_salmonn_weights({name: name for name in names})
    assert originals.keys() == weights.keys()
    torch.save({"model": {original: weights[name] for name, original in originals.items()}}, SALMONN)


def write_librispeech_of_the_hub(folder: Path) -> None:
    """A Parquet file with the columns of openslr/librispeech_asr."""
    columns = {
        "id": ["1-2-0"],
        "text": ["A DOG BARKS"],
        "audio": [{"bytes": Path("dog.wav").read_bytes(), "path": None}],
    }
    audio = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"id": Value("string"), "text": Value("string"), "audio": audio})
    dataset = Dataset.from_dict(columns, features=features).cast_column("audio", Audio())
    folder.mkdir(parents=True)
    dataset.to_parquet(folder / "test-00000-of-00001.parquet")


@pytest.fixture(scope="session")
def small_things(tmp_path_factory, make_llm, make_tokenizer, whisper_config, beats_config):
    folder = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_llm("llama").save_pretrained(LLM)
        make_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained(LLM)
        config = whisper_config()
        WhisperForConditionalGeneration(config).save_pretrained(SPEECH)
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(SPEECH)
        to_original_checkpoint(BeatsModel(beats_config()), BEATS)
        write_salmonn_checkpoint()

        parts = {"speech": SPEECH, "llm": LLM}
        base = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER)
        base.save_pretrained("my-base", save_frozen=False)
        AudioListenProcessor.from_sub_models_pretrained(**parts).save_pretrained("my-base")
        base = AudioListenForCausalLM.from_pretrained("my-base")
        settings = {"pool_size": 16, "prompt_length": 4, "modules_to_save": ["multi_modal_projector"]}
        for name in ("my-adapter", "my-adapter-2"):
            get_peft_model(base, ListenConfig(**settings)).save_pretrained(name)
            base = AudioListenForCausalLM.from_pretrained("my-base")

        time = np.arange(16_000) / 16_000
        for name, frequency in (("dog", 220), ("cat", 660)):
            soundfile.write(f"{name}.wav", 0.3 * np.sin(2 * np.pi * frequency * time), 16_000)
            Path("recordings", name).mkdir(parents=True)
            for index in range(5):
                tone = 0.3 * np.sin(2 * np.pi * (frequency + 10 * index) * time)
                soundfile.write(f"recordings/{name}/{index}.wav", tone, 16_000)
        for name in ("train", "test"):
            Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, EXAMPLES)))
        (_, table), *_ = blocks(ROOT / "docs" / "data.md", "csv")
        Path("clips.csv").write_text(table, encoding="utf-8")

        small_audio_llms.save(small_audio_llms.QWEN2_AUDIO, Path(AUDIO_LLM))

        write_librispeech(Path("corpora"))
        write_iemocap(Path("corpora"))
        write_librispeech_of_the_hub(Path("corpora/librispeech_asr"))
    return folder


def keep_registries(monkeypatch) -> None:
    """Forgets the selectors, metrics and recipes that a page or an example registers."""
    from peft_listen.data.recipes import available_recipes
    from peft_listen.data.recipes import base as recipes
    from peft_listen.metrics import registry as metrics
    from peft_listen.metrics import tasks
    from peft_listen.tuners.listen.selectors import base as selectors

    metrics.available_metrics()  # registers those of the package, once per process
    monkeypatch.setattr(selectors, "_SELECTORS", dict(selectors._SELECTORS))
    monkeypatch.setattr(metrics, "_METRICS", dict(metrics._METRICS))
    available_recipes()
    monkeypatch.setattr(recipes, "_RECIPES", dict(recipes._RECIPES))
    monkeypatch.setattr(tasks, "_TASK_METRICS", dict(tasks._TASK_METRICS))


# Pages whose code uses the Hub. They run in a process that has a Hub of its own.
PAGES_ON_THE_HUB = ["publish.md"]
SETUP_ON_THE_HUB = f"""
from peft import get_peft_model
from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig

parts = {{"speech": "{SPEECH}", "llm": "{LLM}"}}
AudioListenProcessor.from_sub_models_pretrained(**parts).save_pretrained("my-base")
base = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config={QFORMER})
base.save_pretrained("my-base", save_frozen=False)
base = AudioListenForCausalLM.from_pretrained("my-base")
get_peft_model(base, ListenConfig(pool_size=16, prompt_length=4)).save_pretrained("my-adapter")
"""


@pytest.mark.parametrize("name", PAGES_ON_THE_HUB)
def test_the_code_of_a_page_runs_on_the_hub(name, small_things, hub, tmp_path) -> None:
    for repository in (SPEECH, LLM, AUDIO_LLM):
        hub.add_folder(repository, small_things / repository)
    shutil.copy(small_things / "dog.wav", tmp_path)
    code = SETUP_ON_THE_HUB
    for language, block in blocks(ROOT / "docs" / name, "python", "bash"):
        if language == "python":
            code += block
        else:
            code += "from peft_listen_cli import main\n"
            code += "".join(f"assert main({arguments!r}) == 0\n" for arguments in commands(block))
    hub.run(code, tmp_path)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in PAGES_ON_THE_HUB], ids=lambda page: page.name
)
def test_the_code_of_a_page_runs(page, small_things, tmp_path, monkeypatch) -> None:
    shutil.copytree(small_things, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # A projector of the default size takes seconds to make, and again to save.
    for name, value in QFORMER.items():
        monkeypatch.setitem(QFORMER_DEFAULTS, name, value)
    namespace: dict = {"__name__": "__main__"}
    keep_registries(monkeypatch)
    limits = set_default_limits(AudioLimits())
    served = DOCUMENTED_ADDRESS
    try:
        with warnings.catch_warnings(record=True) as caught, ExitStack() as running:
            warnings.simplefilter("always")
            for language, block in blocks(page, "python", "bash", "yaml"):
                if language == "yaml":
                    # A block for `peft-listen train` names its file in the first line.
                    Path(re.match(r"# (\w+\.yaml)\n", block)[1]).write_text(block, encoding="utf-8")
                elif language == "python":
                    exec(compile(block.replace(DOCUMENTED_ADDRESS, served), str(page), "exec"), namespace)
                else:
                    for arguments in commands(block):
                        if arguments[0] == "serve":
                            served = running.enter_context(running_command(arguments))
                        elif arguments[0] == "demo":
                            running.enter_context(running_command(arguments))
                        else:
                            assert main(arguments) == 0, arguments
    finally:
        set_default_limits(limits)
    # Warnings of this package name its own files or, with a `stacklevel`, the line of the page.
    ours = [warning for warning in caught if "peft_listen" in warning.filename or warning.filename == str(page)]
    assert not [f"{warning.filename}:{warning.lineno}: {warning.message}" for warning in ours]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_data_of_a_page_is_valid(page) -> None:
    for _, block in blocks(page, "json"):
        for line in block.splitlines():
            json.loads(line)


def test_the_pages_show_every_command() -> None:
    shown = {arguments[0] for page in PAGES for _, block in blocks(page, "bash") for arguments in commands(block)}
    assert shown == set(COMMANDS)


def test_a_script_for_lora_runs_with_the_lines_changed_that_its_page_shows(
    small_things, tmp_path, monkeypatch
) -> None:
    page = ROOT / "docs" / "from-lora.md"
    (_, script), *_ = blocks(page, "python")
    ((_, difference),) = blocks(page, "diff")
    lines, changes = script.splitlines(), difference.splitlines()
    assert {line[0] for line in changes} == {"+", "-"}
    while changes:
        change = changes.pop(0)
        if change[0] == "+":  # an import
            lines.insert(0, change[1:])
        else:
            lines[lines.index(change[1:])] = changes.pop(0).removeprefix("+")
    shutil.copytree(small_things, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    exec(compile("\n".join(lines), str(page), "exec"), namespace)
    assert json.loads(Path("numbers/adapter_config.json").read_text())["peft_type"] == "LISTEN"
    assert len(namespace["trainer"].optimizer.param_groups) == 3  # keys, values, shared prompts


def test_the_table_of_contents_is_whole() -> None:
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(page.name for page in PAGES[1:] if page.name != "index.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


# From a clone, or from anywhere; the package is not on PyPI.
INSTALLS = re.compile(
    r'pip install "(\./peft-listen\[[\w,]+\]|peft-listen\[\w+\] @ git\+https://github\.com/peft-listen/peft-listen)"'
)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "README.md"], ids=lambda page: page.name)
def test_a_page_installs_the_package_from_where_it_is(page) -> None:
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"pip install [^\n`]*peft-listen[^\n`]*", text):
        # The page may say how a released version will be installed.
        if f"the cards of a released version say\n`{line}`" not in text:
            assert INSTALLS.match(line), line


def test_the_table_of_the_metrics_of_tasks_is_that_of_the_code() -> None:
    from peft_listen.metrics import tasks

    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| task \| metrics \|\n\|---\|---\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    rows = [[re.findall("`(.*?)`", cell) for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {task: tuple(metrics) for (task,), metrics in rows} == tasks.named_task_metrics()
    assert re.findall(r"^4\. (.*)\.$", text, flags=re.MULTILINE) == [tasks._DEFAULT[0].replace("_", " ")]


def test_the_metrics_of_tasks_in_the_help_are_those_of_the_code() -> None:
    from peft_listen.metrics import tasks
    from peft_listen_cli import evaluate

    # The help is a text, because it is shown without importing the package.
    rows = re.findall(r"^  (\w+) +(\S+(?:, \S+)*)$", evaluate.EPILOG, re.MULTILINE)
    assert {task: tuple(metrics.split(", ")) for task, metrics in rows} == tasks.named_task_metrics()
    assert f"Other tasks are scored by {tasks._DEFAULT[0]}." in evaluate.EPILOG


def tracked_text_files() -> list[Path]:
    """The text files that readers see: pages, sources and settings, but not tests."""
    found = [
        path
        for name in ("src", "docs", "benchmarks", "examples", "demo", "offline", ".github", ".ci")
        for path in (ROOT / name).rglob("*")
    ]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    endings = {".md", ".py", ".toml", ".txt", ".yml", ".yaml", ".cff", ".jinja", ""}
    return sorted(path for path in found if path.is_file() and path.suffix in endings and path.name != ".coverage")


PLACEHOLDER = re.compile(
    r"@@\w*@@|\b(?:TODO|FIXME|XXX|TBD)\b|\blorem\b|(?<!\$)\{\{|<(?:insert|placeholder|your)[ -][^>]*>", re.IGNORECASE
)


@pytest.mark.parametrize("path", tracked_text_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_has_an_unfilled_placeholder(path) -> None:
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".jinja":
        content = re.sub(r"\{\{.*?\}\}", "", content, flags=re.DOTALL)
    if path.suffix == ".py":
        # In code, "{{" is an escaped brace of a format string.
        content = re.sub(r"\{\{", "", content)
    found = [match.group() for match in PLACEHOLDER.finditer(content)]
    assert not found, found


def test_the_placeholders_are_recognized() -> None:
    for text in ("@@SPEED@@", "# TODO: later", "FIXME", "XXX", "Lorem ipsum", "{{ title }}", "<insert name>"):
        assert PLACEHOLDER.search(text), text
    for text in ("${{ matrix.python }}", "user@example.org", "a todolist", "Xxxy"):
        assert not PLACEHOLDER.search(text), text


def docstring_nodes(path: Path) -> list[tuple[str, str]]:
    """Names and docstrings of a module and of everything that it defines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    named = [(getattr(node, "name", path.stem), ast.get_docstring(node)) for node in nodes]
    return [(name, docstring) for name, docstring in named if docstring]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_the_code_blocks_of_docstrings_compile(path) -> None:
    for name, docstring in docstring_nodes(path):
        assert docstring.count("```") % 2 == 0, f"{name} has an open code block"
        for block in re.findall(r"```(?:py|python)\n(.*?)```", docstring, flags=re.DOTALL):
            if ">>>" in block:
                examples = doctest.DocTestParser().get_examples(block)
                block = "".join(example.source for example in examples)
            compile(textwrap.dedent(block), f"{path}: {name}", "exec")


# The examples of models and pipelines load models of their real size, so they are compiled but not run.
MODULES_WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in SOURCES
    if not {"models", "pipelines"} & set(path.relative_to(ROOT / "src").parts)
    and any(">>>" in docstring for _, docstring in docstring_nodes(path))
]


@pytest.mark.parametrize("module", MODULES_WITH_EXAMPLES)
def test_the_examples_of_docstrings_give_what_they_say(module: str, small_things, tmp_path, monkeypatch) -> None:
    shutil.copytree(small_things, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name, value in QFORMER.items():
        monkeypatch.setitem(QFORMER_DEFAULTS, name, value)
    keep_registries(monkeypatch)
    result = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / "CITATION.cff"], ids=lambda path: path.name
)
def test_the_settings_of_the_repository_are_valid_yaml(path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    if path.parent.name == "workflows":
        # YAML reads the key "on" as true.
        assert content["name"] and content[True] and content["permissions"]
        for job in content["jobs"].values():
            assert job["runs-on"] and all("run" in step or "uses" in step for step in job["steps"])
    elif path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        assert content["name"] and content["description"]
        identifiers = [field["id"] for field in content["body"]]
        assert len(set(identifiers)) == len(identifiers)


def test_the_repository_has_one_address() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert set(urls) == {"Repository", "Documentation", "Issues", "Changelog", "Paper"}
    for path in [*PAGES, ROOT / "SECURITY.md", ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.yml")]:
        for address in re.findall(r"https://github\.com/([\w-]+/peft-listen)", path.read_text(encoding="utf-8")):
            assert f"https://github.com/{address}" == urls["Repository"]

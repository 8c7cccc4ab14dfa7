"""A run trains, scores and saves; an interrupted one gives the same result; other settings are refused."""

import json
import re
import shlex
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitInfo, ModelCard, constants
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors.torch import load_file
from transformers import TrainerCallback

from peft_listen.analysis import SelectionRecords, record_dataset
from peft_listen.data import read_examples
from peft_listen.evaluation.collated_answers import answer_batches
from peft_listen.evaluation.prediction import answer_rows
from peft_listen.hub_connection import hub_connection
from peft_listen.pipelines.loading import load_pipeline
from peft_listen.runs import AdapterOptions, DataOptions, ListenOptions, ModelOptions, RunArguments, training_run
from peft_listen.runs.building import add_adapter, load_base, lora_targets, prepare_projector
from peft_listen.runs.card_settings import run_command
from peft_listen.runs.checkpoints import last_whole_checkpoint
from peft_listen.runs.settings import run_settings
from peft_listen.training import AudioListenCollator
from peft_listen_cli import train


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def losses(result):
    return [row["loss"] for row in result.log_history if "loss" in row]


def weights(folder):
    found = {path.relative_to(folder): load_file(path) for path in Path(folder).rglob("*.safetensors")}
    return {(str(path), name): tensor for path, each in found.items() for name, tensor in each.items()}


def test_a_run_trains_scores_and_saves(make_run, data_file, tmp_path):
    options = {"eval_data": [data_file], "test_data": [data_file], "eval_strategy": "steps", "eval_steps": 2}
    options["metrics"] = ["sounds=exact_match", "sounds=eer:answers=dog|no"]
    result = make_run(**options).run()
    assert len(losses(result)) == 4 and not result.was_finished
    evaluations = [row for row in result.log_history if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [2, 4]
    assert evaluations[0].keys() >= {"eval_asr_wer", "eval_asr_cer", "eval_sounds_exact_match", "eval_mean_quality"}
    # The model in training answers as the saved one.
    assert evaluations[-1]["eval_asr_wer"] == pytest.approx(result.scores["eval"]["asr"].value)
    assert evaluations[-1]["eval_sounds_eer"] == pytest.approx(result.scores["eval"]["sounds"].values["eer"])
    assert result.scores["test"]["asr"] == result.scores["eval"]["asr"]
    stored = json.loads((tmp_path / "run" / "test" / "scores.json").read_text())
    assert stored["tasks"]["asr"]["value"] == result.scores["test"]["asr"].value

    card = ModelCard.load(tmp_path / "run" / "model" / "README.md")
    assert "## Scores" in card.text and "| asr | 2 | wer |" in card.text
    assert {each.metric_type for each in card.data.eval_results} == {"wer", "exact_match"}
    for row in (
        "adapter | listen",
        "learning rate | 0.0003, cosine",
        "steps | 4",
        "batch size | 2 (2 per device, 1 accumulated, 1 processes)",
        "warm-up | 5 % of the steps",
        "seed | 42",
        "train data | 4 rows of rows.jsonl; tasks asr, sounds",
    ):
        assert f"| {row} |" in card.text, row
    assert "| prompts | pool_size=6, prompt_length=2, selector=" in card.text
    (others,) = re.findall(r"\| other options \| (.*) \|", card.text)
    assert "metrics=sounds=exact_match sounds=eer:answers=dog\\|no" in others and "eval_steps=2" in others
    assert "listen_pool_size" not in others and "learning_rate" not in others and "output_dir" not in others
    assert card.text.lstrip().startswith("# run\n") and 'model="run/model"' in card.text
    assert card.data.model_name == "run" and card.data.base_model is None  # it is a local folder
    assert str(tmp_path) not in str(card)
    assert f"torch {torch.__version__}" in card.text and str(tmp_path) not in card.text
    headings = [card.text.index(f"## {name}") for name in ("Training", "Prompts by task", "Scores", "Citation")]
    assert headings == sorted(headings)
    assert (result.model_dir / "prompts_by_task.png").read_bytes().startswith(b"\x89PNG")
    assert card.data.datasets is None  # the rows name none
    assert make_run(**options).run() == replace(result, was_finished=True)


@pytest.fixture
def uploads(monkeypatch):
    """Names and other arguments of the uploads, which go nowhere; the account is `me`."""
    found = []

    def publish(model, processor, repo_id, **passed):
        found.append((repo_id, passed))
        owned = repo_id if "/" in repo_id else f"me/{repo_id}"
        return CommitInfo(f"{constants.ENDPOINT}/{owned}/commit/{'0' * 40}", "", "", "0" * 40)

    monkeypatch.setattr(training_run, "prepare_repository", lambda *args, **kwargs: None)
    monkeypatch.setattr(training_run, "publish", publish)
    return found


def test_a_finished_run_is_uploaded_when_it_is_asked_for(make_run, data_file, uploads, monkeypatch):
    options = {"max_steps": 1, "test_data": [data_file]}
    result = make_run(**options).run()
    assert uploads == [] and result.uploaded_to is None
    card = (result.model_dir / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr("peft_listen.runs.card_settings.__version__", "99.0")  # installed after the training
    options |= {"push_to_hub": True, "hub_model_id": "me/x"}
    uploaded = make_run(**options, hub_include=["llm"]).run()
    assert uploaded == replace(result, was_finished=True, uploaded_to="me/x")
    ((name, passed),) = uploads
    assert name == "me/x" and passed["include"] == ["llm"] and passed["scores"] == result.scores["test"]
    assert passed["training"]["steps"] == 1 and passed["selections"].task_names == ["asr", "sounds"]
    assert train._as_text(uploaded).endswith("and was uploaded to me/x")
    versions = passed["training"]["versions"]
    assert f"| versions | {versions} |" in card and "99.0" not in versions
    # The same again is not uploaded twice; other parts, another repository, or another Hub, are another upload.
    assert make_run(**options, hub_include=["llm"]).run() == uploaded and len(uploads) == 1
    assert make_run(**options).run().uploaded_to == "me/x" and len(uploads) == 2
    assert make_run(max_steps=1, test_data=[data_file]).run().uploaded_to == "me/x" and len(uploads) == 2
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    assert make_run(**options).run().uploaded_to == "me/x" and len(uploads) == 3
    assert make_run(**options).run().uploaded_to == "me/x" and len(uploads) == 3
    # Without a name, the repository has that of the folder, and belongs to the account.
    assert make_run(**(options | {"hub_model_id": None})).run().uploaded_to == "me/run" and uploads[-1][0] == "run"
    assert (result.model_dir / "README.md").read_text(encoding="utf-8") == card


def test_an_upload_that_failed_is_tried_again(make_run, uploads, monkeypatch):
    def fail(*args, **kwargs):
        with hub_connection("Save it."):
            raise OfflineModeIsEnabled

    options = {"max_steps": 1, "push_to_hub": True, "hub_model_id": "me/x", "adapter": "none"}
    monkeypatch.setattr(training_run, "check_can_be_published", lambda *args: None)
    with monkeypatch.context() as context:
        context.setattr(training_run, "publish", fail)
        with pytest.raises(
            ConnectionError, match="cannot be reached: .* the same command, run again, uploads it"
        ) as error:
            make_run(**options).run()
    assert "Save it." not in str(error.value)
    result = make_run(**options).run()
    assert [name for name, _ in uploads] == ["me/x"] and result.uploaded_to == "me/x"
    card = (result.model_dir / "README.md").read_text(encoding="utf-8")
    assert "# me/x\n" in card and 'model="me/x"' in card


def test_an_upload_that_is_refused_leaves_the_card_as_it_is(make_run, data_file):
    options = {"max_steps": 1, "test_data": [data_file]}
    result = make_run(**options).run()
    files = [result.model_dir / "README.md", result.model_dir.parent / "result.json"]
    before = [path.read_bytes() for path in files]
    with pytest.raises(ValueError, match="include"):  # the parts of the base model are not on the Hub
        make_run(**options, push_to_hub=True, hub_model_id="me/x").run()
    assert [path.read_bytes() for path in files] == before


def test_the_card_keeps_its_name_if_the_upload_is_asked_for_after_the_training(
    make_run, data_file, uploads, monkeypatch
):
    options = {"max_steps": 1, "test_data": [data_file]}
    with monkeypatch.context() as context:
        context.setattr(training_run, "score_predictions", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_run(**options).run()
    result = make_run(**options, push_to_hub=True, hub_model_id="me/x").run()
    assert result.uploaded_to == "me/x" and len(uploads) == 1
    card = ModelCard.load(result.model_dir / "README.md")
    assert card.text.lstrip().startswith("# run\n") and card.data.model_name == "run"


def test_the_selections_of_the_trained_adapter_are_recorded(make_run, data_file, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "_RECORDED_ROWS", 1)
    variables = {"chat_template_kwargs": '{"enable_thinking": false}'}
    result = make_run(max_steps=1, learning_rate=0.05, warmup_steps=0, **variables).run()
    found = SelectionRecords.load(tmp_path / "run" / "selections.safetensors")
    rows = [next(row for row in read_examples(data_file) if row["task"] == task) for task in ("asr", "sounds")]
    expected = record_dataset(load_pipeline(str(result.model_dir), device="cpu"), rows)
    assert list(found.tasks) == ["asr", "sounds"] and list(found.inputs) == expected.inputs
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.queries, expected.queries, rtol=1e-4, atol=1e-5)


def test_the_card_names_the_data_sets_of_the_rows(make_run, examples, tmp_path):
    named = ["me/sounds", "openslr/librispeech_asr", "not a name", "me/sounds"]
    rows = [{**row, "hub_dataset": name} for row, name in zip(examples, named, strict=False)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = make_run(
        train_data=[str(tmp_path / "rows.jsonl")], adapter="none", max_steps=1, learning_rate=2e-4, seed=7
    ).run()
    card = ModelCard.load(result.model_dir / "README.md")
    assert card.data.datasets == ["me/sounds", "openslr/librispeech_asr"]
    assert "| adapter | none |" in card.text and "| steps | 1 |" in card.text and "| seed | 7 |" in card.text
    assert "prompts |" not in card.text and "| LoRA |" not in card.text
    (command,) = re.findall("```bash\n(peft-listen train .*)\n```", card.text)
    assert "--adapter none" in command and "--train-data path/to/rows.jsonl" in command
    assert "--model path/to/" in command and "--output-dir run" in command and str(tmp_path) not in command
    assert "`path/to/` stands for the folder on your machine" in card.text
    assert 'model="run/model"' in card.text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": "lora", "lora_r": 4, "lora_target_modules": ["all-linear"], "learning_rate": 1e-4},
        {"listen_selector": "residual", "listen_form": "paper", "listen_ignore_template": False, "seed": 3},
        {"feature_cache": "features", "init_keys_at_steps": [2], "warmup_steps": 3},
        {"task_weights": ["asr=2", "sounds=0.5"], "chat_template_kwargs": {"thinking": False}, "bf16": True},
        {"eval_strategy": "steps", "early_stopping_patience": 2, "metric_for_best_model": "mean_quality"},
    ],
)
def test_the_command_in_the_card_has_the_settings_of_the_run(
    make_run, base_folder, data_file, tmp_path, monkeypatch, changes
):
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(base_folder)
    Path("rows.jsonl").symlink_to(data_file)
    secret = {"hub_token": "hf_secret", "push_to_hub": True, "hub_model_id": "me/x"}
    given = make_run(model="base", train_data=["rows.jsonl"], eval_data=["rows.jsonl"], **secret, **changes)
    options = (given.model, given.adapter, given.listen, given.data)
    command = run_command(options, given.arguments)
    assert "secret" not in command and str(tmp_path) not in command
    assert "--model path/to/base " in command and command.endswith(" --output-dir run")
    assert ("--feature-cache features" in command) == ("feature_cache" in changes)
    words = shlex.split(command.replace("path/to/", ""))
    assert words[:2] == ["peft-listen", "train"]
    *again, arguments = train.parse("peft-listen train", [*words[2:], "--use-cpu"]).options
    assert run_settings(again, arguments, {}) == run_settings(options, given.arguments, {})


@pytest.mark.parametrize(
    "adapter",
    [
        pytest.param("listen", marks=pytest.mark.slow),
        pytest.param("lora", marks=pytest.mark.slow),
        "listen+lora",
        "none",
    ],
)
def test_each_adapter_is_trained_saved_and_resumed(make_run, tmp_path, adapter, data_file, capsys):
    options = {"adapter": adapter, "lora_dropout": 0.0, "weight_decay": 0.1, "test_data": [data_file]}
    whole = make_run(output_dir=str(tmp_path / "whole"), **options).run()
    with pytest.raises(KeyboardInterrupt):
        make_run([Interrupt(3)], **options).run()
    assert "Continuing from" not in capsys.readouterr().out
    resumed = make_run(**options).run()
    assert "Continuing from checkpoint-2 (step 2 of 4).\n" in capsys.readouterr().out
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    expected, found = weights(whole.model_dir), weights(resumed.model_dir)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0)
    assert any("lora_A" in name for _, name in found) == ("lora" in adapter)
    assert any("values" in name for _, name in found) == ("listen" in adapter)
    assert any("multi_modal_projector" in name for _, name in found)
    # The base model of these tests is saved as a whole, so a trained one is too.
    assert any("speech_tower" in name for _, name in found) == (adapter == "none")
    assert resumed.scores == whole.scores
    pipe = load_pipeline(str(resumed.model_dir), device="cpu")
    rows = read_examples(data_file)
    collator = AudioListenCollator(pipe.processor)
    generation = {"max_new_tokens": 3, "do_sample": False}
    assert answer_rows(pipe, rows, **generation) == answer_batches(pipe.model, collator, rows, 4, **generation)


def test_conversations_and_rows_of_several_clips_are_trained_and_scored(make_run, clips, examples, tmp_path):
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": clips[0]}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "a man"},
        {"role": "user", "content": [{"type": "audio", "audio": clips[1]}]},
        {"role": "assistant", "content": "a woman"},
    ]
    rows = [
        {"messages": messages, "task": "sounds"},
        {**examples[0], "audio": clips[1:3], "system": "Be brief."},
        {**examples[1], "audio": None},
        examples[2],
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(tmp_path / "rows.jsonl")
    variables = {"chat_template_kwargs": '{"enable_thinking": false}', "feature_cache": str(tmp_path / "features")}
    options = {"metrics": ["asr=cer", "sounds=cer"], "per_device_train_batch_size": 4}
    splits = {"train_data": [data], "eval_data": [data], "eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    result = make_run(**splits, **variables, **options).run()
    last = next(row for row in reversed(result.log_history) if "eval_loss" in row)
    # The model in training, whose encoders' outputs are cached, answers as the saved one.
    assert last["eval_sounds_cer"] == pytest.approx(result.scores["eval"]["sounds"].value)
    assert last["eval_asr_cer"] == pytest.approx(result.scores["eval"]["asr"].value)
    settings = json.loads((tmp_path / "run" / "eval" / "predictions.jsonl.settings.json").read_text())
    assert settings["generation"]["chat_template_kwargs"] == {"enable_thinking": False}
    last_only = make_run(
        train_data=[data], trained_answers="last", max_steps=1, output_dir=str(tmp_path / "last")
    ).run()
    assert losses(last_only)[0] != losses(result)[0]


def test_the_pool_does_not_see_what_variables_add_to_the_template(base_folder):
    base, processor = load_base(base_folder, ModelOptions(model=base_folder))
    processor.chat_template += "{% if is_short %}{{ '<|im_end|>QQ' }}{% endif %}"
    listen = ListenOptions(listen_pool_size=6, listen_prompt_length=2)
    model = add_adapter(base, processor, AdapterOptions(), listen, 0, {"is_short": True})
    added = set(processor.tokenizer("QQ")["input_ids"])
    assert added and added <= set(model.peft_config["default"].query_ignored_token_ids)


def test_both_adapters_are_active_in_the_loaded_model(make_run, data_file):
    result = make_run(adapter="listen+lora", max_steps=2, learning_rate=0.05).run()
    both = load_pipeline(str(result.model_dir), device="cpu")
    shutil.rmtree(result.model_dir / "lora")
    alone = load_pipeline(str(result.model_dir), device="cpu")
    batch = AudioListenCollator(both.processor)(read_examples(data_file))
    with torch.no_grad():
        losses = [float(pipe.model(**batch).loss) for pipe in (both, alone)]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_the_best_model_is_kept_and_training_stops_early(make_run, data_file):
    # No answer of this model is right, so the first evaluation stays the best.
    options = {"eval_data": [data_file], "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 9}
    early = {"early_stopping_patience": 2, "metric_for_best_model": "mean_quality", "save_total_limit": 1}
    result = make_run(**options, **early, learning_rate=0.02, warmup_steps=0).run()
    evaluations = [row for row in result.log_history if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [1, 2, 3]
    pipe = load_pipeline(str(result.model_dir), device="cpu")
    batch = AudioListenCollator(pipe.processor)(read_examples(data_file))
    with torch.no_grad():
        loss = float(pipe.model(**batch).loss)
    assert loss == pytest.approx(evaluations[0]["eval_loss"], abs=0.1)
    assert abs(loss - evaluations[-1]["eval_loss"]) > 0.2

    # Killed after the stop, before the model was saved: the training stays stopped.
    before = weights(result.model_dir)
    for name in ("training.json", "result.json"):
        (result.model_dir.parent / name).unlink()
    shutil.rmtree(result.model_dir)
    shutil.rmtree(result.model_dir.parent / "eval")
    again = make_run(**options, **early, learning_rate=0.02, warmup_steps=0).run()
    assert [row["step"] for row in again.log_history if "eval_loss" in row] == [1, 2, 3]
    after = weights(again.model_dir)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert again.scores == result.scores


def test_the_event_files_of_tensorboard_are_in_the_folder(make_run, tmp_path):
    pytest.importorskip("tensorboard", reason="the integration is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_run(max_steps=2, report_to=["tensorboard"]).run()
    (event_file,) = (tmp_path / "run" / "checkpoints").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(event_file))
    events.Reload()
    assert len(events.Scalars("train/live_prompts")) == len(events.Scalars("train/loss")) == 2


def test_a_resumed_run_continues_in_the_same_run_of_trackio(make_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the library is imported
    pytest.importorskip("trackio", reason="the integration is optional")
    options = {"report_to": ["trackio"], "project": "sounds"}
    with pytest.raises(KeyboardInterrupt):
        make_run([Interrupt(3)], **options).run()
    make_run(**options).run()
    database = sqlite3.connect(tmp_path / "trackio" / "sounds.db")
    rows = [(name, json.loads(values)) for name, values in database.execute("SELECT run_name, metrics FROM metrics")]
    assert {name for name, _ in rows} == {"run"}
    logged = [values for _, values in rows if "train/loss" in values]
    assert all(values.keys() >= {"train/key_loss", "train/live_prompts", "train/query_cosine"} for values in logged)
    assert len(logged) == 5  # the third step was repeated


def test_before_the_first_checkpoint_the_settings_may_be_corrected(make_run, tmp_path):
    with pytest.raises(OSError, match="cannot be loaded"):
        make_run(model="wrong-name").run()
    assert make_run(max_steps=1).run().model_dir.is_dir()


def test_features_of_a_cache_give_the_same_losses(make_run, data_file, tmp_path):
    options = {"eval_data": [data_file], "eval_strategy": "steps", "eval_steps": 4, "eval_rows_per_task": 1}
    plain = make_run(output_dir=str(tmp_path / "plain"), **options).run()
    cached = make_run(feature_cache=str(tmp_path / "features"), **options).run()
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-4)
    assert list((tmp_path / "features").rglob("*.safetensors"))
    assert cached.scores == plain.scores


def test_a_base_is_built_from_parts(make_run, published_parts, tmp_path, monkeypatch):
    from peft_listen.models.audio_listen.configuration_audio_listen import QFORMER_DEFAULTS
    from tests.small_models import QFORMER

    for name, value in QFORMER.items():
        monkeypatch.setitem(QFORMER_DEFAULTS, name, value)
    parts = {name: str(path) for name, path in published_parts.items()}
    result = make_run(model=None, **parts, listen_ignore_template=False, max_steps=1).run()
    assert not [name for path, name in weights(tmp_path / "run" / "base") if "language_model" in name]
    assert load_pipeline(str(result.model_dir), device="cpu").model.config.sound_config is not None


def test_other_settings_are_refused_with_the_differences(make_run, data_file, tmp_path):
    make_run(max_steps=1).run()
    with pytest.raises(ValueError) as error:
        make_run(max_steps=1, learning_rate=1e-2, lora_r=4, listen_pool_size=7).run()
    message = str(error.value)
    assert "has a run with other settings" in message
    assert "learning_rate: 0.0003 before, 0.01 now" in message and "lora_r: 8 before, 4 now" in message
    assert "listen_pool_size: 6 before, 7 now" in message and message.count(" before, ") == 3
    # What does not change the result may change.
    assert make_run(max_steps=1, logging_steps=5, report_to=[]).run().was_finished
    rows = Path(data_file).read_text().splitlines()
    (tmp_path / "fewer.jsonl").write_text("\n".join(rows[:2]))
    with pytest.raises(ValueError, match=r"rows\.train: \"4 rows, .*\" before, \"2 rows, .*\" now"):
        make_run(max_steps=1, train_data=[str(tmp_path / "fewer.jsonl")]).run()


def test_a_folder_of_something_else_is_refused(make_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty, and not the folder of a run"):
        make_run().run()


def test_a_half_written_checkpoint_is_removed(tmp_path):
    for step, state in ((2, {"global_step": 2}), (4, None), (6, "{")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            text = json.dumps(state) if isinstance(state, dict) else state
            (folder / "trainer_state.json").write_text(text)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert last_whole_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume_from_checkpoint": "x"}, "`resume_from_checkpoint` is not used"),
        (
            {"lora_target_modules": ["query"], "adapter": "lora"},
            r"\['query'\], which the language model does not have",
        ),
        ({"metrics": ["speech=wer"]}, "which have no rows"),
        ({"task_weights": ["speech=2"]}, "which have no rows"),
        ({"listen_prompt_length": 9}, "exceeds the size of the pool"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_run, changes, message):
    with pytest.raises(ValueError, match=message):
        make_run(**changes).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: ModelOptions(), "`speech`, `llm` missing"),
        (lambda: ModelOptions(llm="a"), "`speech` missing"),
        (lambda: ModelOptions(model="a", llm="b"), "Leave out one of the two"),
        (lambda: DataOptions(), "no training data"),
        (lambda: DataOptions(train_data=["a"], metrics=["wer"]), "expected TASK=METRIC"),
        (lambda: DataOptions(train_data=["a"], task_weights=["a"]), "expected TASK=WEIGHT"),
        (lambda: DataOptions(train_data=["a"], num_beams=0), "`num_beams` must be at least 1"),
        (lambda: RunArguments(remove_unused_columns=True), "must be false"),
        (lambda: RunArguments(early_stopping_patience=0), "must be at least 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        options()


def test_memory_is_pinned_for_an_accelerator_only():
    assert RunArguments(use_cpu=True).dataloader_pin_memory == torch.accelerator.is_available()
    assert not RunArguments(use_cpu=True, dataloader_pin_memory=False).dataloader_pin_memory


def test_error_rates_are_better_if_lower():
    def is_better_if_greater(name):
        return RunArguments(metric_for_best_model=name).greater_is_better

    assert [is_better_if_greater(name) for name in ("asr_wer", "loss", "mean_quality", "sv_accuracy", "cer")] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_an_adapter_is_not_a_base(make_adapted, base_folder, tmp_path):
    make_adapted("lora").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="which is an adapter"):
        load_base(str(tmp_path), ModelOptions(model="x"))
    with pytest.raises(OSError, match="base model 'none' cannot be loaded"):
        load_base("none", ModelOptions(model="x"))
    base, _ = load_base(base_folder, ModelOptions(model="x"))
    assert len(lora_targets(base, ["q_proj", "v_proj"])) == 4
    assert len(lora_targets(base, ["all-linear"])) == 14


def test_a_new_projector_is_prepared_once_unless_it_is_to_be_left(make_run, tmp_path, monkeypatch) -> None:
    calls = []

    def recording(*args):
        calls.append(args)
        prepare_projector(*args)

    monkeypatch.setattr(training_run, "prepare_projector", recording)

    def scales(**changes) -> torch.Tensor:
        result = make_run(max_steps=2, learning_rate=1e-6, **changes).run()
        weights = load_file(result.model_dir / "adapter_model.safetensors")
        (name,) = [name for name in weights if name.endswith("speech_layer_norm.weight")]
        return weights[name]

    prepared = scales()
    assert (prepared - 1).abs().min() > 1e-3
    assert len(calls) == 1
    left = scales(standardize_frames=False, output_dir=str(tmp_path / "left"))
    torch.testing.assert_close(left, torch.ones_like(left), atol=1e-4, rtol=0)
    assert len(calls) == 1
    # A run that continues has its projector in the checkpoint.
    (tmp_path / "run" / "training.json").unlink()
    torch.testing.assert_close(scales(), prepared)
    assert len(calls) == 1

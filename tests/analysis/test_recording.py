"""Recording a data set with a pipeline or a model, using tiny models and audio files."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from peft import get_peft_model
from transformers import pipeline

from peft_listen import ListenConfig
from peft_listen.analysis import SelectionRecords, record_dataset, save_report
from peft_listen.training import AudioListenCollator
from peft_listen.tuners.listen import find_listen_layer


@pytest.fixture(scope="module")
def adapted(make_adapted):
    model = make_adapted("listen")
    layer = find_listen_layer(model)
    with torch.no_grad():
        layer.listen_pools["default"].query_mean += 0.3
    return model


@pytest.fixture(scope="module")
def pipe(adapted, make_processor):
    return pipeline("audio-text-to-text", model=adapted, processor=make_processor())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(7):
        path = folder / f"clip_{number}.wav"
        time = np.arange(1600 * (number + 2)) / 16_000
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * 200 * (number + 1) * time), 16_000)
        task = ("pitch", "loudness")[number % 2]
        rows.append({"audio": str(path), "instruction": f"Which {task}?", "answer": "High.", "task": task})
    rows.append({"audio": None, "instruction": "Say a word.", "answer": "Word.", "task": "text"})
    return rows


def test_a_pipeline_and_a_model_with_a_collator_record_the_same(pipe, adapted, rows, make_processor) -> None:
    by_pipeline = record_dataset(pipe, rows, batch_size=3)
    collator = AudioListenCollator(make_processor())
    by_model = record_dataset(adapted, rows[:-1], collator=collator, batch_size=7)
    assert torch.equal(by_pipeline.indices[:-1], by_model.indices)
    torch.testing.assert_close(by_pipeline.queries[:-1], by_model.queries, rtol=1e-4, atol=1e-5)
    assert by_pipeline.tasks[:-1] == by_model.tasks


def test_rows_keep_their_order_tasks_and_names(pipe, rows) -> None:
    records = record_dataset(pipe, rows, batch_size=3)
    assert records.tasks == [row["task"] for row in rows]
    assert records.inputs[1] == "clip_1.wav · Which loudness?"
    assert records.inputs[-1] == "Say a word."
    alone = record_dataset(pipe, rows[4:5], batch_size=1)
    assert torch.equal(records.indices[4:5], alone.indices)


def test_rows_of_several_clips_and_turns_are_recorded_by_their_clips_and_last_question(
    pipe, adapted, rows, make_processor
):
    clips = [row["audio"] for row in rows[:2]]
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": clips[0]}, {"type": "text", "text": "Which pitch?"}]},
        {"role": "assistant", "content": "High."},
        {"role": "user", "content": [{"type": "audio", "audio": clips[1]}, {"type": "text", "text": "And now?"}]},
        {"role": "assistant", "content": "Low."},
    ]
    several = [{"messages": messages, "task": "chat"}, {**rows[0], "audio": clips}]
    records = record_dataset(pipe, several, batch_size=2)
    assert records.inputs == [f"clip_0.wav · clip_1.wav · {text}" for text in ("And now?", "Which pitch?")]
    collator = AudioListenCollator(make_processor(), trained_answers="last")
    by_model = record_dataset(adapted, several, collator=collator, batch_size=2)
    torch.testing.assert_close(records.queries, by_model.queries, rtol=1e-4, atol=1e-5)


def test_the_recorded_queries_are_those_compared_with_the_keys(pipe, rows) -> None:
    records = record_dataset(pipe, rows)
    cosine = F.normalize(records.queries, dim=-1) @ F.normalize(records.keys, dim=-1).T
    torch.testing.assert_close(cosine.gather(1, records.indices), records.scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(cosine.argmax(dim=-1), records.indices[:, 0])
    assert records.prompt_length == 3
    assert records.pool_size == 12


def test_the_configuration_is_recorded_as_json(pipe, rows) -> None:
    config = record_dataset(pipe, rows[:2]).config
    assert config["selector"] == "similarity"
    assert config["pool_size"] == 12
    assert json.loads(json.dumps(config)) == config


def test_rows_can_come_from_a_generator_and_are_read_once(pipe, rows) -> None:
    records = record_dataset(pipe, (row for row in rows), batch_size=3)
    assert records.tasks == [row["task"] for row in rows]


def test_selections_recorded_during_generation_give_the_same_records(pipe, adapted, rows) -> None:
    expected = record_dataset(pipe, rows, batch_size=3)
    with adapted.record_selections() as collected:
        pipe([{"audio": row["audio"], "text": row["instruction"]} for row in rows], batch_size=3, max_new_tokens=3)
    records = SelectionRecords.from_records(collected, adapted, [row["task"] for row in rows])
    assert torch.equal(records.indices, expected.indices)
    torch.testing.assert_close(records.queries, expected.queries)


def test_a_text_model_is_recorded_in_eval_mode_and_returned_to_training_mode(make_llm, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    model = get_peft_model(make_llm("llama"), ListenConfig(pool_size=8, prompt_length=2)).train()
    rows = [{"text": "a dog barks", "task": "one"}, {"text": "two", "task": "two"}, {"text": "a car", "task": "one"}]

    def collator(batch):
        return tokenizer([row["text"] for row in batch], return_tensors="pt", padding=True)

    step = find_listen_layer(model).listen_pools["default"].step
    records = record_dataset(model, rows, collator=collator, batch_size=2)
    # In training mode 1 to 8 prompts would be drawn, and the queries would enter the statistics.
    assert records.prompt_length == 2
    assert model.training
    assert find_listen_layer(model).listen_pools["default"].step == step
    assert records.inputs == ["a dog barks", "two", "a car"]


TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_text_pipeline_records_what_it_selects_for_an_answer(make_llm, make_tokenizer, template) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template, tokenizer.pad_token, tokenizer.padding_side = template, None, "right"
    model = get_peft_model(make_llm("llama"), ListenConfig(pool_size=8, prompt_length=2, init_weights=False))
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    model.train()
    questions = ["What is the capital of France?", "Why?", "Write the plural of mouse."]
    rows = [{"audio": None, "instruction": text, "answer": "x", "task": text[:3]} for text in questions]
    records = record_dataset(pipe, rows, batch_size=2)
    assert model.training
    assert records.inputs == questions and records.tasks == ["Wha", "Why", "Wri"]
    model.eval()
    prompts = [[{"role": "user", "content": text}] if template else text for text in questions]
    with model.record_selections() as alone:
        for prompt in prompts:
            pipe(prompt, max_new_tokens=1, do_sample=False)
    assert torch.equal(records.indices, torch.cat([record.indices for record in alone]))
    torch.testing.assert_close(records.scores, torch.cat([record.scores for record in alone]), rtol=1e-4, atol=1e-5)


def test_rows_that_a_text_pipeline_cannot_ask_are_refused(make_llm, make_tokenizer) -> None:
    model = get_peft_model(make_llm("llama"), ListenConfig(pool_size=8, prompt_length=2))
    tokenizer = make_tokenizer()
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    fine = {"instruction": "Why?", "task": "a"}
    with pytest.raises(ValueError, match="Row 1 has audio, but the model is a language model without audio"):
        record_dataset(pipe, [fine, {**fine, "audio": "clip.wav"}])
    with pytest.raises(ValueError, match="Row 0 has no `instruction`: expected a string, got None"):
        record_dataset(pipe, [{"task": "a"}])
    with pytest.raises(ValueError, match="Row 1 has 2 messages, but the tokenizer has no chat template"):
        record_dataset(pipe, [fine, {**fine, "system": "Be brief."}], batch_size=1)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match="The chat template does not render row 0 .*no system role"):
        record_dataset(pipe, [fine])


def test_invalid_arguments_raise(pipe, adapted, rows) -> None:
    with pytest.raises(ValueError, match="A model needs `collator=`"):
        record_dataset(adapted, rows)
    with pytest.raises(ValueError, match="takes no `collator`"):
        record_dataset(pipe, rows, collator=list)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        record_dataset(pipe, rows, batch_size=0)
    with pytest.raises(ValueError, match="There are no rows to record"):
        record_dataset(pipe, [])
    with pytest.raises(ValueError, match="Row 1 has no task: expected a mapping with a string `task`"):
        record_dataset(pipe, [rows[0], {"audio": rows[0]["audio"], "instruction": "Who?"}])


def test_a_model_without_an_active_adapter_raises(adapted, pipe, rows, make_model, make_processor) -> None:
    bare = pipeline("audio-text-to-text", model=make_model(), processor=make_processor())
    with pytest.raises(ValueError, match="There is no LiSTEN adapter in AudioListenForCausalLM"):
        record_dataset(bare, rows)
    with (
        adapted.disable_adapter(),
        pytest.raises(ValueError, match="No selection was recorded. Run the model while the adapter is active"),
    ):
        record_dataset(pipe, rows[:1])


def test_records_with_different_prompt_lengths_raise(adapted, pipe, rows) -> None:
    with adapted.record_selections() as collected:
        pipe(rows[0], max_new_tokens=1)
        with adapted.use_prompt_length(5):
            pipe(rows[1], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"different numbers of prompts, \[3, 5\]"):
        SelectionRecords.from_records(collected, adapted, ["one", "two"])


def test_a_file_name_that_is_not_utf8_can_be_reported(pipe, rows, tmp_path) -> None:
    name = f"{tmp_path}/\udcff.wav"
    shutil.copy(rows[0]["audio"], name)
    records = record_dataset(pipe, [{**rows[0], "audio": name}, {**rows[0], "audio": {"path": name}}])
    assert records.inputs == [r"\udcff.wav · Which pitch?"] * 2
    records.save(tmp_path / "selections.safetensors")
    save_report(records, tmp_path / "page.html", title="Prompts of \udcff.safetensors")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert r"\udcff.wav · Which pitch?" in page
    assert SelectionRecords.load(tmp_path / "selections.safetensors").inputs == records.inputs


@pytest.mark.parametrize("task", ["\ud83d", "a\udfff", "\ude00\ud83d"])
def test_a_task_that_is_not_unicode_is_refused_before_anything_is_written(pipe, rows, task) -> None:
    with pytest.raises(ValueError, match=r"The task of row 1 contains half a surrogate pair"):
        record_dataset(pipe, [rows[0], {**rows[1], "task": task}])

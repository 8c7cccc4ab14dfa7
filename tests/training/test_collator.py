"""Batches of the collator: prompts as in generation, supervision of the answers only, and errors for missing data."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from peft_listen.training import AudioListenCollator, FeatureCache
from tests import small_models


IGNORED = -100


@pytest.fixture(scope="module")
def model(make_model):
    return make_model().eval()


@pytest.fixture(scope="module")
def cache(model, processor, clips, tmp_path_factory):
    cache = FeatureCache(tmp_path_factory.mktemp("features"), model)
    cache.build(model, processor, clips)
    return cache


def conversation(example):
    content = [{"type": "audio", "path": example["audio"]}, {"type": "text", "text": example["instruction"]}]
    return [{"role": "user", "content": content}]


def generation_prompt(processor, example):
    """Returns the prompt of one example as `generate` receives it."""
    inputs = processor.apply_chat_template(
        conversation(example), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return inputs["input_ids"][0].tolist()


def rows(batch):
    """Yields the prompt and answer of each row, without padding."""
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True):
        supervised = labels != IGNORED
        assert (labels[supervised] == ids[supervised]).all()
        yield ids[mask & ~supervised].tolist(), ids[supervised].tolist()


@pytest.mark.parametrize("chat_template", ["own", None])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_prompt_equals_that_of_generation_and_the_answer_follows_it(
    make_processor, make_tokenizer, examples, adds_bos, chat_template
):
    kwargs = {} if chat_template == "own" else {"chat_template": None}
    processor = make_processor(tokenizer=make_tokenizer(adds_bos=adds_bos, **kwargs))
    batch = AudioListenCollator(processor)(examples)
    for example, (prompt, answer) in zip(examples, rows(batch), strict=True):
        assert prompt == generation_prompt(processor, example)
        text = processor.tokenizer.decode(answer)
        assert text.strip() == example["answer"] + "<|im_end|>"


def test_rows_are_padded_on_the_left_and_answers_end_at_the_right_edge(processor, examples):
    batch = AudioListenCollator(processor)(examples)
    lengths = batch["attention_mask"].sum(-1)
    assert len(set(lengths.tolist())) > 1
    assert (batch["attention_mask"].diff(dim=-1) >= 0).all()
    assert (batch["labels"][:, -1] != IGNORED).all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == processor.tokenizer.pad_token_id).all()


def test_the_kept_logits_cover_the_longest_answer(processor, examples):
    batch = AudioListenCollator(processor)(examples)
    longest = int((batch["labels"] != IGNORED).sum(-1).max())
    assert batch["logits_to_keep"] == longest + 1
    assert batch["shift_labels"].shape == (len(examples), longest + 1)
    shifted = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    assert torch.equal(batch["shift_labels"], shifted[:, -longest - 1 :])
    assert (batch["shift_labels"] != IGNORED).sum() == (batch["labels"] != IGNORED).sum()


def test_kept_logits_give_the_loss_and_the_gradients_of_all_logits(make_model, processor, examples):
    model = make_model()
    losses, gradients = [], []
    for supervised_logits_only in (True, False):
        batch = AudioListenCollator(processor, supervised_logits_only=supervised_logits_only)(examples)
        assert ("logits_to_keep" in batch) == ("shift_labels" in batch) == supervised_logits_only
        model.zero_grad()
        output = model(**batch)
        assert output.logits.shape[1] == (
            batch["logits_to_keep"] if supervised_logits_only else len(batch["labels"][0])
        )
        output.loss.backward()
        losses.append(output.loss.detach())
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    torch.testing.assert_close(losses[0], losses[1])
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1])


def test_cached_and_raw_features_give_the_same_batch_and_logits(model, processor, cache, examples):
    raw = AudioListenCollator(processor)(examples)
    cached = AudioListenCollator(processor, feature_cache=cache)(examples)
    assert "input_features" in raw and "speech_features" in cached and "input_features" not in cached
    for name in ("input_ids", "attention_mask", "labels", "shift_labels"):
        assert torch.equal(raw[name], cached[name]), name
    with torch.no_grad():
        torch.testing.assert_close(model(**cached).logits, model(**raw).logits)


def test_a_clip_of_several_chunks_is_cached_like_any_other(model, processor, write_wav, tmp_path, examples):
    long = {**examples[0], "audio": str(write_wav(tmp_path / "long.wav", seconds=31.0))}
    cache = FeatureCache(tmp_path / "features", model)
    assert cache.build(model, processor, [long["audio"], examples[1]["audio"]]) == 2
    raw = AudioListenCollator(processor)([examples[1], long])
    cached = AudioListenCollator(processor, feature_cache=cache)([examples[1], long])
    assert len(raw["input_features"]) == len(cached["speech_features"]) == 3
    assert torch.equal(raw["input_ids"], cached["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model(**cached).logits, model(**raw).logits)


@pytest.mark.parametrize("is_cached", [False, True])
def test_rows_with_and_without_audio_can_be_mixed(model, processor, cache, examples, is_cached):
    text_only = {"audio": None, "instruction": "Say yes.", "answer": "yes", "task": "text"}
    collator = AudioListenCollator(processor, feature_cache=cache if is_cached else None)
    batch = collator([text_only, examples[0]])
    assert processor.audio_token_id not in batch["input_ids"][0]
    assert processor.audio_token_id in batch["input_ids"][1]
    with torch.no_grad():
        alone = collator([examples[0]])
        torch.testing.assert_close(
            model(**{**batch, "logits_to_keep": 2, "labels": None}).logits[1],
            model(**{**alone, "logits_to_keep": 2, "labels": None}).logits[0],
        )
    only_text = collator([text_only])
    assert not any("features" in name or "input_values" in name for name in only_text)
    assert torch.isfinite(model(**only_text).loss)


def test_a_row_of_a_datasets_audio_column_is_read_like_a_path(processor, examples):
    with open(examples[0]["audio"], "rb") as file:
        row = {**examples[0], "audio": {"bytes": file.read(), "path": "clip0.wav"}}
    collator = AudioListenCollator(processor)
    torch.testing.assert_close(collator([row])["input_features"], collator([examples[0]])["input_features"])


def test_removed_columns_are_named(processor, examples):
    collator = AudioListenCollator(processor)
    with pytest.raises(
        KeyError, match=r"has no instruction and no answer; it has .*'audio'.*remove_unused_columns=False"
    ):
        collator([{"audio": examples[0]["audio"]}])
    without_audio = [{name: value for name, value in examples[0].items() if name != "audio"}]
    with pytest.raises(KeyError, match=r"No example of the batch has an `audio` column.*skip_prepare_dataset"):
        collator(without_audio)


def test_a_broken_file_is_named(processor, examples, tmp_path):
    collator = AudioListenCollator(processor)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF\x00\x00")
    with pytest.raises(OSError, match=r"broken\.wav"):
        collator([{**examples[0], "audio": str(broken)}])
    with pytest.raises(FileNotFoundError, match=r"absent\.wav"):
        collator([{**examples[0], "audio": str(tmp_path / "absent.wav")}])
    samples = {"array": np.array([0.0, np.nan]), "sampling_rate": 16_000, "path": "damaged.wav"}
    with pytest.raises(ValueError, match=r"damaged\.wav: 1 of 2 audio samples are NaN"):
        collator([examples[0], {**examples[1], "audio": samples}])
    with pytest.raises(ValueError, match="empty"):
        collator([{**examples[0], "audio": {"array": np.zeros(0), "sampling_rate": 16_000}}])


@pytest.mark.parametrize("field", ["instruction", "answer"])
def test_the_audio_token_in_a_text_raises(processor, cache, examples, field):
    for feature_cache in (None, cache):
        with pytest.raises(ValueError, match=r"'of <\|audio\|>'.*is a placeholder for the clip"):
            AudioListenCollator(processor, feature_cache=feature_cache)([{**examples[0], field: "of <|audio|>"}])


def test_a_template_that_does_not_render_the_answer_raises(make_processor, make_tokenizer, examples):
    template = (
        "{% for message in messages %}{{ message['role'] }}{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    )
    collator = AudioListenCollator(make_processor(tokenizer=make_tokenizer(chat_template=template)))
    with pytest.raises(
        ValueError, match="does not render the assistant's answer directly after the generation prompt"
    ):
        collator(examples[:1])


HALVES = {"first": "a \ud83d", "second": "\udc00 b", "in the wrong order": "\ude00\ud83d", "of a file name": "\udcff"}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("field", ["instruction", "answer"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("row", [0, 1])
def test_half_a_surrogate_pair_is_refused_by_row_and_field(processor, cache, examples, half, field, cached, row):
    collator = AudioListenCollator(processor, feature_cache=cache if cached else None)
    batch = [dict(example) for example in examples[:2]]
    batch[row][field] = HALVES[half]
    with pytest.raises(ValueError, match=rf"^Row {row} of the batch: its `{field}` contains half a surrogate pair"):
        collator(batch)


@pytest.mark.parametrize("half", HALVES)
def test_half_a_surrogate_pair_is_refused_in_prompts(processor, half):
    chat = [{"role": "user", "content": [{"type": "text", "text": HALVES[half]}]}]
    pipe = pipeline("audio-text-to-text", model=small_models.make_model(), processor=processor)
    for call in (
        lambda: processor(text=["What?", HALVES[half]]),
        lambda: processor.apply_chat_template([chat[:], chat], tokenize=True),
        lambda: pipe(text=HALVES[half]),
    ):
        with pytest.raises(ValueError, match=r"^Prompt [01] contains half a surrogate pair"):
            call()


@pytest.mark.parametrize("examples", [[], ()])
@pytest.mark.parametrize("cached", [False, True])
def test_an_empty_batch_is_refused(processor, cache, examples, cached):
    with pytest.raises(ValueError, match="The batch is empty: the collator got no examples"):
        AudioListenCollator(processor, feature_cache=cache if cached else None)(examples)

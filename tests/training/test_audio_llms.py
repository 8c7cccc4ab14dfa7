"""
Audio language models of transformers: their prompts are those of their own processors, and an adapter is trained, saved, loaded
by its name and asked, with rows of all kinds in one batch.
"""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    Trainer,
    TrainingArguments,
    WhisperProcessor,
    pipeline,
)

from peft_listen import ListenConfig
from peft_listen.audio import AudioLimits, load_audio
from peft_listen.chat_encoding import TextChatEncoder, make_chat_encoder, register_chat_encoder
from peft_listen.evaluation.answer_scores import row_scores
from peft_listen.models.audio_listen import audio_chat_template
from peft_listen.pipelines.loading import load_pipeline
from peft_listen.rows import with_answer
from peft_listen.training import (
    AudioListenCollator,
    FeatureCache,
    ListenCallback,
    chat_template_token_ids,
    create_listen_optimizer,
)
from tests import small_audio_llms, small_models
from tests.small_audio_llms import AUDIO_FLAMINGO, QWEN2_AUDIO, VOXTRAL


TEXT = [QWEN2_AUDIO, AUDIO_FLAMINGO]
ENDS = {QWEN2_AUDIO: "<|im_end|>", AUDIO_FLAMINGO: "<|im_end|>", VOXTRAL: "</s>"}


@pytest.fixture(params=small_audio_llms.NAMES)
def name(request):
    return request.param


@pytest.fixture
def processor(name, audio_llm_folder):
    return AutoProcessor.from_pretrained(audio_llm_folder(name))


@pytest.fixture
def model(name, audio_llm_folder):
    auto_class = AutoModelForSeq2SeqLM if name == AUDIO_FLAMINGO else AutoModelForMultimodalLM
    return auto_class.from_pretrained(audio_llm_folder(name)).eval()


@pytest.fixture
def rows(clips):
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": clips[0]}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "a man"},
        {"role": "user", "content": [{"type": "audio", "audio": clips[1]}, {"type": "text", "text": "And here?"}]},
        {"role": "assistant", "content": "a dog"},
    ]
    return [
        {"audio": clips[0], "instruction": "What is it?", "answer": "a fox"},
        {"audio": clips[1:3], "instruction": "Which is louder?", "answer": "the first"},
        {"audio": None, "instruction": "Say yes.", "answer": "yes"},
        {"messages": messages},
    ]


def runs(batch, row):
    """The prompt before the last answer, and the answers, of a row without padding."""
    ids, labels = batch["input_ids"][row], batch["labels"][row]
    last = int((labels == -100).nonzero()[-1]) + 1
    prompt = ids[:last][batch["attention_mask"][row][:last].bool()]
    return prompt.tolist(), labels[labels != -100].tolist()


def test_the_prompt_is_that_of_the_processor_itself(name, processor, clips):
    row = {"audio": clips[0], "instruction": "What is it?", "answer": "a fox"}
    batch = AudioListenCollator(processor)([row])
    if name == VOXTRAL:
        parts = [{"type": "audio", "path": clips[0]}, {"type": "text", "text": row["instruction"]}]
        expected = processor.apply_chat_template([{"role": "user", "content": parts}])
    else:
        parts = [{"type": "audio"}, {"type": "text", "text": row["instruction"]}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        expected = processor(text=[text], audio=[load_audio(clips[0])], return_tensors="pt")
    prompt, answer = runs(batch, 0)
    assert prompt == expected["input_ids"][0].tolist()
    assert processor.tokenizer.decode(answer) == "a fox" + ENDS[name]
    audio = expected.keys() - {"input_ids", "attention_mask"}
    assert audio and audio == batch.keys() - {"input_ids", "attention_mask", "labels"}
    for key in audio:
        torch.testing.assert_close(batch[key], expected[key])


def test_rows_of_all_kinds_are_the_same_alone_and_in_a_batch(name, processor, model, rows):
    collator = AudioListenCollator(processor)
    together = collator(rows)
    answers = [["a fox"], ["the first"], ["yes"], ["a man", "a dog"]]
    pipe = pipeline("audio-text-to-text", model=model, processor=processor, max_new_tokens=3)
    outputs = pipe(rows, batch_size=4)
    with torch.no_grad():
        logits = model(**{**together, "labels": None}).logits[:, -1]
        for number, row in enumerate(rows):
            alone = collator([row])
            assert runs(alone, 0) == runs(together, number)
            torch.testing.assert_close(
                model(**{**alone, "labels": None}).logits[0, -1], logits[number], rtol=1e-3, atol=1e-4
            )
            expected = "".join(answer + ENDS[name] for answer in answers[number])
            assert processor.tokenizer.decode(runs(alone, 0)[1]) == expected
            assert pipe(row) == outputs[number]
            # The pipeline has the prompt of the training.
            inputs = pipe.collate([pipe.preprocess(row)])["model_inputs"]
            assert inputs["input_ids"][0].tolist() == runs(alone, 0)[0]


def test_answers_are_scored_by_their_log_probabilities(processor, model, rows):
    compared = ("yes", "no")
    scores = row_scores(
        model, AudioListenCollator(processor), [{**row, "task": "t"} for row in rows], {"t": compared}, batch_size=4
    )
    last = AudioListenCollator(processor, trained_answers="last")
    for row, score in zip(rows, scores, strict=True):
        batches = [last([with_answer(row, answer)]) for answer in compared]
        with torch.no_grad():
            # The loss is the mean over the tokens of the answer.
            sums = [-float(model(**batch).loss) * int((batch["labels"] != -100).sum()) for batch in batches]
        assert score == pytest.approx(sums[0] - sums[1], abs=1e-2, rel=1e-3)


def test_an_adapter_is_trained_saved_loaded_by_its_name_and_asked(name, processor, model, rows, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = ListenConfig(
        pool_size=8,
        prompt_length=4,
        query_ignored_token_ids=chat_template_token_ids(processor),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    arguments = TrainingArguments(
        str(tmp_path / "checkpoints"),
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=0.02,
        logging_steps=1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
    )
    trainer = Trainer(
        adapted,
        arguments,
        train_dataset=rows,
        data_collator=AudioListenCollator(processor),
        optimizers=(create_listen_optimizer(adapted, arguments), None),
        callbacks=[ListenCallback(init_keys_at_steps=(2,))],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1]["loss"] < 0.97 * logged[0]["loss"]
    assert {"key_loss", "live_prompts", "top_prompt_share"} <= logged[0].keys()
    after = adapted.get_base_model().state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())

    adapted.save_pretrained(tmp_path / "adapter")
    pipe = pipeline("audio-text-to-text", model=adapted.eval(), processor=processor, max_new_tokens=4)
    expected = [pipe(row)[0]["generated_text"] for row in rows]
    loaded = load_pipeline(str(tmp_path / "adapter"), device="cpu")
    assert [output[0]["generated_text"] for output in loaded(rows, batch_size=2, max_new_tokens=4)] == expected
    by_name = pipeline("audio-text-to-text", model=str(tmp_path / "adapter"), device="cpu", max_new_tokens=4)
    assert by_name(rows[0])[0]["generated_text"] == expected[0]
    with adapted.disable_adapter():
        assert [pipe(row)[0]["generated_text"] for row in rows] != expected


def test_lora_is_trained_with_the_same_collator(processor, model, rows):
    lora = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    batch = AudioListenCollator(processor)(rows)
    lora(**batch).loss.backward()
    gradients = [weight.grad.abs().max() for weight in lora.parameters() if weight.requires_grad]
    assert gradients and min(gradients) > 0


@pytest.mark.parametrize("name", [QWEN2_AUDIO], indirect=True)
def test_a_clip_that_a_processor_cuts_off_gives_a_warning(processor):
    row = {"audio": {"array": np.full(31 * 16_000, 0.1), "sampling_rate": 16_000}, "instruction": "a", "answer": "b"}
    with pytest.warns(
        UserWarning, match=r"lasts 31.00 s, and Qwen2AudioProcessor takes the first 30 s .* 1.00 s are lost"
    ):
        AudioListenCollator(processor)([row])


@pytest.mark.parametrize("name", [AUDIO_FLAMINGO], indirect=True)
def test_a_clip_that_a_processor_splits_gives_no_warning(processor, recwarn):
    row = {"audio": {"array": np.full(31 * 16_000, 0.1), "sampling_rate": 16_000}, "instruction": "a", "answer": "b"}
    assert len(AudioListenCollator(processor)([row])["input_features"]) == 2
    assert not [warning for warning in recwarn if "are lost" in str(warning.message)]


def test_limits_and_broken_files_are_those_of_all_clips(processor, rows, tmp_path):
    with pytest.raises(OSError, match="clip0.wav"):
        AudioListenCollator(processor, limits=AudioLimits(max_seconds=0.5))(rows[:1])
    with pytest.raises(FileNotFoundError, match=r"absent\.wav"):
        AudioListenCollator(processor)([{**rows[0], "audio": str(tmp_path / "absent.wav")}])


def test_a_feature_cache_is_for_the_models_of_this_package(processor, tmp_path):
    cache = FeatureCache(tmp_path, small_models.make_chat_model())
    with pytest.raises(ValueError, match=f"{type(processor).__name__} is the processor of another model"):
        AudioListenCollator(processor, feature_cache=cache)


@pytest.mark.parametrize("name", TEXT, indirect=True)
def test_a_template_that_drops_audio_is_refused(processor, rows):
    processor.chat_template = small_models.CHAT_TEMPLATE.replace(
        "message['content']", "message['content'][-1]['text']"
    )
    with pytest.raises(ValueError, match="Row 0 of the batch: The chat template "):
        AudioListenCollator(processor)(rows[:1])


@pytest.mark.parametrize("name", [VOXTRAL], indirect=True)
def test_what_mistral_common_cannot_do_is_refused(processor, model, rows):
    with pytest.raises(
        ValueError, match="has no chat template, so that the variables .'enable_thinking'. have no effect"
    ):
        AudioListenCollator(processor, chat_template_kwargs={"enable_thinking": False})
    pipe = pipeline("audio-text-to-text", model=model, processor=processor, max_new_tokens=2)
    with pytest.raises(ValueError, match="cannot continue a message of the assistant"):
        pipe(rows[3]["messages"])
    two_questions = [rows[3]["messages"][0], {"role": "system", "content": "Hm."}]
    with pytest.raises(ValueError, match="mistral-common does not encode these messages .* user, system"):
        pipe(two_questions)


def test_another_processor_is_refused_or_registered(monkeypatch, clips):
    tokenizer = small_models.make_chat_tokenizer()
    processor = WhisperProcessor(small_models.WhisperFeatureExtractor(), tokenizer)
    with pytest.raises(ValueError, match="WhisperProcessor is not supported: it needs a `chat_template`"):
        AudioListenCollator(processor)

    monkeypatch.setattr("peft_listen.chat_encoding._ENCODERS", [])

    @register_chat_encoder
    class TextOnly(TextChatEncoder):
        @staticmethod
        def supports(processor):
            return isinstance(processor, WhisperProcessor)

        def _with_clips(self, row, clips):
            return row

    processor.audio_token = "<|audio|>"
    processor.chat_template = audio_chat_template(processor.audio_token, tokenizer.chat_template)
    (prompt,), audio = make_chat_encoder(processor).encode_prompts([([{"role": "user", "content": "Hi"}], [])])
    assert tokenizer.decode(prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n" and not audio
    batch = AudioListenCollator(processor)([{"audio": None, "instruction": "Hi", "answer": "ho"}])
    assert batch["labels"][0, -1] == tokenizer.eos_token_id

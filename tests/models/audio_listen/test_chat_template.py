import wave

import numpy as np
import pytest
import torch
from jinja2.exceptions import TemplateError
from transformers import WhisperFeatureExtractor

from peft_listen import AudioListenProcessor
from peft_listen.models.audio_listen.chat_template import audio_chat_template


AUDIO = "<|audio|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Templates that trim, refuse system messages, and check that roles alternate.
STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<turn>' + message['role'] + '\n' + message['content'] | trim + '</turn>\n' }}{% endfor %}"
)
# Templates that render lists of parts and do not support audio.
PARTS = (
    "{% for message in messages %}{{ message['role'] + ':' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}"
)


def part(**kwargs) -> dict:
    return {"type": "audio" if "text" not in kwargs else "text", **kwargs}


@pytest.fixture
def conversation(clip) -> list[dict]:
    audio = {"array": clip(1.0), "sampling_rate": 16000}
    return [
        {"role": "user", "content": [part(audio=audio), part(text="What is "), part(text="said?")]},
        {"role": "assistant", "content": "the lazy dog"},
        {"role": "user", "content": [part(text="And "), part(audio=audio), part(audio=audio), part(text=" again?")]},
    ]


def render(processor: AudioListenProcessor, *args, **kwargs) -> str:
    return processor.apply_chat_template(*args, tokenize=False, **kwargs)


def test_language_models_without_a_template_use_salmonns_format(make_processor, conversation) -> None:
    assert render(make_processor(), conversation, add_generation_prompt=True) == (
        "<s>USER: <|audio|>What is said?\nASSISTANT: the lazy dog</s>\nUSER: And <|audio|><|audio|> again?\nASSISTANT:"
    )
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "fox"}]
    assert render(make_processor(), system) == "<s>Be brief.\nUSER: fox\n"


def with_template(make_tokenizer, template: str) -> AudioListenProcessor:
    tokenizer = make_tokenizer(chat_template=template)
    return AudioListenProcessor.from_sub_models_pretrained(speech=WhisperFeatureExtractor(), llm=tokenizer)


def test_the_language_models_template_is_kept(make_tokenizer, conversation) -> None:
    assert render(with_template(make_tokenizer, CHATML), conversation, add_generation_prompt=True) == (
        "<|im_start|>user\n<|audio|>What is said?<|im_end|>\n<|im_start|>assistant\nthe lazy dog<|im_end|>\n"
        "<|im_start|>user\nAnd <|audio|><|audio|> again?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(with_template(make_tokenizer, STRICT), conversation[:1]) == (
        "<s><turn>user\n<|audio|>What is said?</turn>\n"
    )
    assert render(with_template(make_tokenizer, PARTS), conversation[:2]) == (
        "user:<|audio|>What is said?\nassistant:the lazy dog\n"
    )
    with pytest.raises(TemplateError, match="Roles must alternate"):
        render(with_template(make_tokenizer, STRICT), conversation[1:])


def test_plain_strings_render_as_with_the_language_models_tokenizer(make_tokenizer) -> None:
    messages = [{"role": "user", "content": "What is said?"}, {"role": "assistant", "content": "fox"}]
    for template in (CHATML, STRICT, PARTS):
        expected = make_tokenizer(chat_template=template).apply_chat_template(messages, tokenize=False)
        assert render(with_template(make_tokenizer, template), messages) == expected


def test_conversations_are_not_changed(make_processor, conversation) -> None:
    before = [dict(message) for message in conversation]
    make_processor().apply_chat_template(conversation, tokenize=True, return_dict=True)
    assert all(new["content"] is old["content"] for new, old in zip(conversation, before, strict=True))


@pytest.mark.parametrize("template", [None, CHATML, STRICT])
def test_tokenizing_equals_rendering_then_calling_the_processor(make_tokenizer, conversation, clip, template) -> None:
    processor = with_template(make_tokenizer, template)
    inputs = processor.apply_chat_template(conversation[:1], tokenize=True, return_dict=True)
    text = render(processor, conversation[:1])
    expected = processor(text=text, audio=[clip(1.0)], sampling_rate=16000, add_special_tokens=False)
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], tensor) for name, tensor in expected.items())
    assert inputs["input_ids"][0].tolist().count(processor.audio_token_id) == 3


@torch.no_grad()
def test_generation_from_batches_of_conversations(make_model, make_processor, conversation, clip) -> None:
    processor, model = make_processor(), make_model()
    other = [{"role": "user", "content": "What is a fox?"}]
    inputs = processor.apply_chat_template(
        [conversation, other], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    assert inputs["input_features"].shape[0] == 3
    assert (inputs["input_ids"] == processor.audio_token_id).sum(-1).tolist() == [9, 0]
    assert inputs["attention_mask"][1, 0] == 0
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 2


@pytest.mark.parametrize("key", ["audio", "path", "url"])
def test_audio_parts_may_be_files(make_processor, clip, tmp_path, key: str) -> None:
    path = tmp_path / "clip.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((clip(1.0) * 32767).astype(np.int16).tobytes())
    messages = [{"role": "user", "content": [{"type": "audio", key: str(path)}]}]
    inputs = make_processor().apply_chat_template(messages, tokenize=True, return_dict=True)
    assert inputs["input_features_mask"].sum() == 100


def test_the_sampling_rate_of_plain_arrays_is_required(make_processor, clip) -> None:
    messages = [{"role": "user", "content": [{"type": "audio", "audio": clip(1.0)}]}]
    processor = make_processor()
    with pytest.raises(ValueError, match=r"Clip 0 of 1: .*sampling_rate"):
        processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    for rate, frames in ((16000, 100), (8000, 200)):
        for where in ({"sampling_rate": rate}, {"audio_kwargs": {"sampling_rate": rate}}):
            inputs = processor.apply_chat_template(
                messages, tokenize=True, return_dict=True, processor_kwargs=dict(where)
            )
            assert inputs["input_features_mask"].sum() == frames


def test_the_assistants_tokens_are_masked_correctly_after_audio(make_processor, conversation) -> None:
    processor = make_processor()
    short = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "dog"}]
    inputs = processor.apply_chat_template(
        [conversation[:2], short], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = inputs["assistant_masks"]
    assert mask.shape == inputs["input_ids"].shape
    answers = [processor.decode(ids[row.bool()]) for ids, row in zip(inputs["input_ids"], mask, strict=True)]
    assert answers == [" the lazy dog</s>", " dog</s>"]


def test_an_answer_is_tokenised_as_it_is_generated(make_processor, conversation) -> None:
    processor = make_processor()
    prompt = processor.apply_chat_template(
        conversation[:1], tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"][0]
    whole = processor.apply_chat_template(conversation[:2], tokenize=True, return_dict=True)["input_ids"][0]
    assert whole[: len(prompt)].tolist() == prompt.tolist()


def test_other_parts_are_refused(make_processor) -> None:
    messages = [{"role": "user", "content": [{"type": "image", "path": "cat.png"}]}]
    with pytest.raises(TemplateError, match="Only audio and text can be in a message, got image"):
        render(make_processor(), messages)
    with pytest.raises(TemplateError, match="role of a message must be system, user or assistant, got tool"):
        render(make_processor(), [{"role": "tool", "content": "x"}])


def test_the_audio_token_is_quoted_in_the_template() -> None:
    template = audio_chat_template("<'\\>", "{{ messages[0]['content'] }}")
    from transformers.utils.chat_template_utils import render_jinja_template

    conversations = [[{"role": "user", "content": [{"type": "audio"}]}]]
    assert render_jinja_template(conversations, chat_template=template)[0] == ["<'\\>"]


def test_a_template_is_extended_only_once() -> None:
    template = audio_chat_template(AUDIO, CHATML)
    assert audio_chat_template(AUDIO, template) == template


def test_processors_built_by_their_constructor_have_a_template(make_tokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=CHATML)
    tokenizer.add_tokens([AUDIO], special_tokens=True)
    processor = AudioListenProcessor(WhisperFeatureExtractor(), tokenizer)
    assert processor.chat_template == audio_chat_template(AUDIO, CHATML)
    assert AudioListenProcessor(WhisperFeatureExtractor(), tokenizer, chat_template="own").chat_template == "own"

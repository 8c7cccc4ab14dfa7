"""Composes a base model: a frozen Whisper encoder, a frozen LLM, and an untrained projector between them.

    python -m offline.build_base OUTPUT_DIR --speech SPEECH --llm LLM [--sound SOUND]

`SPEECH`, `LLM` and `SOUND` are folders or Hub ids; `SOUND` may also be an original BEATs checkpoint. The folder stores
references to the frozen parts instead of copies.
"""

import argparse
import os
from pathlib import Path

import torch

from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.models.audio_listen import AUDIO_TOKEN, audio_chat_template


# A projector for a small LLM: two layers, 256 wide.
PROJECTOR = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}

# ChatML, the template of SmolLM2 and Qwen, without a system prompt, which saves about two dozen tokens per example.
CHATML_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_base(
    output_dir: str | os.PathLike,
    speech: str,
    llm: str,
    sound: str | None = None,
    text_template: str | None = None,
    seed: int = 0,
    projector_dropout: float = 0.0,
    speech_chunk_multiple: int = 30,
    audio_scale: float = 1.0,
) -> None:
    """
    Writes model and processor to a folder. A complete folder is not changed.

    Args:
        output_dir (`str` or `os.PathLike`): folder to write.
        speech (`str`): folder or Hub id of a Whisper model.
        llm (`str`): folder or Hub id of a causal language model.
        sound (`str`, *optional*): folder, Hub id or original checkpoint of a BEATs model; without it, Whisper is the only
            encoder.
        text_template (`str`, *optional*): chat template to use instead of the LLM's own.
        seed (`int`, defaults to 0): seed of the projector's initial weights.
        projector_dropout (`float`, defaults to 0.0): dropout in the projector, in training.
        speech_chunk_multiple (`int`, defaults to 30): seconds of which the length of encoded speech is a multiple; see
            [`AudioListenConfig`].
        audio_scale (`float`, defaults to 1.0): initial scale of the embeddings of audio; see
            [`AudioListenForCausalLM.from_sub_models_pretrained`].
    """
    output_dir = Path(output_dir)
    if (output_dir / "processor_config.json").is_file():
        print(f"reusing {output_dir}")
        return
    torch.manual_seed(seed)
    processor = AudioListenProcessor.from_sub_models_pretrained(
        speech=speech,
        sound=sound,
        llm=llm,
        chat_template=text_template and audio_chat_template(AUDIO_TOKEN, text_template),
        speech_chunk_multiple=speech_chunk_multiple,
    )
    model = AudioListenForCausalLM.from_sub_models_pretrained(
        speech=speech,
        sound=sound,
        llm=llm,
        tokenizer=processor.tokenizer,
        audio_scale=audio_scale,
        speech_chunk_multiple=speech_chunk_multiple,
        qformer_config={
            **PROJECTOR,
            "hidden_dropout_prob": projector_dropout,
            "attention_probs_dropout_prob": projector_dropout,
        },
        dtype=torch.float32,
    )
    model.save_pretrained(output_dir, save_frozen=False)
    processor.save_pretrained(output_dir)  # last: its files mark the folder as complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--speech", required=True, help="folder or Hub id of a Whisper model")
    parser.add_argument("--llm", required=True, help="folder or Hub id of a causal language model")
    parser.add_argument("--sound", help="folder, Hub id or original checkpoint of a BEATs model")
    parser.add_argument("--chatml", action="store_true", help="ChatML without system prompt as the chat template")
    parser.add_argument(
        "--speech-chunk-multiple",
        type=int,
        default=30,
        help="encode speech at multiples of so many seconds (default: 30)",
    )
    parser.add_argument(
        "--audio-scale", type=float, default=1.0, help="initial scale of the embeddings of audio (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the projector's initial weights (default: 0)")
    arguments = parser.parse_args()
    build_base(
        arguments.output_dir,
        arguments.speech,
        arguments.llm,
        arguments.sound,
        text_template=CHATML_TEMPLATE if arguments.chatml else None,
        seed=arguments.seed,
        speech_chunk_multiple=arguments.speech_chunk_multiple,
        audio_scale=arguments.audio_scale,
    )


if __name__ == "__main__":
    main()

"""Put the demo's base model together: a frozen Whisper encoder, a frozen LLM, and an untrained projector between them.

    python -m offline.build_base OUTPUT_DIR --speech SPEECH --llm LLM [--sound SOUND]

`SPEECH`, `LLM` and `SOUND` are folders or Hub ids; `SOUND` may also be an original BEATs checkpoint. The frozen parts
are not copied: the folder keeps references to them.
"""

import argparse
import os
from pathlib import Path

import torch

from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.models.audio_listen import AUDIO_TOKEN, audio_chat_template


# A projector for a small LLM: two layers, 256 wide. With this width the initial weights of BERT (0.02) let hardly
# anything of the audio through.
PROJECTOR = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
PROJECTOR_INITIALIZER_RANGE = 256**-0.5

# ChatML as SmolLM2 and Qwen use it, without a system prompt: two dozen tokens less in every training step.
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
) -> None:
    """Write model and processor to `output_dir`. A folder that is complete already is left as it is.

    Args:
        output_dir: Folder to write.
        speech: Folder or Hub id of a Whisper model.
        llm: Folder or Hub id of a causal language model.
        sound: Folder, Hub id or original checkpoint of a BEATs model, or `None` to leave sound encoding to Whisper.
        text_template: Chat template to use in place of the LLM's own.
        seed: Seed of the projector's initial weights.
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
    )
    model = AudioListenForCausalLM.from_sub_models_pretrained(
        speech=speech,
        sound=sound,
        llm=llm,
        tokenizer=processor.tokenizer,
        qformer_config=PROJECTOR,
        initializer_range=PROJECTOR_INITIALIZER_RANGE,
        dtype=torch.float32,
    )
    model.save_pretrained(output_dir, save_frozen=False)
    processor.save_pretrained(output_dir)  # last, as the sign that the folder is complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--speech", required=True, help="folder or Hub id of a Whisper model")
    parser.add_argument("--llm", required=True, help="folder or Hub id of a causal language model")
    parser.add_argument("--sound", help="folder, Hub id or original checkpoint of a BEATs model")
    parser.add_argument("--chatml", action="store_true", help="ChatML without system prompt as the chat template")
    arguments = parser.parse_args()
    build_base(
        arguments.output_dir,
        arguments.speech,
        arguments.llm,
        arguments.sound,
        text_template=CHATML_TEMPLATE if arguments.chatml else None,
    )


if __name__ == "__main__":
    main()

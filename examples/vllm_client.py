"""Answer a question about audio with a language model that runs in vLLM and knows nothing of audio or adapters.

    vllm serve HuggingFaceTB/SmolLM2-135M-Instruct --enable-prompt-embeds
    python examples/vllm_client.py dog.wav "What do you hear?" --model my-adapter [--url http://127.0.0.1:8000/v1]

This process encodes the audio, selects the prompts, and sends embeddings. The server generates from them. The adapter was
trained on the language model of the server; clients with other adapters of it can use the server at the same time.
"""

import base64
import io
from dataclasses import dataclass, field

import openai
import torch
from transformers import HfArgumentParser, pipeline

import peft_listen  # noqa: F401  (registers the pipeline)


@dataclass
class Arguments:
    audio: str = field(metadata={"help": "path or http(s) URL of the clip"})
    question: str = field(metadata={"help": "the question about it"})
    model: str = field(metadata={"help": "folder or Hub id of an adapter, or of an audio model"})
    url: str = field(default="http://127.0.0.1:8000/v1", metadata={"help": "address of vLLM"})
    max_tokens: int = field(default=64, metadata={"help": "longest answer in tokens"})


def encode(embeds: torch.Tensor) -> str:
    """A tensor as vLLM reads it: the file of `torch.save`, in base64."""
    file = io.BytesIO()
    torch.save(embeds.detach().cpu().contiguous(), file)
    return base64.b64encode(file.getvalue()).decode()


def main(arguments: Arguments) -> None:
    pipe = pipeline("audio-text-to-text", model=arguments.model)
    content = [{"type": "audio", "audio": arguments.audio}, {"type": "text", "text": arguments.question}]
    inputs = pipe.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    embeds = pipe.model.prompt_embeds(**inputs.to(pipe.device))
    (row,) = embeds["inputs_embeds"]  # (prompts and tokens, hidden_size), without padding

    ends = pipe.model.generation_config.eos_token_id
    client = openai.OpenAI(base_url=arguments.url, api_key="EMPTY")
    completion = client.completions.create(
        model=client.models.list().data[0].id,
        prompt="",  # all of it is in the embeddings, the chat template too
        max_tokens=arguments.max_tokens,
        temperature=0,
        extra_body={
            "prompt_embeds": encode(row),
            "stop_token_ids": [] if ends is None else ends if isinstance(ends, list) else [ends],
        },
    )
    print(completion.choices[0].text)


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())

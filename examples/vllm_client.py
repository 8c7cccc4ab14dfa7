"""Answer a question about audio with a language model that runs in vLLM and knows nothing of audio or adapters.

    vllm serve HuggingFaceTB/SmolLM2-135M-Instruct --enable-prompt-embeds
    python examples/vllm_client.py dog.wav "What do you hear?" --model my-adapter [--url http://127.0.0.1:8000/v1]

This process encodes the audio, selects the prompts, and sends embeddings. The server generates from them. The adapter was
trained on the language model of the server; clients with other adapters of it can use the server at the same time.
"""

import argparse
import base64
import io

import openai
import torch
from transformers import pipeline

import peft_listen  # noqa: F401  (registers the pipeline)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", help="path or http(s) URL of the clip")
    parser.add_argument("question", help="the question about it")
    parser.add_argument("--model", required=True, help="folder or Hub id of an adapter, or of an audio model")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="address of vLLM")
    parser.add_argument("--max_tokens", type=int, default=64, help="longest answer in tokens")
    return parser.parse_args()


def encode(embeds: torch.Tensor) -> str:
    """A tensor as vLLM reads it: the file of `torch.save`, in base64."""
    file = io.BytesIO()
    torch.save(embeds.detach().cpu().contiguous(), file)
    return base64.b64encode(file.getvalue()).decode()


def main(arguments: argparse.Namespace) -> None:
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
    main(parse_arguments())

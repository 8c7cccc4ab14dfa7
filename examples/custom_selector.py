"""Write a selector of your own, train an adapter with it, and print which prompts each input selects.

    python examples/custom_selector.py [--temperature 0.5] [--steps 60]

A selector receives queries `[batch, hidden]` and keys `[pool_size, hidden]` and returns the `k` selected prompts of each
row, best first. With weights that depend on the keys, the language-model loss trains the keys too. Import the file of
a selector before loading an adapter that uses it, because the import registers the selector.
"""

from dataclasses import dataclass, field

import torch
from peft import get_peft_model
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, HfArgumentParser

from peft_listen import ListenConfig, Selection, Selector, register_selector
from peft_listen.training import parameter_groups


TEXTS = {
    "What is the capital of France?": " Paris",
    "What is the capital of Italy?": " Rome",
    "Write the plural of mouse.": " mice",
    "Write the plural of child.": " children",
}


@register_selector("soft_cosine")
class SoftCosineSelector(Selector):
    """
    Selects the prompts with the highest cosine similarity, weighted by a softmax over the selected scores.

    Args:
        temperature (`float`, defaults to 0.5): small values give the best prompt nearly all of the weight.
    """

    keys_receive_gradient = True  # through the weights

    def __init__(self, temperature: float = 0.5) -> None:
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        self.temperature = temperature

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        cosines = normalize(query, dim=-1) @ normalize(keys, dim=-1).T  # [batch, pool_size]
        # A stable sort returns the same prompts on every device when two keys are equal.
        scores, indices = cosines.sort(dim=-1, descending=True, stable=True)
        scores, indices = scores[:, :k], indices[:, :k]
        # Multiplied by k, which keeps the mean weight at 1 for every k.
        return Selection(indices, scores, weights=k * (scores / self.temperature).softmax(dim=-1))


@dataclass
class Arguments:
    model: str = field(default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "folder or Hub id of an LLM"})
    output_dir: str = field(default="custom-selector", metadata={"help": "receives the adapter"})
    temperature: float = field(default=0.5, metadata={"help": "of the selector's weights"})
    steps: int = field(default=60, metadata={"help": "optimizer steps"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of the keys; the values get ten times as much"})


def main(arguments: Arguments) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    llm = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    selector = {"selector": "soft_cosine", "selector_kwargs": {"temperature": arguments.temperature}}
    config = ListenConfig(pool_size=16, prompt_length=4, **selector)
    model = get_peft_model(llm, config)
    optimizer = torch.optim.AdamW(parameter_groups(model, arguments.learning_rate))
    rows = []
    for question, answer in TEXTS.items():
        prompt, target = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer))
        rows.append({"input_ids": prompt + target, "labels": [-100] * len(prompt) + target})
    batch = DataCollatorForSeq2Seq(tokenizer)(rows)
    model.train()
    for _ in range(arguments.steps):
        loss = model(**batch).loss  # includes the key loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss after {arguments.steps} steps: {loss.item():.3f}")
    model.save_pretrained(arguments.output_dir)

    model.eval()
    with model.base_model.record_selections() as records, torch.no_grad():
        model(**batch)
    (record,) = records
    for question, indices, weights in zip(TEXTS, record.indices, record.weights, strict=True):
        print(f"{question} prompts {indices.tolist()}, weights {[round(weight, 2) for weight in weights.tolist()]}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())

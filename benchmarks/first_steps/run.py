"""Runs the benchmark: what a newcomer gets from few examples, few steps and the default settings.

    python -m benchmarks.first_steps.run [--only FORM ...] [--seeds 0 1 2] [--split test] [--list]

SmolLM2-135M-Instruct learns to answer short sentences with a made-up code for their topic: 60 steps of 4 of the 20
trained sentences. Each run takes two minutes on one core (that of the paper's form eight) and is stored as one JSON file.
When the command is repeated, it skips the stored runs, unless the settings of a form have changed.
`python -m benchmarks.first_steps.table` makes the table.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.memory import peak_memory, reset_peak_memory
from benchmarks.versions import library_versions
from offline.small_models import obtain
from peft_listen.files import atomic_path

from .forms import FORMS_OF_SPLIT, SEEDS_OF_SPLIT, Form, prompt_tuning
from .sentences import Dataset, Example, make_dataset
from .storage import RESULTS, Run, read_run, result_path, settings_of


SYSTEM_MESSAGE = "Answer with the code."
# Prompt tuning makes a step on the same batch after every so many steps, so that variations of the machine's speed affect
# both. Its rate does not matter.
PEER_EVERY = 4


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[list[int], list[int]]:
    """Token ids of the chat prompt, and of the answer with its end."""
    messages = [{"role": "system", "content": SYSTEM_MESSAGE}, {"role": "user", "content": example.sentence}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt_ids, answer_ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, example.code)
    )
    return prompt_ids, [*answer_ids, tokenizer.eos_token_id]


def training_batch(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Right-padded rows in which only the answers are supervised."""
    rows = [encode(tokenizer, example) for example in examples]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        input_ids[row, :end] = torch.tensor([*prompt, *answer])
        attention_mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def generation_batch(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Left-padded prompts."""
    prompts = [encode(tokenizer, example)[0] for example in examples]
    length = max(map(len, prompts))
    input_ids = torch.full((len(prompts), length), tokenizer.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, length - len(prompt) :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def batches(examples: Sequence[Example], batch_size: int, steps: int, seed: int) -> Iterator[list[Example]]:
    """Batches of shuffled epochs; examples at the end of an epoch that do not fill a batch are left out."""
    draw = random.Random(seed)
    remaining: list[Example] = []
    for _ in range(steps):
        if len(remaining) < batch_size:
            remaining = draw.sample(list(examples), len(examples))
        yield remaining[:batch_size]
        remaining = remaining[batch_size:]


def train_step(model: PeftModel, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> float:
    """Makes one optimizer step, and returns its seconds of CPU time."""
    start = time.process_time()
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


@torch.no_grad()
def evaluated_loss(model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> float:
    """Mean loss per token of the answers, with the prompt length of inference and without the key loss."""
    return float(model(**training_batch(tokenizer, examples)).loss)


@torch.no_grad()
def accuracy(model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> float:
    """Share of the examples whose generated answer is exactly the code."""
    inputs = generation_batch(tokenizer, examples)
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    pairs = zip(answers, examples, strict=True)
    return statistics.fmean(answer.strip() == example.code for answer, example in pairs)


def measure(
    form: Form,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    seed: int,
    steps: int = 60,
    batch_size: int = 4,
) -> dict[str, float]:
    """
    Trains and evaluates one form.

    Args:
        form ([`Form`])
        llm (`PreTrainedModel`): the base model, in float32; it is not changed.
        tokenizer (`PreTrainedTokenizerBase`): with a chat template.
        dataset ([`Dataset`])
        seed (`int`): of the initialization and of the order of the examples.
        steps (`int`, defaults to 60): optimizer steps. The learning rates fall linearly to zero, as in `Trainer`.
        batch_size (`int`, defaults to 4): examples per step.

    Returns:
        `dict[str, float]`: number of trained parameters, losses per token and accuracies on trained and unseen
        sentences, `cost` (CPU time of a step, relative to prompt tuning), `seconds_per_step`, and `peak_megabytes` of
        resident memory in a training step.
    """
    torch.manual_seed(seed)
    model = get_peft_model(with_same_weights(llm), form.make_config(seed)).train()
    peer = get_peft_model(with_same_weights(llm), prompt_tuning(seed)).train()
    optimizer = torch.optim.AdamW(form.parameter_groups(model))
    peer_optimizer = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    seconds, peer_seconds, peak = [], [], 0.0
    for step, examples in enumerate(batches(dataset.trained, batch_size, steps, seed)):
        batch = training_batch(tokenizer, examples)
        if step % PEER_EVERY == 0:
            peer_seconds.append(train_step(peer, peer_optimizer, batch))
            reset_peak_memory()
        seconds.append(train_step(model, optimizer, batch))
        peak = max(peak, peak_memory())
        schedule.step()
    model.eval()
    half = dataset.trained[: len(dataset.trained) // 2]
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "trained_loss": evaluated_loss(model, tokenizer, dataset.trained),
        "unseen_loss": evaluated_loss(model, tokenizer, dataset.unseen),
        "trained_accuracy": accuracy(model, tokenizer, half),
        "unseen_accuracy": accuracy(model, tokenizer, dataset.unseen),
        # The first steps also prepare the libraries.
        "cost": statistics.fmean(seconds[1:]) / statistics.fmean(peer_seconds[1:]),
        "seconds_per_step": statistics.fmean(seconds[1:]),
        "peak_megabytes": round(peak),
    }


def with_same_weights(llm: PreTrainedModel) -> PreTrainedModel:
    """A second model that shares all tensors with the first, since adapters change the modules of a model."""
    with torch.device("meta"):
        model = type(llm)(llm.config)
    model.load_state_dict(llm.state_dict(), assign=True)
    model.tie_weights()
    for name, buffer in llm.named_buffers():
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, buffer)
    model.generation_config = llm.generation_config
    return model.requires_grad_(False)


def run(
    name: str, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, seed: int, results: Path
) -> Run:
    """Measures a form and stores the result, which appears only when the run has finished."""
    measured = measure(FORMS_OF_SPLIT[split][name], llm, tokenizer, make_dataset(split, seed), seed)
    result: Run = {
        "settings": settings_of(name, split, seed),
        "measured": measured,
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
    }
    path = result_path(results, name, split, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="FORM", help="forms (default: all of the split)")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all of the split")
    parser.add_argument(
        "--split", choices=["test", "tune"], default="test", help="tune: the trials by which the defaults were chosen"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--models", type=Path, default=Path(".first_steps"), help="receives the converted model")
    parser.add_argument("--list", action="store_true", help="list the forms and their stored seeds, and stop")
    arguments = parser.parse_args()
    forms = FORMS_OF_SPLIT[arguments.split]
    names, seeds = arguments.only or list(forms), arguments.seeds or SEEDS_OF_SPLIT[arguments.split]
    if unknown := set(names) - set(forms):
        parser.error(f"there is no form {', '.join(sorted(unknown))}; there are {', '.join(forms)}")
    planned = [(seed, name) for seed in seeds for name in names]
    if arguments.list:
        for name in names:
            stored = [s for s in seeds if read_run(arguments.results, name, arguments.split, s)]
            print(f"{name}: {forms[name].label}; stored seeds: {', '.join(map(str, stored)) or 'none'}")
        return
    missing = [one for one in planned if read_run(arguments.results, one[1], arguments.split, one[0]) is None]
    print(f"{len(planned)} runs, {len(planned) - len(missing)} of them stored in {arguments.results}", flush=True)
    if not missing:
        return
    folder = obtain(arguments.models)["llm"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for number, (seed, name) in enumerate(missing, start=1):
        print(f"{number} of {len(missing)}: {name}, seed {seed}", flush=True)
        measured = run(name, llm, tokenizer, arguments.split, seed, arguments.results)["measured"]
        print({key: round(value, 3) for key, value in measured.items()}, flush=True)


if __name__ == "__main__":
    main()

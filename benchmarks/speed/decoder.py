"""Prefill, decoding, training step and memory of an 8B language model with random weights, for several adapters.

    python -m benchmarks.speed.decoder [--device cuda] [--output decoder.json]
    python -m benchmarks.speed.decoder --device cpu --size small
    python -m benchmarks.speed.decoder --device cuda --stored benchmarks/speed/h100/decoder.json --write docs/speed.md

One language model in bfloat16 serves all methods: the base model, PEFT's prompt tuning with the same number of prompts,
LoRA and LISTEN. The weights are random, because only their sizes matter here. With `--output`, all single measurements are
written as JSON, and `--stored` makes the table from such a file, without measuring.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from peft_listen import ListenConfig
from peft_listen.files import atomic_path, check_output_file

from .command import add_options, command_line, describe, parse, report
from .ratios import timed
from .sizes import LANGUAGE_MODELS, generate_to_the_end
from .training_step import Inputs, make_inputs, selection_step, train_step


@dataclass
class Measurement:
    """
    All times of one method, in seconds, one for each repeat.

    Args:
        method (`str`): its name in the table.
        first_token (`dict[int, list[float]]`): `generate` of one token, by batch size.
        decode (`dict[int, list[float]]`): `generate` of all tokens, by batch size.
        train_step (`list[float]`): forward, backward and optimizer step.
        train_memory (`int`, *optional*): peak of the memory that a training step adds to the language model, in bytes; on
            CUDA only.
        generate_memory (`int`, *optional*): the same for `generate` with the largest batch.
        selection (`list[float]`): query, selection and key loss of a training step, forward and backward.
    """

    method: str
    first_token: dict[int, list[float]] = field(default_factory=dict)
    decode: dict[int, list[float]] = field(default_factory=dict)
    train_step: list[float] = field(default_factory=list)
    train_memory: int | None = None
    generate_memory: int | None = None
    selection: list[float] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measurement:
        """The keys of an object in JSON are strings."""
        times = {
            name: {int(size): times for size, times in values[name].items()} for name in ("first_token", "decode")
        }
        return cls(**{**values, **times})

    def tokens_per_second(self, batch_size: int, new_tokens: int) -> list[float]:
        """Decoding speed of each repeat, without the first token of each row."""
        first_token = statistics.median(self.first_token[batch_size])
        return [
            batch_size * (new_tokens - 1) / max(seconds - first_token, 1e-9) for seconds in self.decode[batch_size]
        ]


class Benchmark:
    """
    Measures one method after another on one language model.

    Args:
        arguments (`argparse.Namespace`): the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        sizes = dict(LANGUAGE_MODELS[arguments.size])
        if arguments.layers is not None:
            sizes["num_hidden_layers"] = arguments.layers
        torch.manual_seed(arguments.seed)
        with self.device:
            self.llm = AutoModelForCausalLM.from_config(
                LlamaConfig(**sizes, max_position_embeddings=8192), dtype=getattr(torch, arguments.dtype)
            )
        self.llm.eval().requires_grad_(False)
        generate_to_the_end(self.llm)

    def run(self) -> list[Measurement]:
        """Measures all methods, and prints the name of each when it begins."""
        results = []
        for name, config in self.methods().items():
            print(f"measuring {name} ...", flush=True)
            results.append(self.measure(name, config))
            gc.collect()  # hooks and models refer to each other
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return results

    def methods(self) -> dict[str, Any]:
        """Configuration of each method by its name in the table; `None` for the base model."""
        methods: dict[str, Any] = {"base": None}
        methods["LoRA r=8 (q, v)"] = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        for k in self.arguments.prompt_lengths:
            methods[f"PromptTuning k={k}"] = PromptTuningConfig(num_virtual_tokens=k, task_type="CAUSAL_LM")
            methods[f"LISTEN k={k}"] = self.listen(k, "similarity")
        for selector in self.arguments.more_selectors:
            k = max(self.arguments.prompt_lengths)
            methods[f"LISTEN k={k} {selector}"] = self.listen(k, selector)
        return methods

    def listen(self, k: int, selector: str) -> ListenConfig:
        return ListenConfig(
            pool_size=self.arguments.pool_size,
            prompt_length=k,
            selector=selector,
            stochastic_prompt_length=False,
            task_type="CAUSAL_LM",
        )

    def measure(self, name: str, config: Any) -> Measurement:
        """Adds the adapter, measures, and removes it from the language model."""
        torch.manual_seed(self.arguments.seed)
        measurement = Measurement(name)
        before = self._allocated()
        model = self.llm if config is None else get_peft_model(self.llm, config).eval()
        for batch_size in self.arguments.batch_sizes:
            inputs = self.inputs(batch_size)
            for new_tokens, times in ((1, measurement.first_token), (self.arguments.new_tokens, measurement.decode)):
                times[batch_size] = self.times(
                    lambda inputs=inputs, new_tokens=new_tokens: model.generate(
                        **inputs, max_new_tokens=new_tokens, do_sample=False
                    )
                )
        measurement.generate_memory = self._peak_above(before)
        step = self.train_step(model, is_base=config is None)
        measurement.train_step = self.times(step)
        measurement.train_memory = self._peak_above(before)
        if isinstance(config, ListenConfig):
            measurement.selection = self.times(self.selection(model))
        if config is not None and not config.is_prompt_learning:
            model.unload()
        self.llm.requires_grad_(False).eval()
        return measurement

    def inputs(self, batch_size: int, labels: bool = False) -> Inputs:
        arguments = self.arguments
        vocab_size, seed = self.llm.config.vocab_size, arguments.seed
        return make_inputs(vocab_size, batch_size, arguments.length, self.device, seed=seed, labels=labels)

    def train_step(self, model: torch.nn.Module, is_base: bool) -> Callable[[], None]:
        """A training step. The base model has nothing to train: its step computes the gradient of the input embeddings,
        which every method with prompts needs."""
        inputs = self.inputs(self.arguments.train_batch_size, labels=True)
        if is_base:
            model.train()
            embeds = self.llm.get_input_embeddings()(inputs["input_ids"]).requires_grad_()
            inputs = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"], "labels": inputs["labels"]}

            def step() -> None:
                embeds.grad = None
                model(**inputs, use_cache=False).loss.backward()

            return step
        return train_step(model, inputs)

    def selection(self, model: torch.nn.Module) -> Callable[[], None]:
        """What LISTEN computes in a training step before the language model runs, forward and backward."""
        inputs = self.inputs(self.arguments.train_batch_size, labels=True)
        pool = model.base_model.layer.pool_of()  # type: ignore[union-attr, operator]
        return selection_step(pool, self.llm.get_input_embeddings()(inputs["input_ids"]), inputs)

    def times(self, call: Callable[[], Any]) -> list[float]:
        for _ in range(self.arguments.warm_up):
            call()
        return [timed(call, self.device, self.arguments.clock) for _ in range(self.arguments.repeats)]

    def _allocated(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def _peak_above(self, before: int) -> int | None:
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated() - before
        torch.cuda.reset_peak_memory_stats()
        return peak


def table(results: list[Measurement], arguments: argparse.Namespace) -> str:
    """All measurements in Markdown: medians, with minimum and maximum in parentheses."""
    first = min(arguments.batch_sizes)
    columns = ["method", f"first token, batch {first}, ms"]
    columns += [f"tokens/s, batch {batch_size}" for batch_size in arguments.batch_sizes]
    columns += ["generate: memory, MiB", "training step, ms", "training step: memory, MiB", "selection, ms", "share"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        cells = [result.method, _spread([1e3 * seconds for seconds in result.first_token[first]])]
        cells += [_spread(result.tokens_per_second(size, arguments.new_tokens)) for size in arguments.batch_sizes]
        cells += [_mebibytes(result.generate_memory), _spread([1e3 * seconds for seconds in result.train_step])]
        cells += [_mebibytes(result.train_memory), _spread([1e3 * seconds for seconds in result.selection], digits=2)]
        share = None
        if result.selection:
            share = statistics.median(result.selection) / statistics.median(result.train_step)
        cells.append("" if share is None else f"{share:.2%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int = 1) -> str:
    if not values:
        return ""
    low, median, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{median} ({low} to {high})"


def _mebibytes(memory: int | None) -> str:
    return "" if memory is None else f"{memory / 2**20:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, "decoder", dtype="bfloat16")
    parser.add_argument("--size", choices=LANGUAGE_MODELS, default="8b")
    parser.add_argument("--layers", type=int, help="decoder layers, instead of those of the size")
    parser.add_argument("--length", type=int, default=256, help="tokens of each row")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16], help="of `generate`")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--train-batch-size", type=int, default=4)
    parser.add_argument("--pool-size", type=int, default=400)
    parser.add_argument("--prompt-lengths", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--more-selectors", nargs="*", default=["residual", "grouped"], help="with the longest prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file for all measurements, as JSON")
    parser.add_argument("--stored", type=Path, help="file of --output, whose table is made without measuring")
    arguments = parse(parser)
    if arguments.new_tokens < 2:
        parser.error(
            f"--new-tokens must be at least 2, since the first token is not counted, got {arguments.new_tokens}"
        )
    if arguments.output is not None:
        check_output_file(arguments.output)
    if arguments.stored is not None:
        content = json.loads(arguments.stored.read_text(encoding="utf-8"))
        device = content["arguments"]["device"]
        if torch.device(device).type != torch.device(arguments.device).type:
            parser.error(f"{arguments.stored} was measured on {device}; pass --device {device}")
        publish(arguments, content)
        return
    machine = f"{describe(arguments)}; peft {peft.__version__}"
    benchmark = Benchmark(arguments)
    size = sum(parameter.numel() for parameter in benchmark.llm.parameters())
    setting = (
        f"Llama with {size / 1e9:.2f}B random weights; rows of {arguments.length} tokens; {arguments.new_tokens} new "
        f"tokens; training step with {arguments.train_batch_size} rows; P = {arguments.pool_size}; seed {arguments.seed}; "
        f"median of {arguments.repeats} repeats (minimum to maximum); memory above that of the language model"
    )
    results = benchmark.run()
    settings = {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}
    content = {"command": command_line("decoder"), "machine": machine, "setting": setting, "arguments": settings}
    content["measurements"] = [asdict(result) for result in results]
    publish(arguments, content)
    if arguments.output is not None:
        with atomic_path(arguments.output) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def publish(arguments: argparse.Namespace, content: dict[str, Any]) -> None:
    """
    Reports measurements.

    Args:
        arguments (`argparse.Namespace`): the command line.
        content (`dict`): what `--output` writes.
    """
    measured = argparse.Namespace(**content["arguments"])
    results = [Measurement.from_json(measurement) for measurement in content["measurements"]]
    # The first files do not have the command.
    command = content.get("command", "")
    report(arguments, content["machine"], content["setting"], table(results, measured), command=command)


if __name__ == "__main__":
    main()

"""Share of the selection of prompts in a training step, for a language model of the size of Llama-3-8B.

    python -m benchmarks.speed.selection [--threads 1 --clock cpu]
    python -m benchmarks.speed.selection --device cuda --dtype bfloat16 --measured-layers 1 32

A training step takes the same time for each decoder layer, so on a CPU it is measured with one and with two layers, and the
difference is the time of a layer:

    step(32) = step(1) + 31 * (step(2) - step(1))

The embeddings and the head are complete in both. With `--measured-layers 1 32` the step is measured with all layers. A
selection is query, selected keys, their values and the key loss, forward and backward; the keys differ in each call, as they
do after an optimizer step. Steps and selections of all selectors alternate, and each turn gives one share. The weights are
random, because only their sizes matter here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from peft_listen import ListenConfig, available_selectors

from .command import add_options, describe, parse, report, turn_options
from .ratios import Call, quartiles, time_in_turns
from .sizes import LANGUAGE_MODELS
from .training_step import make_inputs, selection_step, train_step


class Benchmark:
    """
    Builds the language model with one adapter per selector, and measures steps and selections.

    Args:
        arguments (`argparse.Namespace`): the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        sizes = dict(LANGUAGE_MODELS[arguments.size], num_hidden_layers=arguments.measured_layers[-1])
        torch.manual_seed(0)
        with torch.device(arguments.device):
            llm = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=getattr(torch, arguments.dtype))
        self.config = llm.config
        self.inputs = make_inputs(
            llm.config.vocab_size, arguments.rows, arguments.length, arguments.device, labels=True
        )
        first, *others = arguments.selectors
        self.model = get_peft_model(llm, self.listen(first))
        self.step = train_step(self.model, self.inputs)
        for name in others:
            self.model.add_adapter(name, self.listen(name))
        layer = self.model.base_model.layer  # type: ignore[union-attr]
        self.pools = {name: layer.pool_of("default" if name == first else name) for name in arguments.selectors}  # type: ignore[operator]
        for pool in self.pools.values():
            pool.requires_grad_(True)
        self.embeds = llm.get_input_embeddings()(self.inputs["input_ids"]).detach()

    def listen(self, selector: str) -> ListenConfig:
        return ListenConfig(
            pool_size=self.arguments.pool_size,
            prompt_length=self.arguments.prompt_length,
            selector=selector,
            stochastic_prompt_length=False,
            task_type="CAUSAL_LM",
        )

    def step_of(self, layers: int) -> Call:
        """A training step with the first layers."""

        def step() -> None:
            self.config.num_hidden_layers = layers
            self.step()

        return step

    @torch.no_grad()
    def change_keys(self) -> None:
        for pool in self.pools.values():
            pool.keys.mul_(1.0001)

    def run(self) -> list[tuple[float, ...]]:
        """Seconds of the step with each number of layers, and of each selection, in each turn."""
        calls = [self.step_of(layers) for layers in self.arguments.measured_layers]
        calls += [selection_step(pool, self.embeds, self.inputs) for pool in self.pools.values()]
        return time_in_turns(*calls, **turn_options(self.arguments), before=[self.change_keys])


def step_seconds(few: float, many: float, measured: Sequence[int], layers: int) -> float:
    """
    Time of a training step with `layers` layers, from those with fewer.

    Args:
        few, many (`float`): seconds of a step with the two measured numbers of layers.
        measured (`Sequence[int]`): these numbers.
        layers (`int`): number of layers of the whole model.
    """
    return many + (layers - measured[1]) * (many - few) / (measured[1] - measured[0])


def shares(turns: Sequence[Sequence[float]], measured: Sequence[int], layers: int) -> list[list[float]]:
    """
    The share of each selector's selection in the training step of its adapter. The measured step contains the selection of
    the first selector; for the others it is replaced by their own.

    Args:
        turns (`Sequence[Sequence[float]]`): from [`Benchmark.run`].
        measured (`Sequence[int]`): the two measured numbers of layers.
        layers (`int`): number of layers of the whole model.

    Returns:
        `list[list[float]]`: by selector and turn.
    """
    found = []
    for few, many, first, *others in turns:
        rest = step_seconds(few, many, measured, layers) - first
        found.append([selection / (rest + selection) for selection in (first, *others)])
    return [list(of_selector) for of_selector in zip(*found, strict=True)]


def table(turns: Sequence[Sequence[float]], arguments: argparse.Namespace, layers: int) -> str:
    """Median and quartiles of the time of a selection and of its share, for each selector."""
    step = [step_seconds(few, many, arguments.measured_layers, layers) for few, many, *_ in turns]
    lines = ["| selector | selection, ms | share of a training step, % |", "|---|---|---|"]
    of_selectors = zip(arguments.selectors, shares(turns, arguments.measured_layers, layers), strict=True)
    for index, (name, share) in enumerate(of_selectors, 2):
        times = [1e3 * turn[index] for turn in turns]
        lines.append(f"| {name} | {_spread(times, 2)} | {_spread([100 * value for value in share], 4)} |")
    seconds = _spread(step, 3)
    return "\n".join([f"A training step with {layers} layers takes {seconds} s.", "", *lines])


def _spread(values: Sequence[float], digits: int) -> str:
    first, median, third = (f"{value:.{digits}f}" for value in quartiles(values))
    return f"{median} ({first} to {third})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, "selection")
    parser.add_argument("--size", choices=LANGUAGE_MODELS, default="8b")
    parser.add_argument("--measured-layers", type=int, nargs=2, default=[1, 2], help="two numbers of layers")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--length", type=int, default=256, help="tokens of each row")
    parser.add_argument("--pool-size", type=int, default=400)
    parser.add_argument("--prompt-length", type=int, default=10)
    parser.add_argument("--selectors", nargs="+", default=available_selectors(), choices=available_selectors())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    arguments = parse(parser)
    layers = LANGUAGE_MODELS[arguments.size]["num_hidden_layers"]
    few, many = arguments.measured_layers
    if not 1 <= few < many <= layers:
        parser.error(
            f"--measured-layers must be two numbers, the first one smaller, from 1 to {layers}, got {few} {many}"
        )
    machine = describe(arguments)
    setting = (
        f"Random weights of the size {arguments.size}, d = {LANGUAGE_MODELS[arguments.size]['hidden_size']}; "
        f"{arguments.rows} x {arguments.length} tokens, k = {arguments.prompt_length} of P = {arguments.pool_size}; the step "
        f"with {layers} layers from those with {few} and {many}; {arguments.repeats} alternating repeats: median (quartiles)."
    )
    report(arguments, machine, setting, table(Benchmark(arguments).run(), arguments, layers))


if __name__ == "__main__":
    main()

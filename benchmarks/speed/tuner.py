"""Time and memory of dynamic prompt selection, as ratios to other methods in the same process.

    python -m benchmarks.speed.tuner [--device cuda] [--hidden-size 4096 --layers 32 --dtype bfloat16]

Each comparison times two calls in turns and gives the median of their ratios and the quartiles. The weights are random,
because only their sizes matter here.
"""

import argparse
import subprocess
import sys

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.memory import peak_memory, reset_peak_memory
from peft_listen import ListenConfig

from .command import add_options, describe, parse, report, turn_options
from .ratios import Call, Ratio, memory_ratio, ratio_in_turns, ratio_table
from .training_step import Inputs, make_inputs, train_step


class Benchmark:
    """
    Builds models of one size and compares calls on them.

    Args:
        arguments (`argparse.Namespace`): the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.dtype = getattr(torch, arguments.dtype)
        self.config = LlamaConfig(
            vocab_size=arguments.vocab_size,
            hidden_size=arguments.hidden_size,
            intermediate_size=arguments.hidden_size * 11 // 4,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.hidden_size // 64,
            num_key_value_heads=max(1, arguments.hidden_size // 256),
        )
        self.batch_size, self.length, self.prompts = arguments.batch_size, arguments.length, arguments.prompt_length

    def llm(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        with torch.device(self.device):
            return LlamaForCausalLM(self.config).to(self.dtype).eval()

    def adapted(self, method: str, llm: LlamaForCausalLM | None = None) -> PeftModel:
        """Adds an adapter to a language model: LISTEN with a fixed prompt length, prompt tuning of that length, or LoRA."""
        configs = {
            "listen": lambda: ListenConfig(
                pool_size=self.arguments.pool_size,
                prompt_length=self.prompts,
                stochastic_prompt_length=False,
                task_type="CAUSAL_LM",
            ),
            "prompt_tuning": lambda: PromptTuningConfig(num_virtual_tokens=self.prompts, task_type="CAUSAL_LM"),
            "lora": lambda: LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        }
        return get_peft_model(llm or self.llm(), configs[method]())

    def inputs(self, length: int, labels: bool = False) -> Inputs:
        return make_inputs(self.config.vocab_size, self.batch_size, length, self.device, labels=labels)

    def compare(self, name: str, call: Call, peer: Call, before: tuple[Call, ...] = ()) -> Ratio:
        print(f"measuring {name} ...", flush=True)
        return ratio_in_turns(name, call, peer, **turn_options(self.arguments), before=before)

    def forward(self) -> Ratio:
        model, base = self.adapted("listen"), self.llm()
        short, long = self.inputs(self.length), self.inputs(self.length + self.prompts)

        @torch.no_grad()
        def listen() -> None:
            model(**short, logits_to_keep=1)

        @torch.no_grad()
        def peer() -> None:
            base(**long, logits_to_keep=1)

        return self.compare("forward / base model with the same number of positions", listen, peer)

    def train_step(self, peer_method: str) -> Ratio:
        inputs = self.inputs(self.length, labels=True)
        steps = [train_step(self.adapted(method), inputs) for method in ("listen", peer_method)]
        peer = {"prompt_tuning": "PromptTuning of the same length", "lora": "LoRA r = 8 on q, v"}[peer_method]
        return self.compare(f"training step / {peer}", *steps)

    def decode(self) -> Ratio:
        model, base = self.adapted("listen"), self.llm()
        steps = self.arguments.decode_steps
        token = torch.ones(self.batch_size, 1, dtype=torch.long, device=self.device)

        def decoder(llm: torch.nn.Module, length: int) -> tuple[Call, Call]:
            """The prefill that fills a cache, which another row of the table measures, and decoding with that cache."""
            inputs = self.inputs(length)
            filled: list[DynamicCache] = []

            @torch.no_grad()
            def fill() -> None:
                cache = DynamicCache(config=self.config)
                llm(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
                filled.append(cache)

            @torch.no_grad()
            def run() -> None:
                cache = filled.pop()
                mask = inputs["attention_mask"]
                for _ in range(steps):
                    mask = torch.cat([mask, mask[:, :1]], dim=1)
                    llm(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True)

            return fill, run

        (fill, run), (fill_peer, run_peer) = (
            decoder(model, self.length),
            decoder(base, self.length + self.prompts),
        )
        name = "decoding step / base model with a cache of the same length"
        return self.compare(name, run, run_peer, before=(fill, fill_peer))

    def memory(self) -> Ratio:
        command = [sys.executable, "-m", "benchmarks.speed.tuner", *sys.argv[1:], "--memory-of"]
        name, pairs = "peak memory of a training step above the base model / LoRA r = 8", []
        print(f"measuring {name} ...", flush=True)
        for _ in range(self.arguments.memory_repeats):
            listen, lora = (
                float(subprocess.run([*command, method], check=True, stdout=subprocess.PIPE, text=True).stdout)
                for method in ("listen", "lora")
            )
            pairs.append((listen, lora))
        return memory_ratio(name, pairs)

    def print_peak_memory(self, method: str) -> None:
        """
        Prints the peak memory of an adapter and two training steps above that of the base model, in MiB: allocated memory on
        CUDA, resident memory otherwise.
        """
        llm = self.llm()
        # Building the base model takes more memory than the model itself, and may take more than the training step.
        reset_peak_memory(self.device)
        before = peak_memory(self.device)
        step = train_step(self.adapted(method, llm), self.inputs(self.length, labels=True))
        step(), step()
        print(peak_memory(self.device) - before)

    def run(self) -> list[Ratio]:
        """The rows of the table."""
        return [
            self.forward(),
            self.train_step("prompt_tuning"),
            self.decode(),
            self.train_step("lora"),
            self.memory(),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, "tuner")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--pool-size", type=int, default=400)
    parser.add_argument("--prompt-length", type=int, default=10)
    parser.add_argument("--decode-steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--memory-repeats", type=int, default=5, help="pairs of processes")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--memory-of", choices=["listen", "lora"], help=argparse.SUPPRESS)
    arguments = parse(parser)
    benchmark = Benchmark(arguments)
    if arguments.memory_of:
        benchmark.print_peak_memory(arguments.memory_of)
        return
    setting = (
        f"Llama of hidden size {arguments.hidden_size}, {arguments.layers} layers; {arguments.batch_size} rows of "
        f"{arguments.length} tokens, k = {arguments.prompt_length} of P = {arguments.pool_size}; {arguments.repeats} "
        f"alternating repeats, {arguments.memory_repeats} of the memory."
    )
    report(arguments, describe(arguments), setting, ratio_table(benchmark.run()))


if __name__ == "__main__":
    main()

"""What dynamic prompt selection costs, as ratios to its peers in the same process run.

    python benchmarks/speed.py [--device cuda] [--hidden-size 4096 --layers 32 --dtype bfloat16]

Every comparison is between two calls that take turns; printed are the median of the ratios of neighbours, their
quartiles, and the goal. Weights are random: only their sizes matter here.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import peft_listen
from peft_listen import ListenConfig, get_selector


@dataclass
class Result:
    """One line of the table."""

    name: str
    ratios: list[float]
    goal: float

    def line(self) -> str:
        first, median, third = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else self.ratios * 3
        verdict = "yes" if median <= self.goal else f"no, by {median / self.goal - 1:.0%}"
        return f"| {self.name} | {median:.3f} | {first:.3f} to {third:.3f} | ≤ {self.goal} | {verdict} |"


class Benchmark:
    """Builds models of one size and compares calls on them.

    Args:
        arguments: The command line.
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

    def adapted(self, method: str) -> PeftModel:
        """The LLM with an adapter: LISTEN at a fixed prompt length, prompt tuning of as many tokens, or LoRA."""
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
        return get_peft_model(self.llm(), configs[method]())

    def inputs(self, length: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        input_ids = torch.randint(self.config.vocab_size, (self.batch_size, length), generator=generator)
        input_ids = input_ids.to(self.device)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def compare(self, name: str, call: Callable[[], None], peer: Callable[[], None], goal: float) -> Result:
        for _ in range(self.arguments.warm_up):
            call(), peer()
        ratios = []
        for repeat in range(self.arguments.repeats):
            # Who goes first alternates, so that neither always finds the caches warm.
            pair = [call, peer] if repeat % 2 == 0 else [peer, call]
            seconds = {id(each): self._time(each) for each in pair}
            ratios.append(seconds[id(call)] / seconds[id(peer)])
        result = Result(name, ratios, goal)
        print(result.line(), flush=True)
        return result

    def _time(self, call: Callable[[], None]) -> float:
        self._synchronize()
        start = time.perf_counter()
        call()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forward(self) -> Result:
        model, base = self.adapted("listen"), self.llm()
        short, long = self.inputs(self.length), self.inputs(self.length + self.prompts)

        @torch.no_grad()
        def listen() -> None:
            model(**short, logits_to_keep=1)

        @torch.no_grad()
        def peer() -> None:
            base(**long, logits_to_keep=1)

        return self.compare("forward / base on as many positions", listen, peer, 1.02)

    def train_step(self, peer_method: str, goal: float) -> Result:
        steps = [self._train_step(self.adapted(method)) for method in ("listen", peer_method)]
        peer = {"prompt_tuning": "PromptTuning of the same length", "lora": "LoRA r = 8 on q, v"}[peer_method]
        return self.compare(f"train step / {peer}", *steps, goal)

    def _train_step(self, model: PeftModel) -> Callable[[], None]:
        model.train()
        inputs = self.inputs(self.length)
        labels = inputs["input_ids"].clone()
        labels[:, : self.length // 2] = -100
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step() -> None:
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def decode(self) -> Result:
        model, base = self.adapted("listen"), self.llm()
        steps = self.arguments.decode_steps
        token = torch.ones(self.batch_size, 1, dtype=torch.long, device=self.device)

        def decoder(llm: torch.nn.Module, length: int) -> Callable[[], None]:
            inputs = self.inputs(length)

            @torch.no_grad()
            def run() -> None:
                cache = filled.pop()
                mask = inputs["attention_mask"]
                for _ in range(steps):
                    mask = torch.cat([mask, mask[:, :1]], dim=1)
                    llm(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True)

            @torch.no_grad()
            def fill() -> None:
                cache = DynamicCache(config=self.config)
                llm(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
                filled.append(cache)

            filled: list[DynamicCache] = []
            run.fill = fill
            return run

        run, peer = decoder(model, self.length), decoder(base, self.length + self.prompts)
        ratios = []
        for repeat in range(self.arguments.warm_up + self.arguments.repeats):
            pair = [run, peer] if repeat % 2 == 0 else [peer, run]
            for each in pair:
                each.fill()  # outside the measurement: the prefill is another line of the table
            seconds = {id(each): self._time(each) for each in pair}
            if repeat >= self.arguments.warm_up:
                ratios.append(seconds[id(run)] / seconds[id(peer)])
        result = Result("decoding step / base with as long a cache", ratios, 1.02)
        print(result.line(), flush=True)
        return result

    def selectors(self) -> Result:
        torch.manual_seed(0)
        size, pool_size = self.arguments.selector_size, 400
        query = torch.randn(self.batch_size, size, device=self.device)
        keys = torch.randn(pool_size, size, device=self.device)
        similarity, residual = get_selector("similarity"), get_selector("residual")
        return self.compare(
            f"residual / similarity selector, P = {pool_size}, d = {size}",
            lambda: residual.select(query, keys, self.prompts),
            lambda: similarity.select(query, keys, self.prompts),
            1.5,
        )

    def memory(self) -> Result:
        values = {}
        for method in ("listen", "lora"):
            command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", method]
            values[method] = float(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
            )
        result = Result("peak memory of a train step / LoRA r = 8", [values["listen"] / values["lora"]], 1.0)
        print(result.line(), flush=True)
        return result

    def print_peak_memory(self, method: str) -> None:
        """Peak of a process that takes two training steps: allocated on CUDA, resident otherwise, in bytes."""
        step = self._train_step(self.adapted(method))
        step(), step()
        on_cuda = self.device.type == "cuda"
        print(
            torch.cuda.max_memory_allocated() if on_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--pool-size", type=int, default=400)
    parser.add_argument("--prompt-length", type=int, default=10)
    parser.add_argument("--decode-steps", type=int, default=16)
    parser.add_argument("--selector-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--memory-of", choices=["listen", "lora"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    benchmark = Benchmark(arguments)
    if arguments.memory_of:
        benchmark.print_peak_memory(arguments.memory_of)
        return
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{platform.machine()} CPU"
    print(
        f"{where}, {torch.get_num_threads()} threads, {arguments.dtype}; Python {platform.python_version()}, ", end=""
    )
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft-listen {peft_listen.__version__}")
    print(
        f"Llama of hidden size {arguments.hidden_size}, {arguments.layers} layers; {arguments.batch_size} rows of ",
        end="",
    )
    print(f"{arguments.length} tokens, k = {arguments.prompt_length} of P = {arguments.pool_size}; ", end="")
    print(f"{arguments.repeats} repeats in turn\n")
    print("| ratio | median | quartiles | goal | met |\n|---|---|---|---|---|")
    benchmark.forward()
    benchmark.train_step("prompt_tuning", 1.02)
    benchmark.decode()
    benchmark.selectors()
    benchmark.train_step("lora", 0.8)
    benchmark.memory()


if __name__ == "__main__":
    main()

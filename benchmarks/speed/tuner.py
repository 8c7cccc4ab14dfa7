"""Time and memory of dynamic prompt selection, as ratios to other methods in the same process.

    python -m benchmarks.speed.tuner [--device cuda] [--hidden-size 4096 --layers 32 --dtype bfloat16]

Each comparison times two calls in turns and prints the median of their ratios and the quartiles. The weights are random,
because only their sizes matter here.
"""

import argparse
import itertools
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from peft_listen import ListenConfig, get_selector

from .ratios import Call, Ratio, describe_machine, header, memory_ratio, time_in_turns


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

    def inputs(self, length: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        input_ids = torch.randint(self.config.vocab_size, (self.batch_size, length), generator=generator)
        input_ids = input_ids.to(self.device)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def compare(self, name: str, call: Call, peer: Call, before: tuple[Call, Call] | None = None) -> Ratio:
        turns = time_in_turns(
            call,
            peer,
            repeats=self.arguments.repeats,
            warm_up=self.arguments.warm_up,
            device=self.device,
            before=before,
        )
        result = Ratio(name, [seconds / peer_seconds for seconds, peer_seconds in turns])
        print(result.line(), flush=True)
        return result

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
        steps = [self._train_step(self.adapted(method)) for method in ("listen", peer_method)]
        peer = {"prompt_tuning": "PromptTuning of the same length", "lora": "LoRA r = 8 on q, v"}[peer_method]
        return self.compare(f"training step / {peer}", *steps)

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

    def selectors(self, keys_change: bool) -> Ratio:
        """
        Compares the residual selector with the similarity selector.

        The residual selector caches the Gram matrix of the keys until an optimizer step changes them. `keys_change`
        measures it without the cache.
        """
        torch.manual_seed(0)
        size, pool_size = self.arguments.selector_size, 400
        query = torch.randn(self.batch_size, size, device=self.device)
        pools = [torch.randn(pool_size, size, device=self.device) for _ in range(2 if keys_change else 1)]

        def selector(name: str) -> Callable[[], None]:
            selector, turn = get_selector(name), itertools.cycle(pools)
            return lambda: selector.select(query, next(turn), self.prompts)

        when = "different keys in each call" if keys_change else "same keys in each call"
        name = f"residual / similarity selector, P = {pool_size}, d = {size}, {when}"
        return self.compare(name, selector("residual"), selector("similarity"))

    def memory(self) -> Ratio:
        command = [sys.executable, "-m", "benchmarks.speed.tuner", *sys.argv[1:], "--memory-of"]
        pairs = []
        for _ in range(self.arguments.memory_repeats):
            listen, lora = (
                float(subprocess.run([*command, method], check=True, capture_output=True, text=True).stdout)
                for method in ("listen", "lora")
            )
            pairs.append((listen, lora))
        ratio = memory_ratio("peak memory of a training step above the base model / LoRA r = 8", pairs)
        print(ratio.line(), flush=True)
        return ratio

    def print_peak_memory(self, method: str) -> None:
        """
        Prints the peak memory of an adapter and two training steps above that of the base model, in bytes: allocated memory on
        CUDA, resident memory otherwise.
        """
        llm = self.llm()
        if self.device.type == "cuda":
            # Building the base model takes more memory than the model itself, and may take more than the training step.
            torch.cuda.reset_peak_memory_stats()
        before = self._peak_memory()  # on a CPU, the peak of building the base model, since it never decreases
        step = self._train_step(self.adapted(method, llm))
        step(), step()
        print(self._peak_memory() - before)

    def _peak_memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status")
        if status.exists():  # on Linux, `getrusage` includes the memory of the parent process
            kilobytes = re.search(r"VmHWM:\s*(\d+)", status.read_text())
            assert kilobytes is not None
            return int(kilobytes[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
    parser.add_argument("--memory-repeats", type=int, default=5, help="pairs of processes")
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
    print(f"{arguments.dtype}; {describe_machine(arguments.device)}")
    print(
        f"Llama of hidden size {arguments.hidden_size}, {arguments.layers} layers; {arguments.batch_size} rows of ",
        end="",
    )
    print(f"{arguments.length} tokens, k = {arguments.prompt_length} of P = {arguments.pool_size}; ", end="")
    print(f"{arguments.repeats} alternating repeats\n")
    print(header())
    benchmark.forward()
    benchmark.train_step("prompt_tuning")
    benchmark.decode()
    benchmark.selectors(keys_change=False)
    benchmark.selectors(keys_change=True)
    benchmark.train_step("lora")
    benchmark.memory()


if __name__ == "__main__":
    main()

"""Compare LiSTEN, LoRA and both together with TRL's SFTTrainer on a text LLM.

    python examples/sft_with_lora.py [--data train.jsonl] [--steps 200]

Each line of the data file is a JSON object with `prompt` and `completion`. A random part of the rows is held out; the
table at the end has the loss on them for each combination of adapters.
"""

from dataclasses import dataclass, field

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, HfArgumentParser
from trl import SFTConfig, SFTTrainer

from peft_listen import ListenConfig, add_lora
from peft_listen.training import ListenCallback, parameter_groups


ROWS = [
    *({"prompt": f"{n} plus {n + 1} is", "completion": f" {2 * n + 1}."} for n in range(40)),
    *({"prompt": f"The number after {n} is", "completion": f" {n + 1}."} for n in range(40)),
]
LISTEN = ListenConfig(pool_size=16, prompt_length=4, task_type="CAUSAL_LM")
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@dataclass
class Arguments:
    model: str = field(default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "folder or Hub id of an LLM"})
    data: str | None = field(default=None, metadata={"help": "JSON lines with `prompt` and `completion`"})
    output_dir: str = field(default="sft", metadata={"help": "receives a folder for each adapter"})
    steps: int = field(default=100, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=8, metadata={"help": "rows per step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of LoRA and of the keys"})
    test_share: float = field(default=0.1, metadata={"help": "fraction of the rows that is held out"})


def adapt(llm: torch.nn.Module, adapters: str) -> PeftModel:
    """Adds the named adapters, e.g. "listen + lora"."""
    if adapters == "lora":
        return get_peft_model(llm, LORA)
    model = get_peft_model(llm, LISTEN)
    return add_lora(model, LORA) if adapters == "listen + lora" else model


def train(adapters: str, dataset: dict[str, Dataset], arguments: Arguments) -> tuple[int, float]:
    """Trains one combination of adapters; returns its number of parameters and its loss on the held-out rows."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    model = adapt(llm, adapters)
    trainer = SFTTrainer(
        model,
        SFTConfig(
            f"{arguments.output_dir}/{adapters.replace(' + ', '-')}",
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch_size,
            gradient_checkpointing=False,
            bf16=torch.cuda.is_available(),
            logging_steps=10,
            report_to=[],
        ),
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        # The values of the pool get ten times the learning rate; without a pool there is a single group.
        optimizers=(torch.optim.AdamW(parameter_groups(model, arguments.learning_rate)), None),
        callbacks=[ListenCallback()] if "listen" in adapters else [],
    )
    trainer.train()
    trainer.save_model()
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return parameters, trainer.evaluate()["eval_loss"]


def main(arguments: Arguments) -> None:
    rows = (
        load_dataset("json", data_files=arguments.data, split="train") if arguments.data else Dataset.from_list(ROWS)
    )
    dataset = rows.train_test_split(arguments.test_share, seed=0)
    results = {adapters: train(adapters, dataset, arguments) for adapters in ("lora", "listen", "listen + lora")}
    print("\n| adapters | trainable parameters | loss on held-out rows |\n|---|---|---|")
    for adapters, (parameters, loss) in results.items():
        print(f"| {adapters} | {parameters} | {loss:.3f} |")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())

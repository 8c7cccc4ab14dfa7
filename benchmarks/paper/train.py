"""Trains LiSTEN on the paper's models: Whisper large-v2, BEATs iter3+, Llama-3-8B and a pool of 400 prompts.

    accelerate launch -m benchmarks.paper.train OUTPUT_DIR [--config benchmarks/paper/config.json] [--set NAME=VALUE ...]

`--set` overrides a value of the configuration, e.g. `--set training.max_steps=100 --set llm=Qwen/Qwen2.5-0.5B-Instruct`.
If the training is interrupted, the same command resumes it from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_utils import get_last_checkpoint

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.data import read_examples
from peft_listen.training import AudioListenCollator, ListenCallback, parameter_groups


CONFIG = Path(__file__).parent / "config.json"


def read_config(path: Path, overrides: list[str]) -> dict[str, Any]:
    """
    Reads the configuration and applies overrides.

    Args:
        path (`Path`): JSON file.
        overrides (`list[str]`): `NAME=VALUE` each, with a dotted name; values are parsed as JSON where possible.

    Returns:
        `dict`: the configuration.

    Raises:
        ValueError: for an override that is not `NAME=VALUE`, or whose name is not in the configuration.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    for override in overrides:
        name, equals, value = override.partition("=")
        *path_to, last = name.split(".")
        section = config
        for part in path_to:
            section = section.get(part, {}) if isinstance(section, dict) else {}
        # The file lists only some options of the adapter and of the Trainer; all of them may be set.
        if (
            not equals
            or not isinstance(section, dict)
            or (last not in section and path_to not in (["listen"], ["training"]))
        ):
            raise ValueError(
                f"--set {override}: expected NAME=VALUE with a name that {path} has, such as training.max_steps=100."
            )
        try:
            section[last] = json.loads(value)
        except json.JSONDecodeError:
            section[last] = value
    return config


def train(config: dict[str, Any], output_dir: Path) -> Trainer:
    """
    Trains the adapter and the projector, and saves both to `output_dir/adapter`.

    Args:
        config (`dict`): configuration as [`read_config`] returns it.
        output_dir (`Path`): receives `base` (projector and references to the frozen parts), `checkpoints` and `adapter`.

    Returns:
        [`~transformers.Trainer`]: the trainer after training.
    """
    parts = {name: config[name] for name in ("speech", "sound", "llm")}
    processor = AudioListenProcessor.from_sub_models_pretrained(**parts)
    base_dir = output_dir / "base"
    arguments = TrainingArguments(
        str(output_dir / "checkpoints"), remove_unused_columns=False, report_to=[], **config["training"]
    )
    with arguments.main_process_first(desc="base model"):
        if not (base_dir / "processor_config.json").is_file():
            torch.manual_seed(arguments.seed)
            base = AudioListenForCausalLM.from_sub_models_pretrained(
                **parts, tokenizer=processor.tokenizer, dtype=getattr(torch, config["dtype"])
            )
            base.save_pretrained(base_dir, save_frozen=False)
            processor.save_pretrained(base_dir)
    base = AudioListenForCausalLM.from_pretrained(base_dir)
    listen = ListenConfig.paper(
        **config["listen"], modules_to_save=["multi_modal_projector"], task_type="CAUSAL_LM", seed=arguments.seed
    )
    model = get_peft_model(base, listen)
    groups = parameter_groups(model, config["learning_rate"], value_learning_rate=config["value_learning_rate"])
    optimizer = torch.optim.AdamW(groups)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(arguments.max_steps), arguments.max_steps
    )
    datasets = {split: [dict(row) for row in read_examples(path)] for split, path in config["data"].items()}
    trainer = Trainer(
        model,
        arguments,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        data_collator=AudioListenCollator(processor),
        optimizers=(optimizer, scheduler),
        callbacks=[ListenCallback(init_keys_at_steps=config["init_keys_at_steps"])],
    )
    checkpoints = output_dir / "checkpoints"
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None)
    trainer.save_model(str(output_dir / "adapter"))
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override a value")
    arguments = parser.parse_args()
    train(read_config(arguments.config, arguments.set), arguments.output_dir)


if __name__ == "__main__":
    main()

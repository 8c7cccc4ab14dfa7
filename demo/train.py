"""Trains the demo's adapter with the Trainer: a pool of prompts and the projector. Everything else stays frozen.

    python -m demo.train BASE_DIR DATA_DIR OUTPUT_DIR

If the training is interrupted, the same command resumes it from the last checkpoint.
"""

import argparse
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup
from transformers.trainer_utils import get_last_checkpoint

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.data import read_examples
from peft_listen.training import (
    AudioListenCollator,
    FeatureCache,
    ListenCallback,
    chat_template_token_ids,
    parameter_groups,
)


# A value is trained only in the steps that select it, so a few hundred steps need a small pool.
LISTEN_CONFIG = {
    "pool_size": 64,
    "prompt_length": 8,
    "max_train_prompt_length": 16,
    "num_shared_prompts": 8,
    "shared_prompt_mode": "prepend",
}
INIT_KEYS_AT_STEPS = (8, 40)


def train(
    base_dir: Path,
    data_dir: Path,
    output_dir: Path,
    steps: int = 200,
    batch_size: int = 8,
    learning_rate: float = 5e-4,
    value_learning_rate: float = 5e-3,
    seed: int = 0,
) -> None:
    """
    Trains on `data_dir/train.jsonl` and saves the adapter to `output_dir/adapter`.

    Args:
        base_dir (`Path`): folder of the base model, as [`build_base`] writes it.
        data_dir (`Path`): folder with `train.jsonl`.
        output_dir (`Path`): receives `features` (encoder outputs of the clips), `checkpoints` and `adapter`.
        steps (`int`, defaults to 200): optimizer steps.
        batch_size (`int`, defaults to 8): clips per step.
        learning_rate (`float`, defaults to 5e-4): learning rate of the projector and the keys.
        value_learning_rate (`float`, defaults to 5e-3): learning rate of the values.
        seed (`int`, defaults to 0): seed of the initialization, the order of the data and the prompt lengths.
    """
    torch.manual_seed(seed)
    processor = AudioListenProcessor.from_pretrained(base_dir)
    model = AudioListenForCausalLM.from_pretrained(base_dir)
    examples = [dict(example) for example in read_examples(data_dir / "train.jsonl")]

    features = FeatureCache(output_dir / "features", model)
    if features.build(model, processor, [example["audio"] for example in examples]) == 0:
        print(f"reusing {features.folder} ({len(features)} clips)")

    config = ListenConfig(
        **LISTEN_CONFIG,
        query_ignored_token_ids=chat_template_token_ids(processor),
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
        seed=seed,
    )
    adapted = get_peft_model(model, config)
    adapted.print_trainable_parameters()
    groups = parameter_groups(adapted, learning_rate, value_learning_rate=value_learning_rate)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    trainer = Trainer(
        adapted,
        TrainingArguments(
            str(output_dir / "checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            logging_steps=25,
            save_steps=50,
            save_total_limit=1,
            remove_unused_columns=False,
            report_to=[],
            seed=seed,
        ),
        train_dataset=examples,
        data_collator=AudioListenCollator(processor, feature_cache=features),
        optimizers=(
            optimizer,
            get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=10, num_training_steps=steps),
        ),
        callbacks=[ListenCallback(init_keys_at_steps=INIT_KEYS_AT_STEPS)],
    )
    checkpoints = output_dir / "checkpoints"
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    adapted.save_pretrained(output_dir / "adapter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base_dir", type=Path)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of projector and keys")
    parser.add_argument("--value-learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()

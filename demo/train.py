"""Trains the demo's adapter with the Trainer: a pool of prompts and the projector. Everything else stays frozen.

    python -m demo.train BASE_DIR DATA_DIR OUTPUT_DIR

If the training is interrupted, the same command resumes it from the last checkpoint.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from demo import defaults
from offline.bfloat16 import convert_linear_layers, is_bfloat16_faster
from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.data import read_examples
from peft_listen.training import (
    AudioListenCollator,
    FeatureCache,
    ListenCallback,
    TaskMixture,
    chat_template_token_ids,
    create_listen_optimizer,
)


# A value is trained only in the steps that select it, so a few hundred steps need a small pool.
POOL_SIZE = 64
PROMPT_LENGTH = 8
INIT_KEYS_AT_STEPS = (8, 40)
OUTPUT_LAYER_RATE = 0.2


def train(
    base_dir: Path,
    data_dir: Path,
    output_dir: Path,
    steps: int = defaults.STEPS,
    batch_size: int = defaults.BATCH_SIZE,
    learning_rate: float = defaults.LEARNING_RATE,
    seed: int = defaults.SEED,
    features: Path | None = None,
) -> None:
    """
    Trains on `data_dir/train.jsonl` and saves the adapter to `output_dir/adapter`.

    Args:
        base_dir (`Path`): folder of the base model, as [`build_base`] writes it.
        data_dir (`Path`): folder with `train.jsonl`.
        output_dir (`Path`): receives `checkpoints` and `adapter`.
        steps (`int`): optimizer steps.
        batch_size (`int`): clips per step.
        learning_rate (`float`): learning rate, from which [`create_listen_optimizer`] derives those of the prompts.
        seed (`int`): seed of the adapter's initialization and of the order of the data.
        features (`Path`, *optional*): folder of the encoder outputs of the clips; `output_dir/features` if not given.
    """
    torch.manual_seed(seed)
    processor = AudioListenProcessor.from_pretrained(base_dir)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = device or torch.device("cpu")
    # On a CPU, torch's fused attention is slower than the plain one for so short sequences.
    attention = "eager" if device.type == "cpu" else "sdpa"
    model = AudioListenForCausalLM.from_pretrained(base_dir, attn_implementation=attention)
    examples = [dict(example) for example in read_examples(data_dir / "train.jsonl")]

    cache = FeatureCache(output_dir / "features" if features is None else features, model)
    if cache.build(model, processor, [example["audio"] for example in examples]) == 0:
        print(f"reusing {cache.folder} ({len(cache)} clips)")

    # Sentences of all voices: the difficult tasks are about speech, and the sounds are learned anyway.
    model.init_projector_from(cache[example["audio"]] for example in examples if example["task"] == "keyword")
    config = ListenConfig(
        pool_size=POOL_SIZE,
        prompt_length=PROMPT_LENGTH,
        query_ignored_token_ids=chat_template_token_ids(processor),
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
        seed=seed,
    )
    adapted = get_peft_model(model, config)
    adapted.print_trainable_parameters()
    bfloat16 = is_bfloat16_faster(device)
    if bfloat16:
        convert_linear_layers(model.model.language_model, torch.bfloat16)
    checkpoints = output_dir / "checkpoints"
    training_arguments = TrainingArguments(
        str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        adam_beta2=0.98,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        use_cpu=device.type == "cpu",
        bf16=bfloat16,
        logging_steps=25,
        save_steps=100,
        save_total_limit=1,
        remove_unused_columns=False,
        report_to=[],
        seed=seed,
    )
    # The weights of this layer are that much smaller than those of the others: at the same rate, voices are learned by heart.
    rates = {"multi_modal_projector.modules_to_save.default.linear": OUTPUT_LAYER_RATE * learning_rate}
    trainer = MixtureTrainer(
        adapted,
        training_arguments,
        train_dataset=examples,
        data_collator=AudioListenCollator(processor, feature_cache=cache),
        optimizers=(create_listen_optimizer(adapted, training_arguments, other_learning_rates=rates), None),
        callbacks=[ListenCallback(init_keys_at_steps=INIT_KEYS_AT_STEPS)],
        mixture=TaskMixture([example["task"] for example in examples], weights=defaults.TASK_WEIGHTS, seed=seed),
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
    adapted.save_pretrained(output_dir / "adapter")


class MixtureTrainer(Trainer):
    """A trainer that draws its rows from a mixture of tasks."""

    def __init__(self, *args: Any, mixture: TaskMixture, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mixture = mixture

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> TaskMixture:
        return self.mixture


def _last_checkpoint(folder: Path) -> str | None:
    """The last complete checkpoint. The Trainer writes `trainer_state.json` last."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").is_file():
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's adapter: a pool of prompts and the projector.")
    parser.add_argument("base_dir", type=Path)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--steps", type=int, default=defaults.STEPS)
    parser.add_argument("--batch-size", type=int, default=defaults.BATCH_SIZE)
    parser.add_argument("--learning-rate", type=float, default=defaults.LEARNING_RATE)
    parser.add_argument("--seed", type=int, default=defaults.SEED)
    parser.add_argument("--features", type=Path, help="folder of encoder outputs (default: OUTPUT_DIR/features)")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()

"""Teach a frozen LLM to answer questions about your own audio files, with the Trainer.

    python examples/audio_adapter.py --data train.jsonl [--steps 2000] [--output_dir audio-adapter]

Each line of the data file describes one example. The path is relative to the data file's folder:

    {"audio": "dog.wav", "instruction": "What do you hear?", "answer": "a dog barking", "task": "sounds"}

The encoder and the LLM stay frozen. The projector between them and a pool of prompts are trained.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import HfArgumentParser, Trainer, TrainingArguments, pipeline

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.data import read_examples
from peft_listen.training import (
    AudioListenCollator,
    FeatureCache,
    ListenCallback,
    chat_template_token_ids,
    create_listen_optimizer,
)


@dataclass
class Arguments:
    data: str = field(metadata={"help": "JSON lines with `audio`, `instruction`, `answer` and `task`"})
    speech: str = field(default="openai/whisper-tiny.en", metadata={"help": "folder or Hub id of a Whisper model"})
    llm: str = field(default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "folder or Hub id of an LLM"})
    output_dir: str = field(default="audio-adapter", metadata={"help": "receives base model, features and adapter"})
    steps: int = field(default=2000, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=8, metadata={"help": "examples per step"})
    learning_rate: float = field(default=3e-4, metadata={"help": "of all but shared prompts, which get ten times it"})


def load_base(arguments: Arguments, base_dir: Path) -> tuple[AudioListenForCausalLM, AudioListenProcessor]:
    """Composes the base model from published parts, or loads it if it has been composed before."""
    if not (base_dir / "processor_config.json").is_file():
        parts = {"speech": arguments.speech, "llm": arguments.llm}
        processor = AudioListenProcessor.from_sub_models_pretrained(**parts)
        model = AudioListenForCausalLM.from_sub_models_pretrained(
            **parts, tokenizer=processor.tokenizer, dtype=torch.float32
        )
        model.save_pretrained(base_dir, save_frozen=False)  # the projector, and references to the frozen parts
        processor.save_pretrained(base_dir)
    return AudioListenForCausalLM.from_pretrained(base_dir), AudioListenProcessor.from_pretrained(base_dir)


def main(arguments: Arguments) -> None:
    output_dir = Path(arguments.output_dir)
    base, processor = load_base(arguments, output_dir / "base")
    examples = read_examples(arguments.data)
    # The encoders are frozen, so each clip is encoded once for the whole training.
    features = FeatureCache(output_dir / "features", base)
    features.build(base, processor, [example["audio"] for example in examples if example["audio"] is not None])

    config = ListenConfig(
        pool_size=64,
        prompt_length=8,
        query_ignored_token_ids=chat_template_token_ids(processor),
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    model.print_trainable_parameters()
    training_arguments = TrainingArguments(
        str(output_dir / "checkpoints"),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        logging_steps=25,
        remove_unused_columns=False,  # the collator needs all of them
        report_to=[],
    )
    trainer = Trainer(
        model,
        training_arguments,
        train_dataset=examples,
        data_collator=AudioListenCollator(processor, feature_cache=features),
        optimizers=(create_listen_optimizer(model, training_arguments), None),
        callbacks=[ListenCallback(init_keys_at_steps=(8, 64))],
    )
    trainer.train()
    trainer.save_model(str(output_dir / "adapter"))

    ask = pipeline("audio-text-to-text", model=str(output_dir / "adapter"))
    for example, output in zip(examples, ask(examples[:3], max_new_tokens=20), strict=False):
        print(f"{example['audio']}: {example['instruction']} {output[0]['generated_text'].strip()}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())

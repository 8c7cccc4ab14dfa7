"""Train a LiSTEN adapter on a text LLM with the Trainer, and print its answers.

    python examples/text_adapter.py [--data train.jsonl] [--steps 200] [--output_dir text-adapter]

Each line of the data file is a JSON object with the fields `instruction` and `answer`. Without `--data` the script trains
on the four rows below.
"""

from dataclasses import dataclass, field

import torch
from datasets import Dataset, load_dataset
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from peft_listen import ListenConfig
from peft_listen.training import ListenCallback, parameter_groups


ROWS = [
    {"instruction": "What is the capital of France?", "answer": "Paris"},
    {"instruction": "What is the capital of Italy?", "answer": "Rome"},
    {"instruction": "Write the plural of mouse.", "answer": "mice"},
    {"instruction": "Write the plural of child.", "answer": "children"},
]


@dataclass
class Arguments:
    model: str = field(default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "folder or Hub id of an LLM"})
    data: str | None = field(default=None, metadata={"help": "JSON lines with `instruction` and `answer`"})
    output_dir: str = field(default="text-adapter", metadata={"help": "receives checkpoints and the adapter"})
    steps: int = field(default=40, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=4, metadata={"help": "rows per step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of the keys; the values get ten times as much"})


def main(arguments: Arguments) -> None:
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def render(instruction: str) -> str:
        messages = [{"role": "user", "content": instruction}]
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def tokenize(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(render(row["instruction"]), add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["answer"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        # Only the answer is supervised. The labels also mark the tokens that must not be part of the query.
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}

    rows = (
        load_dataset("json", data_files=arguments.data, split="train") if arguments.data else Dataset.from_list(ROWS)
    )
    dataset = rows.map(tokenize, remove_columns=rows.column_names)

    llm = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    # A prompt is trained only in the steps that select it, so short training runs need a small pool.
    config = ListenConfig(pool_size=16, prompt_length=4, task_type="CAUSAL_LM")
    model = get_peft_model(llm, config)
    model.print_trainable_parameters()
    trainer = Trainer(
        model,
        TrainingArguments(
            arguments.output_dir,
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch_size,
            logging_steps=10,
            report_to=[],
        ),
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        optimizers=(torch.optim.AdamW(parameter_groups(model, arguments.learning_rate)), None),
        callbacks=[ListenCallback()],
    )
    trainer.train()
    trainer.save_model(arguments.output_dir)

    model.eval()
    for row in rows.select(range(min(4, len(rows)))):
        inputs = tokenizer(render(row["instruction"]), add_special_tokens=False, return_tensors="pt").to(model.device)
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"{row['instruction']} {answer.strip()}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())

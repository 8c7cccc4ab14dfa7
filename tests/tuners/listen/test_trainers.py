"""With `Trainer`, TRL's `SFTTrainer` and two processes, the keys get the gradient of the full batch."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from peft_listen.training import ListenCallback
from peft_listen.tuners.listen.prompt_length import train_prompt_length
from tests.sharding.launching import run_two_processes


LENGTHS = (7, 4, 6, 5)  # the rows have different numbers of supervised tokens
PROMPT = 3


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, index):
        row = torch.randint(3, 56, (LENGTHS[index],), generator=torch.Generator().manual_seed(index))
        return {"input_ids": row.tolist(), "labels": [-100] * PROMPT + row[PROMPT:].tolist()}


def collate(rows):
    length = max(len(row["input_ids"]) for row in rows)

    def pad(values, value):
        return list(values) + [value] * (length - len(values))

    return {
        "input_ids": torch.tensor([pad(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([pad(row["labels"], -100) for row in rows]),
    }


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.gradients:
            self.gradients = {
                name.rsplit(".", 1)[1]: parameter.grad.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }


def arguments(cls, folder, **changes):
    settings = {"max_steps": 2, "max_grad_norm": 0.0, "report_to": [], "save_strategy": "no", "use_cpu": True}
    settings |= {"remove_unused_columns": False, "learning_rate": 0.1, "disable_tqdm": True, "optim": "sgd"}
    return cls(output_dir=str(folder), **settings, **changes)


def by_hand(model):
    """Gradients of keys and values for the full batch, computed from the two losses explicitly."""
    batch = collate([Rows()[i] for i in range(len(LENGTHS))])
    pool = model.base_model.layer.pool_of()
    keys, values, mean = pool.keys, pool.values, pool.query_mean
    k = train_prompt_length(pool.config, 0)
    count = sum(LENGTHS) - PROMPT * len(LENGTHS)
    base = model.get_base_model()
    loss = 0.0
    with model.disable_adapter():
        keys.requires_grad_(True), values.requires_grad_(True)
        for row, length in zip(batch["input_ids"], LENGTHS, strict=True):
            embeds = base.get_input_embeddings()(row[:length]).detach()
            query = embeds[:PROMPT].mean(dim=0) - mean
            selected = torch.nn.functional.cosine_similarity(query[None], keys.detach(), dim=-1).topk(k).indices
            logits = base(inputs_embeds=torch.cat([values[selected], embeds])[None]).logits[0, k:]
            tokens = torch.nn.functional.cross_entropy(logits[PROMPT - 1 : -1], row[PROMPT:length], reduction="sum")
            key_loss = (query - keys[selected]).norm(dim=-1).mean()
            loss = loss + (tokens + 0.1 * (length - PROMPT) * key_loss) / count
        gradients = torch.autograd.grad(loss, (keys, values))
    return dict(zip(("keys", "values"), gradients, strict=True))


@pytest.fixture
def model(build, attach):
    return attach(build(), max_train_prompt_length=6, prompt_length=4, center_queries=True).train()


def check(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_the_gradient_in_the_trainer_is_that_of_the_full_batch(accumulation, task_type, build, attach, tmp_path):
    model = attach(build(), max_train_prompt_length=6, center_queries=True, task_type=task_type).train()
    expected, callback = by_hand(model), Gradients()
    sizes = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    make_trainer("Trainer", model, tmp_path, [callback], **sizes).train()
    check(callback.gradients, expected)


def make_trainer(kind, model, folder, callbacks, **changes):
    """HF's `Trainer`, or TRL's `SFTTrainer`."""
    if kind == "Trainer":
        args = arguments(TrainingArguments, folder, **changes)
        return Trainer(model, args, train_dataset=Rows(), data_collator=collate, callbacks=callbacks)
    import datasets
    import trl

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(i): i for i in range(61)}, unk_token="0")), pad_token="0"
    )
    settings = {"dataset_kwargs": {"skip_prepare_dataset": True}, "bf16": False, "gradient_checkpointing": False}
    rows = datasets.Dataset.from_list([Rows()[i] for i in range(len(LENGTHS))])
    return trl.SFTTrainer(
        model,
        arguments(trl.SFTConfig, folder, **settings, **changes),
        train_dataset=rows,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=callbacks,
    )


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_supervised_fine_tuning_gives_the_gradient_of_the_trainer(accumulation, model, tmp_path):
    pytest.importorskip("trl")
    expected, callback = by_hand(model), Gradients()
    sizes = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    make_trainer("SFTTrainer", model, tmp_path, [callback], **sizes).train()
    check(callback.gradients, expected)


OTHER_TRAINERS = {
    "GRPO, RLOO": ("log_probs", "entropy"),
    "KTO": ("log_probs", "entropy", "mean_logits"),
    "DPO": ("log_probs", "entropy", "mean_logits", "is_top1"),
}


@pytest.mark.filterwarnings("ignore:The trainer computes its loss from the model's outputs")
@pytest.mark.parametrize("trainer", OTHER_TRAINERS)
def test_log_probabilities_of_other_trainers_do_not_change(trainer, build, attach):
    trl_utils = pytest.importorskip("trl.trainer.utils")
    if not hasattr(trl_utils, "add_fused_lm_head"):
        pytest.skip("this version of TRL has no fused head")
    model = attach(build(), stochastic_prompt_length=False).train()
    batch = collate([Rows()[i] for i in range(len(LENGTHS))])
    expected = model(**batch).loss
    trl_utils.add_fused_lm_head(model.get_base_model(), outputs=OTHER_TRAINERS[trainer])
    output = model(**batch, fused_lm_head=True)
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1].log_softmax(dim=-1)  # labels: for the same query
    labels = batch["labels"][:, 1:]
    log_probs = logits.gather(-1, labels.clamp_min(0)[..., None])[..., 0].masked_fill(labels == -100, 0)
    torch.testing.assert_close(output.log_probs, log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)


TWO_PROCESSES = [("Trainer", 2, 1), ("Trainer", 1, 2), ("SFTTrainer", 2, 1), ("SFTTrainer", 1, 2)]


def train_as_process(folder):
    """Trains as one of two processes, and writes what it has found."""
    from tests.tuners.listen import conftest

    torch.set_num_threads(1)
    for kind, size, accumulation in TWO_PROCESSES:
        build, attach = conftest.build.__wrapped__(), conftest.attach.__wrapped__()
        model = attach(build(), max_train_prompt_length=6, center_queries=True).train()
        callback = Gradients()
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = make_trainer(kind, model, folder, [callback], **sizes)
        with model.record_selections() as records:
            trainer.train()
        lengths = torch.tensor([record.indices.shape[1] for record in records])
        mean = model.base_model.layer.listen_pools["default"].query_mean.clone()
        file = folder / f"{kind}-{accumulation}-rank{trainer.args.process_index}.safetensors"
        save_file({**callback.gradients, "lengths": lengths, "mean": mean}, file)


@pytest.mark.cpu_only("its processes use gloo")
def test_two_processes_give_the_gradient_of_one(model, tmp_path):
    pytest.importorskip("trl")
    expected = by_hand(model)
    variables = {"ACCELERATE_USE_CPU": "true"}
    outputs = run_two_processes("tests.tuners.listen.test_trainers", [str(tmp_path)], tmp_path, variables, timeout=240)
    for kind, _, accumulation in TWO_PROCESSES:
        files = [tmp_path / f"{kind}-{accumulation}-rank{rank}.safetensors" for rank in (0, 1)]
        assert all(file.exists() for file in files), outputs[0][-2000:]
        results = [load_file(file) for file in files]
        for rank in results:
            check({name: rank[name] for name in expected}, expected)
        # Every micro-batch of a step, on every rank, had the same number of prompts; the second step has another.
        assert torch.equal(results[0]["lengths"], results[1]["lengths"])
        assert len(results[0]["lengths"]) == 2 * accumulation
        assert len(results[0]["lengths"].unique()) == 2
        torch.testing.assert_close(results[0]["mean"], results[1]["mean"])


class Interruption(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == 3
        control.should_save = state.global_step == 3
        return control


def test_a_resumed_run_gives_the_same_adapter_as_an_uninterrupted_one(build, attach, tmp_path):
    def run(folder, callbacks=(), resume=None):
        model = attach(build(), center_queries=True, query_mean_momentum=0.5).train()
        args = arguments(TrainingArguments, folder, per_device_train_batch_size=2, lr_scheduler_type="constant")
        args.max_steps = 6
        callbacks = [ListenCallback(), *callbacks]
        trainer = Trainer(model, args, train_dataset=Rows(), data_collator=collate, callbacks=callbacks)
        with model.record_selections() as records:
            trainer.train(resume_from_checkpoint=resume)
        state = {name: tensor for name, tensor in model.state_dict().items() if "prompt_pool" in name}
        return [record.indices.shape[1] for record in records], state

    lengths, expected = run(tmp_path / "whole")
    run(tmp_path / "cut", callbacks=[Interruption()])
    resumed, state = run(tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-3"))
    assert resumed == lengths[3:]
    assert len(set(lengths)) > 3
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        ("Trainer", {"label_smoothing_factor": 0.1}, "`label_smoothing_factor`=0.1.*key loss is dropped"),
        ("SFTTrainer", {"loss_type": "dft"}, "`loss_type='dft'` weights the loss of every token"),
    ],
)
def test_an_option_that_distorts_the_key_loss_gives_a_warning_when_training_begins(
    kind, option, message, model, tmp_path
):
    pytest.importorskip("trl")
    trainer = make_trainer(kind, model, tmp_path, [ListenCallback()], **option)
    with pytest.warns(UserWarning, match=message):
        trainer.train()


def test_a_custom_loss_function_in_the_trainer_gives_a_warning(model, tmp_path):
    def loss_function(outputs, labels, num_items_in_batch=None):
        return outputs.logits.float().mean()

    trainer = make_trainer("Trainer", model, tmp_path, [])
    trainer.compute_loss_func = loss_function
    with pytest.warns(UserWarning, match=r"in training mode got no `labels`.*no key loss is added"):
        trainer.train()


if __name__ == "__main__":
    train_as_process(Path(sys.argv[1]))

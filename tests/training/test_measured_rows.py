"""Collapse is measured on one state of the model, in evaluation mode, and the log has the report's numbers."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from peft_listen.analysis import mean_pairwise_cosine, record_dataset, summarize
from peft_listen.training import AudioListenCollator, FeatureCache, ListenCallback
from peft_listen.training.measured_rows import MeasuredRows


MEASURES = ("query_cosine", "key_cosine", "top_prompt_share")


def train(model, dataset, collator, folder, *callbacks, **changes):
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    settings |= {"save_strategy": "no", "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 3}
    args = TrainingArguments(str(folder), remove_unused_columns=False, **(settings | changes))
    trainer = Trainer(model, args, train_dataset=dataset, data_collator=collator, callbacks=list(callbacks))
    trainer.train()
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


def test_queries_that_are_equal_in_evaluation_make_the_alarm_speak(make_adapted, examples, processor, tmp_path):
    same = [{**examples[0], "answer": answer} for answer in ("yes", "no") * 4]
    model = make_adapted(dropout=0.5)
    with (
        pytest.warns(UserWarning, match=r"queries of different rows have nearly the same direction \(mean cosine 1"),
        model.record_selections() as records,
    ):
        trainer = train(model, same, AudioListenCollator(processor), tmp_path, ListenCallback())
    pool = model.base_model.layer.pool_of()
    in_training = pool.normalize_query(torch.cat([record.query for record in records]))
    assert mean_pairwise_cosine(in_training) < 0.5  # dropout makes equal inputs look different
    assert logged(trainer, "query_cosine") == pytest.approx([1.0] * 3)
    assert logged(trainer, "top_prompt_share") == [1.0] * 3


@pytest.mark.parametrize("is_cached", [False, True], ids=["clips", "cached features"])
def test_log_and_report_have_the_same_numbers(make_adapted, examples, clips, processor, tmp_path, is_cached):
    model = make_adapted(dropout=0.5)
    cache = None
    if is_cached:
        cache = FeatureCache(tmp_path / "features", model)
        cache.build(model.get_base_model().eval(), processor, clips)
    collator = AudioListenCollator(processor, feature_cache=cache)
    trainer = train(model, examples, collator, tmp_path, ListenCallback(init_keys_at_steps=(2,)))
    assert model.training
    summary = summarize(record_dataset(model, examples, collator=collator, batch_size=1))
    for measure in MEASURES:
        assert logged(trainer, measure)[-1] == getattr(summary, measure)
    assert len(set(logged(trainer, "query_cosine"))) == 3  # each is that of its own step


def test_the_measurement_does_not_change_the_training(make_adapted, examples, processor, tmp_path):
    results = []
    for callbacks in ((), (ListenCallback(),)):
        model = make_adapted(dropout=0.5, stochastic_prompt_length=False)
        with model.record_selections() as records:
            trainer = train(model, examples, AudioListenCollator(processor), tmp_path, *callbacks)
        assert len(records) == 3
        assert model.key_loss is not None
        results.append((logged(trainer, "loss"), records[-1].query, model.base_model.layer.pool_of().query_mean))
    (losses, query, mean), (measured_losses, measured_query, measured_mean) = results
    assert losses == measured_losses
    assert torch.equal(query, measured_query) and torch.equal(mean, measured_mean)


class Stream(IterableDataset):
    """Rows that can be read only once."""

    def __init__(self, rows):
        self._rows = iter(rows)

    def __iter__(self):
        return self._rows


def test_an_iterable_dataset_is_measured_on_its_first_rows(make_adapted, examples, processor, tmp_path):
    model = make_adapted(dropout=0.5)
    collator = AudioListenCollator(processor)
    # The default of older versions of accelerate concatenates batches, which contain numbers.
    whole_batches = {"accelerator_config": {"dispatch_batches": False}}
    trainer = train(model, Stream(examples * 3), collator, tmp_path, ListenCallback(), **whole_batches)
    summary = summarize(record_dataset(model, examples * 3, collator=collator, batch_size=4))
    for measure in MEASURES:
        assert logged(trainer, measure)[-1] == pytest.approx(getattr(summary, measure), abs=1e-6)
    hooks = model.base_model.layer.hooks
    assert len(hooks.language_model._forward_pre_hooks) == 1  # the tuner's own


class Rows:
    def __init__(self, rows):
        self.dataset = rows
        self.collated = []

    def collate_fn(self, rows):
        self.collated.extend(rows)
        return {"input_ids": torch.tensor([[3, 4 + rows[0]]]), "labels": torch.tensor([[-100, 4]])}


@pytest.mark.parametrize(
    ("size", "expected"), [(3, [0, 1, 2]), (8, list(range(8))), (100, [0, 12, 25, 37, 50, 62, 75, 87])]
)
def test_the_rows_are_spread_over_the_dataset(make_adapted, size, expected):
    dataloader = Rows(list(range(size)))
    rows = MeasuredRows(make_adapted().base_model, dataloader, num_rows=8)
    assert dataloader.collated == expected
    assert len(rows) == len(expected)
    assert rows.measures().keys() == set(MEASURES)


def test_each_module_returns_to_its_own_mode(make_adapted):
    model = make_adapted(dropout=0.5).train()
    projector = model.get_base_model().model.multi_modal_projector.eval()
    modes = [module.training for module in model.modules()]
    rows = MeasuredRows(model.base_model, Rows([0, 1]))
    rows.measures()
    assert [module.training for module in model.modules()] == modes
    assert model.training and not projector.training


def test_a_query_from_a_hidden_layer_is_measured_under_the_autocast_of_the_training(
    make_adapted, examples, processor, tmp_path
):
    model = make_adapted(query_layer=1, query_text="last")
    for module in model.get_base_model().model.language_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(torch.bfloat16)
    trainer = train(model, examples, AudioListenCollator(processor), tmp_path, ListenCallback(), bf16=True)
    assert len(logged(trainer, "query_cosine")) == 3


def test_nothing_is_measured_without_an_active_adapter(make_adapted):
    model = make_adapted()
    rows = MeasuredRows(model.base_model, Rows([0, 1]))
    with model.disable_adapter():
        assert rows.measures() == {}


class PreferenceTrainer(Trainer):
    """Makes the arguments of the model from batches of its own, like the trainers of preferences."""

    def compute_loss(self, model, inputs, **kwargs):
        if isinstance(inputs, dict):
            ids, labels = inputs["chosen_input_ids"], inputs["chosen_labels"]
        else:
            ids, labels = (torch.tensor([row[name] for row in inputs]) for name in ("ids", "labels"))
        return model(input_ids=ids, labels=labels).loss


def chosen(rows):
    return {f"chosen_{new}": torch.tensor([row[old] for row in rows]) for new, old in
            (("input_ids", "ids"), ("labels", "labels"))}  # fmt: skip


@pytest.mark.parametrize("collator", [chosen, list], ids=["other arguments", "a list"])
def test_batches_that_are_not_arguments_are_measured_in_the_forward_passes(make_adapted, tmp_path, collator):
    rows = [{"ids": [3, 4 + index], "labels": [-100, 4]} for index in range(8)]
    args = TrainingArguments(
        str(tmp_path), remove_unused_columns=False, max_steps=2, logging_steps=1, save_strategy="no", use_cpu=True,
        per_device_train_batch_size=4, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    model = make_adapted()
    trainer = PreferenceTrainer(model, args, train_dataset=rows, data_collator=collator, callbacks=[ListenCallback()])
    trainer.train()
    for measure in MEASURES:
        assert len(logged(trainer, measure)) == 2


class WithTask(Rows):
    def collate_fn(self, rows):
        return super().collate_fn(rows) | {"task": "asr"}


def test_only_arguments_of_the_model_are_passed(make_adapted, monkeypatch):
    model = make_adapted()
    language_model = model.base_model.layer.hooks.language_model
    forward = language_model.forward

    def strict(input_ids=None, attention_mask=None, labels=None):
        return forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    monkeypatch.setattr(language_model, "forward", strict)
    rows = MeasuredRows(model.base_model, WithTask([0, 1]))
    assert {name for batch in rows._batches for name in batch} == {"input_ids", "labels"}
    assert rows.measures().keys() == set(MEASURES)


class Augmented:
    """Draws from each generator when a row is read."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return int(torch.randint(9, ())) + random.randrange(9) + int(np.random.randint(9))


def test_reading_the_rows_does_not_change_the_random_states(make_adapted):
    model = make_adapted()

    def draws():
        return float(torch.rand(())), random.random(), float(np.random.rand())

    results = []
    for is_measured in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        if is_measured:
            assert len(MeasuredRows(model.base_model, Rows(Augmented()))) == 32
        results.append(draws())
    assert results[0] == results[1]

import pytest
import torch

from peft_listen.runs import building
from peft_listen.runs.building import prepare_projector
from peft_listen.training import AudioListenCollator
from tests.small_models import make_chat_model, make_chat_processor, make_llm


CPU = torch.device("cpu")


@pytest.fixture
def base():
    return make_chat_model(sound=False).cpu()


@pytest.fixture
def collator() -> AudioListenCollator:
    return AudioListenCollator(make_chat_processor(sound=False))


def norm_of(base) -> torch.nn.LayerNorm:
    return base.model.multi_modal_projector.speech_layer_norm


def test_a_new_projector_is_prepared_for_the_clips_and_a_trained_one_is_left(base, collator, examples) -> None:
    assert base.model.multi_modal_projector.is_new
    prepare_projector(base, collator, examples, CPU)
    prepared = norm_of(base).weight.clone()
    assert not base.model.multi_modal_projector.is_new
    assert (prepared != 1).all()
    prepare_projector(base, collator, examples[:1], CPU)
    assert torch.equal(norm_of(base).weight, prepared)


def test_rows_without_audio_are_not_used(base, collator, examples, monkeypatch) -> None:
    text = {"instruction": "What is said?", "answer": "fox", "task": "text"}
    prepare_projector(base, collator, [], CPU)
    prepare_projector(base, collator, [text], CPU)
    assert base.model.multi_modal_projector.is_new
    monkeypatch.setattr(building, "_PREPARING_ROWS", 4)
    prepare_projector(base, collator, [row for example in examples for row in (text, example)], CPU)
    with_text = norm_of(base).weight.clone()
    norm_of(base).reset_parameters()
    prepare_projector(base, collator, examples, CPU)
    torch.testing.assert_close(norm_of(base).weight, with_text)


def test_evenly_spaced_rows_are_read(base, collator, examples, monkeypatch) -> None:
    monkeypatch.setattr(building, "_PREPARING_ROWS", 3)

    class Counting:
        feature_cache = None

        def __init__(self) -> None:
            self.read: list[int] = []

        def __call__(self, rows):
            self.read += [row["number"] for row in rows]
            return collator(rows)

    counting = Counting()
    prepare_projector(base, counting, [{**row, "number": number} for number, row in enumerate(examples * 2)], CPU)
    assert counting.read == [0, 3, 6]


def test_another_model_is_left_as_it_is(collator, examples) -> None:
    llm = make_llm("llama")
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    prepare_projector(llm, collator, examples, CPU)
    assert all(torch.equal(value, before[name]) for name, value in llm.state_dict().items())

"""The derived memory and time: counts of models that can be counted otherwise, and the page that shows them."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.markdown import markers
from benchmarks.paper import scaling
from benchmarks.speed.sizes import LANGUAGE_MODELS, make_audio_model, make_processor
from tests.pages import ROOT


@pytest.fixture(scope="module")
def counts():
    return scaling.count("small")


def test_the_parameters_are_those_of_the_model(counts):
    model = make_audio_model("small", make_processor("small"), "cpu", "float32")
    projector = sum(parameter.numel() for parameter in model.model.multi_modal_projector.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert counts.projector == projector
    assert counts.frozen + counts.projector == total
    assert counts.decoder == sum(
        parameter.numel()
        for name, parameter in model.model.language_model.named_parameters()
        if "embed_tokens" not in name
    )
    assert counts.pool == 2 * scaling.POOL_SIZE * counts.hidden


def test_what_autograd_keeps_for_a_layer_is_counted_as_on_a_cpu(monkeypatch):
    # With the sizes of `small`, in float32: with tensors that have values, and their storages counted.
    saved, outside = scaling.saved_per_token("small", torch.float32, tokens=16)
    config = LlamaConfig(**dict(LANGUAGE_MODELS["small"]), attn_implementation="counted")
    model = LlamaForCausalLM._from_config(config, dtype=torch.float32).model.requires_grad_(False).train()
    embeds = torch.randn(1, 16, config.hidden_size, requires_grad=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in (*model.parameters(), embeds)}
    sizes = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept, so that no address is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        positions = torch.arange(16)[None]
        model(inputs_embeds=embeds, attention_mask={"full_attention": None}, position_ids=positions, use_cache=False)
    found = sum(size for size, _ in sizes.values()) / 16
    assert found == pytest.approx(config.num_hidden_layers * saved + outside, rel=0.02)


def test_the_weights_are_counted_for_each_setting(counts):
    for setting in scaling.SETTINGS:
        parts = scaling.memory(setting, counts)
        bits = setting.bits * counts.decoder + 16 * (counts.frozen - counts.decoder)
        assert parts["frozen"] == pytest.approx(bits / 8 / (setting.cards if setting.shards else 1))
        assert (parts["gathered"] > 0) == setting.shards
    plain, checkpointed = (scaling.memory(scaling.SETTINGS[index], counts) for index in (0, 2))
    assert checkpointed["kept"] < plain["kept"]


def test_a_step_costs_four_operations_per_weight_and_token(counts):
    bare = counts._replace(hidden=0, projector=0)  # no attention, head or projector
    assert scaling.operations(bare, 3, 5, 2, False, False) == 4 * counts.decoder * 15
    assert scaling.operations(bare, 3, 5, 2, True, False) == 6 * counts.decoder * 15
    encoded = scaling.operations(bare, 3, 5, 2, False, True) - 4 * counts.decoder * 15
    assert encoded == 6 * (counts.speech * scaling.SPEECH_FRAMES + counts.sound * scaling.SOUND_FRAMES)


def test_the_page_has_the_tables_of_the_command():
    begin, end = markers(scaling.MARKER)
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    shown = page.partition(begin)[2].partition(end)[0]
    assert "Derived from counts, not measured" in shown
    assert [line.split(" | ")[0][2:] for line in shown.splitlines() if line.startswith("| ")][1:] == [
        setting.name for setting in scaling.SETTINGS
    ]
    step, memory, _ = scaling.measured_step()
    assert f"{memory:.0f} MiB were measured" in shown and f"{step * 1000:.1f} ms were measured" in shown

"""Models with random weights of the sizes of published ones."""

import pytest

from benchmarks.speed.sizes import DESCRIPTIONS, make_audio_model, make_processor


@pytest.mark.parametrize(
    ("size", "language_model", "speech", "sound"),
    # Llama-3-8B, SmolLM2-135M with a head of its own, and the encoders of Whisper large-v2, tiny.en and BEATs
    [("8b", 8.03e9, 636.8e6, 90.0e6), ("135m", 162.8e6, 8.2e6, 0), ("small", 0.078e6, 0.174e6, 0.224e6)],
)
def test_the_sizes_are_those_of_the_published_models(size, language_model, speech, sound):
    model = make_audio_model(size, make_processor(size), "meta", "bfloat16")

    def parameters(*modules):
        return sum(weight.numel() for module in modules if module is not None for weight in module.parameters())

    assert parameters(model.model.language_model, model.lm_head) == pytest.approx(language_model, rel=0.05)
    assert parameters(model.model.speech_tower) == pytest.approx(speech, rel=0.05)
    assert parameters(model.model.sound_tower) == pytest.approx(sound, rel=0.05)
    assert {str(weight.dtype) for weight in model.model.multi_modal_projector.parameters()} == {"torch.float32"}
    assert size in DESCRIPTIONS

import pytest
import torch
from peft import get_peft_model

from peft_listen import ListenConfig
from peft_listen.training import FeatureCache


AUDIO_NAMES = ("input_features", "input_features_mask", "sound_input_values", "sound_attention_mask")


@pytest.fixture
def batch(make_processor, clip):
    def build(*seconds: float, sound: bool = True):
        audio = [clip(length, seed) for seed, length in enumerate(seconds)]
        return make_processor(sound=sound)(text=["<|audio|>"] * len(audio), audio=audio, sampling_rate=16000)

    return build


def norms(model) -> dict[str, torch.Tensor]:
    projector = model.model.multi_modal_projector
    return {
        name: value.detach().cpu().clone() for name, value in projector.state_dict().items() if "layer_norm" in name
    }


@pytest.mark.parametrize("sound", [False, True])
@torch.no_grad()
def test_each_channel_has_mean_0_and_deviation_1_over_the_given_clips(make_model, batch, sound: bool) -> None:
    model, inputs = make_model(sound=sound).eval(), batch(2.5, 1.0, 0.6, sound=sound)
    model.init_projector_from([inputs])
    projector = model.model.multi_modal_projector
    speech, sounds, mask = model.model.get_encoder_features(
        **{name: inputs[name] for name in AUDIO_NAMES if name in inputs}
    )
    parts = [projector.speech_layer_norm(speech)[mask.bool()]]
    if sound:
        parts.append(projector.sound_layer_norm(sounds)[(sounds != 0).any(-1)])
    for normalized in parts:
        torch.testing.assert_close(normalized.mean(0).cpu(), torch.zeros(normalized.shape[-1]), atol=1e-4, rtol=0)
        deviations = normalized.std(0, correction=0).cpu()
        # The divisor is at least 0.1: a channel that varies less has a smaller deviation.
        assert (deviations < 1 + 1e-3).all()
        assert (deviations > 1 - 1e-3).float().mean() > 0.9


def test_the_result_does_not_depend_on_batches_or_on_where_the_frames_come_from(
    make_model, make_processor, batch, clip, tmp_path
) -> None:
    models = [make_model(sound=True).eval() for _ in range(4)]
    together, apart = batch(1.0, 0.7), [batch(1.0), batch(1.0, 0.7)]
    text = {"input_ids": torch.ones(1, 3, dtype=torch.long)}  # a row without audio
    models[0].init_projector_from([together, together])
    models[1].init_projector_from([text, together, text, together])
    features = models[2].model.get_encoder_features(**{name: together[name] for name in AUDIO_NAMES})
    models[2].init_projector_from(features._asdict() for _ in range(2))
    clips = [{"array": clip(*one), "sampling_rate": 16000} for one in ((1.0, 0), (0.7, 1))]
    cache = FeatureCache(tmp_path, models[3])
    cache.build(models[3], make_processor(sound=True), clips)
    models[3].init_projector_from(cache[one] for one in clips)
    expected = norms(models[0])
    for model in models[1:]:
        for name, value in norms(model).items():
            torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)
    other = make_model(sound=True).eval()
    other.init_projector_from(apart)
    assert any(not torch.allclose(value, expected[name], atol=1e-4) for name, value in norms(other).items())


def test_what_cannot_be_used_is_refused_and_changes_nothing(make_model, batch) -> None:
    model = make_model(sound=True).eval()
    before = norms(model)
    with pytest.raises(ValueError, match="0 frames of the speech encoder were given, and at least 2 are needed"):
        model.init_projector_from([])
    with pytest.raises(ValueError, match="got both"):
        model.init_projector_from([{**batch(1.0), "speech_features": torch.zeros(1, 20, 16)}])
    with pytest.raises(ValueError, match="without `audio_features_mask`"):
        model.init_projector_from([{"speech_features": torch.zeros(1, 20, 16)}])
    features = model.model.get_encoder_features(**{name: batch(1.0)[name] for name in AUDIO_NAMES})._asdict()
    infinite = {**features, "sound_features": features["sound_features"] * torch.tensor(float("inf"))}
    with pytest.raises(ValueError, match="sound encoder contain NaN or infinite"):
        model.init_projector_from([features, infinite])
    for name, value in norms(model).items():
        assert torch.equal(value, before[name])
    model.init_projector_from([features])
    with pytest.raises(ValueError, match="was trained or prepared before"):
        model.init_projector_from([features])
    adapted = get_peft_model(
        model, ListenConfig(pool_size=4, prompt_length=2, modules_to_save=["multi_modal_projector"])
    )
    with pytest.raises(ValueError, match="before `get_peft_model`"):
        adapted.get_base_model().init_projector_from([features])


@torch.no_grad()
def test_another_default_device_changes_nothing(make_model, batch) -> None:
    model = make_model(sound=True).eval()
    features = model.model.get_encoder_features(**{name: batch(1.0)[name] for name in AUDIO_NAMES})
    with torch.device("meta"):
        model.init_projector_from([features._asdict()])
    assert not model.model.multi_modal_projector.is_new

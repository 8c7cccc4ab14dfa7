from pathlib import Path

import numpy as np
import pytest
import torch

from peft_listen import WindowQFormerProjector
from peft_listen.models.audio_listen.convert_salmonn_projector import convert_salmonn_projector
from tests.device import place


FIXTURES = Path(__file__).parents[2] / "fixtures" / "qformer"
CASES = [
    ("nq2_overlap", "a"),
    ("tiny", "audio_long"),
    ("tiny", "audio_short"),
    ("tiny", "equal"),
    ("tiny", "t1500"),
]


def load_salmonn(name: str) -> WindowQFormerProjector:
    checkpoint = torch.load(FIXTURES / f"{name}.pt", weights_only=True)
    return place(convert_salmonn_projector(checkpoint["model"], **checkpoint["args"]).eval())


@pytest.fixture
def projector(plain_config) -> WindowQFormerProjector:
    torch.manual_seed(0)
    config = plain_config(sound=True, window_length=6, window_stride=4, num_queries=2)
    return place(WindowQFormerProjector(config).eval())


@pytest.mark.parametrize(("name", "case"), CASES)
@torch.no_grad()
def test_outputs_equal_those_of_salmonn(name: str, case: str) -> None:
    arrays = np.load(FIXTURES / f"{name}.npz")
    projector = load_salmonn(name)
    output = projector(torch.from_numpy(arrays[f"{case}__speech"]), torch.from_numpy(arrays[f"{case}__audio"]))
    np.testing.assert_allclose(output.cpu().numpy(), arrays[f"{case}__out"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_outputs_in_bfloat16_stay_close_to_float32() -> None:
    arrays = np.load(FIXTURES / "tiny.npz")
    projector = load_salmonn("tiny").to(torch.bfloat16)
    output = projector(torch.from_numpy(arrays["equal__speech"]), torch.from_numpy(arrays["equal__audio"]))
    assert output.dtype == torch.bfloat16
    np.testing.assert_allclose(output.float().cpu().numpy(), arrays["equal__out"], atol=0.1, rtol=0)


@torch.no_grad()
def test_a_new_projector_gives_the_same_outputs_in_training_and_in_evaluation(projector) -> None:
    generator = torch.Generator().manual_seed(0)
    speech, sound = (
        torch.randn(2, 12, norm.normalized_shape[0], generator=generator)
        for norm in (projector.speech_layer_norm, projector.sound_layer_norm)
    )
    assert torch.equal(projector.train()(speech, sound), projector.eval()(speech, sound))


def test_salmonns_other_weights_are_ignored_and_missing_ones_refused() -> None:
    checkpoint = torch.load(FIXTURES / "tiny.pt", weights_only=True)
    weights, args = checkpoint["model"], checkpoint["args"]
    convert_salmonn_projector({**weights, "llama_model.lora_A": torch.ones(1)}, **args)
    incomplete = {name: weight for name, weight in weights.items() if name != "ln_audio.weight"}
    with pytest.raises(ValueError, match=r"(?s)does not fit the sizes given.*sound_layer_norm\.weight"):
        convert_salmonn_projector(incomplete, **args)
    with pytest.raises(ValueError, match=r"(?s)does not fit the sizes given.*speech_layer_norm\.weight"):
        convert_salmonn_projector(weights, **{**args, "speech_dim": 12})
    with pytest.raises(ValueError, match="not a state dict of SALMONN"):
        convert_salmonn_projector({"model": weights}, **args)


@torch.no_grad()
def test_the_last_incomplete_window_is_dropped(projector) -> None:
    speech, sound = torch.randn(1, 17, 16), torch.randn(1, 17, 16)
    output = projector(speech, sound)
    assert output.shape == (1, 3 * 2, 32)
    torch.testing.assert_close(projector(speech[:, :14], sound[:, :14]), output)


@torch.no_grad()
def test_each_window_is_encoded_separately_in_order_of_time(projector) -> None:
    speech, sound = torch.randn(1, 14, 16), torch.randn(1, 14, 16)
    windows = [projector(speech[:, start : start + 6], sound[:, start : start + 6]) for start in (0, 4, 8)]
    torch.testing.assert_close(projector(speech, sound), torch.cat(windows, dim=1), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_absent_sound_is_zero_after_the_normalization(projector) -> None:
    projector.sound_layer_norm.bias.fill_(3.0)
    speech, sound = torch.randn(1, 14, 16), torch.randn(1, 14, 16)
    shorter = projector(speech, sound[:, :10])
    mask = torch.arange(14)[None] < 10
    torch.testing.assert_close(projector(speech, sound, sound_mask=mask), shorter)
    zeros = torch.cat([sound[:, :10], torch.zeros(1, 4, 16)], dim=1)
    assert not torch.allclose(projector(speech, zeros), shorter)


@torch.no_grad()
def test_less_than_a_window_is_padded_with_zeros(projector) -> None:
    projector.speech_layer_norm.bias.fill_(3.0)
    speech, sound = torch.randn(1, 2, 16), torch.randn(1, 6, 16)
    assert projector(speech, sound[:, :1]).shape == (1, 2, 32)
    torch.testing.assert_close(projector(speech, sound[:, :1]), projector(speech, sound, torch.arange(6)[None] < 1))


@torch.no_grad()
def test_only_the_requested_windows_are_returned_row_after_row(projector) -> None:
    speech, sound = torch.randn(3, 20, 16), torch.randn(3, 20, 16)
    everything = projector(speech, sound)
    wanted = projector(speech, sound, num_windows=torch.tensor([1, 4, 2]))
    torch.testing.assert_close(wanted, torch.cat([everything[0, :2], everything[1], everything[2, :4]]))


def test_more_windows_than_there_are_are_refused(projector) -> None:
    with pytest.raises(ValueError, match=r"5 windows of 6 frames.*the 20 frames given hold only 4"):
        projector(torch.randn(1, 20, 16), torch.randn(1, 20, 16), num_windows=torch.tensor([5]))


def test_missing_and_unexpected_sound_are_refused(projector, plain_config) -> None:
    with pytest.raises(ValueError, match="no sound features were given"):
        projector(torch.randn(1, 20, 16))
    deaf = place(WindowQFormerProjector(plain_config(sound=False)))
    with pytest.raises(ValueError, match="built without a sound encoder"):
        deaf(torch.randn(1, 20, 16), torch.randn(1, 20, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_change_the_outputs_and_gradients(projector, dtype) -> None:
    projector.to(dtype)
    # Encoders under autocast return bfloat16.
    speech, sound = (torch.randn(1, 14, 16).bfloat16() for _ in range(2))
    results = []
    for enabled in (False, True):
        projector.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = projector(speech, sound)
        output.float().square().sum().backward()
        results.append([output.detach(), *(parameter.grad.clone() for parameter in projector.parameters())])
    assert results[1][0].dtype == dtype
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_every_parameter_of_the_projector_gets_a_gradient(projector) -> None:
    projector(torch.randn(2, 20, 16), torch.randn(2, 20, 16)).square().sum().backward()
    without = [name for name, weight in projector.named_parameters() if weight.grad is None]
    assert without == []
    assert projector.query_tokens.grad.abs().sum() > 0

import sys

import numpy as np
import pytest

from offline.speech_synthesis import EspeakSynthesizer


pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def synthesizer() -> EspeakSynthesizer:
    return EspeakSynthesizer()


def pitch_of(samples: np.ndarray, sampling_rate: int) -> float:
    """Median over frames of the strongest autocorrelation between 60 and 400 Hz, in Hz."""
    pitches = []
    for start in range(0, samples.size - 1024, 512):
        frame = samples[start : start + 1024] - samples[start : start + 1024].mean()
        correlation = np.correlate(frame, frame, "full")[1023:]
        lags = np.arange(sampling_rate // 400, sampling_rate // 60)
        best = lags[correlation[lags].argmax()]
        if np.mean(frame**2) > 1e-3 and correlation[best] > 0.5 * correlation[0]:
            pitches.append(sampling_rate / best)
    return float(np.median(pitches))


def test_speech_is_float32_at_the_librarys_rate(synthesizer: EspeakSynthesizer) -> None:
    samples, sampling_rate = synthesizer.speak("The door is open.")
    assert sampling_rate == synthesizer.sampling_rate == 22_050
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert 0.5 < samples.size / sampling_rate < 2
    assert 0.1 < np.abs(samples).max() <= 1


def test_new_synthesizers_repeat_a_sequence_exactly_whatever_others_speak(synthesizer: EspeakSynthesizer) -> None:
    def sequence() -> list[np.ndarray]:
        new = EspeakSynthesizer()
        spoken = []
        for variant in ("f3", "m1", "Annie", "f3"):
            spoken.append(new.speak("One two three.", variant=variant)[0])
            synthesizer.speak("Something else.", variant="m7", rate=100)
        return spoken

    for first, second in zip(sequence(), sequence(), strict=True):
        assert np.array_equal(first, second)


def test_voices_and_settings_are_audible(synthesizer: EspeakSynthesizer) -> None:
    text = "All the boats are coming home."

    def speak(**settings: object) -> np.ndarray:
        return synthesizer.speak(text, **{"variant": "m3", **settings})[0]

    rate = synthesizer.sampling_rate
    assert speak(rate=100).size > 1.5 * speak(rate=200).size
    assert pitch_of(speak(variant="f3"), rate) > 1.3 * pitch_of(speak(variant="m3"), rate)
    assert pitch_of(speak(pitch=90), rate) > 1.2 * pitch_of(speak(pitch=10), rate)
    assert np.std(speak(volume=100)) > 2 * np.std(speak(volume=30))
    assert speak(voice="en").shape != speak(voice="en-us").shape
    assert speak(variant=None).size > 0


@pytest.mark.parametrize("variant", ["f3", "m5", None])  # the file of "m5" names no pitch, and None has no file
def test_a_voice_is_changed_in_pitch_and_formants(synthesizer: EspeakSynthesizer, variant: str | None) -> None:
    def speak(**changes: float) -> np.ndarray:
        return synthesizer.speak("All the boats are coming home.", variant=variant, **changes)[0]

    def center(samples: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(samples)) ** 2
        return float(np.average(np.arange(spectrum.size), weights=spectrum) / samples.size)

    own, rate = speak(), synthesizer.sampling_rate
    assert pitch_of(speak(voice_pitch=1.2), rate) / pitch_of(own, rate) == pytest.approx(1.2, rel=0.08)
    assert center(speak(voice_formants=1.15)) > 1.05 * center(own)
    assert pitch_of(speak(voice_formants=1.15), rate) == pytest.approx(pitch_of(own, rate), rel=0.08)
    assert abs(speak().size - own.size) < 0.01 * own.size
    assert not [name for name in synthesizer.variants if name.startswith(f"{variant}-")]


def test_settings_of_one_call_do_not_reach_the_next(synthesizer: EspeakSynthesizer) -> None:
    before = synthesizer.speak("The door is open.")[0]
    synthesizer.speak("The door is open.", variant="m1", rate=300, pitch=90, pitch_range=0, volume=10)
    after = synthesizer.speak("The door is open.")[0]
    assert abs(before.size - after.size) < 0.01 * before.size
    assert np.std(after) == pytest.approx(np.std(before), rel=0.1)


def test_non_ascii_text_is_spoken(synthesizer: EspeakSynthesizer) -> None:
    assert synthesizer.speak("门是开着的。", voice="cmn", variant="f2")[0].size > 5_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"voice": "xx-yy"}, "no voice 'xx-yy', expected a language such as"),
        ({"variant": "f99"}, "no voice variant 'f99', expected one of Alex, .*f3"),
        ({"variant": "../../en_dict"}, "no voice variant"),
        ({"text": "  "}, "must contain words and no null characters, got '  '"),
        ({"text": "..."}, r"must contain words, got '\.\.\.'"),
        ({"text": "a\0b"}, "no null characters"),
        ({"rate": 79}, "rate=79 is outside eSpeak NG's limits, expected 80 to 450"),
        ({"pitch": 101}, "pitch=101 .* expected 0 to 100"),
        ({"pitch_range": -1}, "pitch_range=-1 .* expected 0 to 100"),
        ({"volume": 201}, "volume=201 .* expected 0 to 200"),
        ({"voice_pitch": 0.4}, "voice_pitch=0.4: expected 0.5 to 2.0"),
        ({"voice_formants": float("nan")}, "voice_formants=nan: expected 0.5 to 2.0"),
    ],
)
def test_what_cannot_be_spoken_is_refused(
    synthesizer: EspeakSynthesizer, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        synthesizer.speak(**{"text": "hello", **arguments})


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r'pip install "peft-listen\[demo\]"'):
        EspeakSynthesizer()

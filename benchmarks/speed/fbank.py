"""Speed of `BeatsFeatureExtractor` compared with a filter bank that follows Kaldi's definition clip by clip.

    python -m benchmarks.speed.fbank [--clips 32] [--seconds 10] [--repeats 15] [--threads 1]

Both process the same clips alternately in one process, and the ratio is computed within each turn, so variations of
the machine's speed affect both. The plain loop processes all frames of a clip at once and keeps the mel filters
between clips. `--rebuild-filters` computes them again for each clip, as `torchaudio.compliance.kaldi.fbank` does.
"""

import argparse
import statistics
import warnings

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from peft_listen import BeatsFeatureExtractor

from .ratios import describe_machine, time_in_turns


SAMPLING_RATE = 16000
GOAL = 1.5


def build_mel_filters() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filters = mel_filter_bank(257, 128, 20.0, 8000.0, SAMPLING_RATE, None, "kaldi", True)
    return torch.from_numpy(filters).float()


def plain_fbank(waveform: torch.Tensor, mel_filters: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Normalized log-mel filter bank of one clip, with one step of Kaldi's definition per line."""
    frames = (waveform * 2**15).unfold(0, 400, 160)
    frames = frames - frames.mean(dim=1, keepdim=True)
    previous = torch.nn.functional.pad(frames.unsqueeze(0), (1, 0), mode="replicate").squeeze(0)[:, :-1]
    frames = (frames - 0.97 * previous) * window
    frames = torch.nn.functional.pad(frames, (0, 512 - 400))
    power = torch.fft.rfft(frames).abs().pow(2.0)
    log_mel = torch.matmul(power, mel_filters).clamp(min=2.0**-23).log()
    return (log_mel - 15.41663) / (2 * 6.55582)


def describe(values: list[float], unit: str, scale: float = 1.0) -> str:
    scaled = sorted(value * scale for value in values)
    return f"median {statistics.median(scaled):.2f}{unit} (min {scaled[0]:.2f}, max {scaled[-1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rebuild-filters", action="store_true")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    random = np.random.default_rng(0)
    num_samples = round(options.seconds * SAMPLING_RATE)
    clips = [random.normal(0, 0.1, num_samples).astype(np.float32) for _ in range(options.clips)]
    extractor = BeatsFeatureExtractor()
    window = torch.hann_window(400, periodic=False).pow(0.85)
    mel_filters = build_mel_filters()

    def ours() -> torch.Tensor:
        return extractor(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_values"]

    def plain() -> torch.Tensor:
        return torch.stack(
            [
                plain_fbank(
                    torch.from_numpy(clip), build_mel_filters() if options.rebuild_filters else mel_filters, window
                )
                for clip in clips
            ]
        )

    difference = (ours() - plain()).abs().max().item()
    times = time_in_turns(ours, plain, repeats=options.repeats, warm_up=1)
    ratios = [plain_time / our_time for our_time, plain_time in times]

    print(f"clips: {options.clips} of {options.seconds:g} s, equal lengths, float32 noise")
    print(f"machine: {describe_machine('cpu')}")
    print(f"alternating repeats: {options.repeats}, after one warm-up of each")
    print(f"largest difference of the two results: {difference:.1e}")
    print(f"BeatsFeatureExtractor: {describe([our_time for our_time, _ in times], ' ms', 1e3)}")
    filters = "mel filters rebuilt for each clip" if options.rebuild_filters else "mel filters built once"
    print(f"plain loop, {filters}: {describe([plain_time for _, plain_time in times], ' ms', 1e3)}")
    print(
        f"speed-up: {describe(ratios, ' x')}; goal {GOAL} x: {'met' if statistics.median(ratios) >= GOAL else 'missed'}"
    )


if __name__ == "__main__":
    main()

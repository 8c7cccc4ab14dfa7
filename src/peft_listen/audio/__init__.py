"""Audio loading: any file, URL, bytes or array to one mono waveform at one sampling rate."""

from .loading import AudioSource, load_audio
from .waveform import DEFAULT_SAMPLING_RATE, check_audio


__all__ = ["DEFAULT_SAMPLING_RATE", "AudioSource", "check_audio", "load_audio"]

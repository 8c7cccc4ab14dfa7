"""Audio loading: any file, URL, bytes or array to one mono waveform at one sampling rate."""

from .addresses import display_name, is_url
from .limits import AudioLimits, LimitError, set_default_limits
from .loading import AudioSource, load_audio
from .waveform import DEFAULT_SAMPLING_RATE, check_audio


__all__ = [
    "DEFAULT_SAMPLING_RATE",
    "AudioLimits",
    "AudioSource",
    "LimitError",
    "check_audio",
    "display_name",
    "is_url",
    "load_audio",
    "set_default_limits",
]

"""Models: BEATs, and the audio model that is built from encoders, a projector and a language model."""

from ..compatibility import check_audio_is_supported


check_audio_is_supported()

"""Pipelines for `transformers.pipeline`."""

from .audio_text_to_text import AudioTextToTextPipeline
from .inputs import DEFAULT_INSTRUCTION


__all__ = ["DEFAULT_INSTRUCTION", "AudioTextToTextPipeline"]

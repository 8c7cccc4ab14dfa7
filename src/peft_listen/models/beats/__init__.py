"""BEATs audio encoder (arXiv 2212.09058) as a transformers model."""

from .configuration_beats import BeatsConfig
from .feature_extraction_beats import BeatsFeatureExtractor
from .modeling_beats import (
    BeatsForAudioClassification,
    BeatsModel,
    BeatsPreTrainedModel,
    relative_position_bucket,
)


__all__ = [
    "BeatsConfig",
    "BeatsFeatureExtractor",
    "BeatsForAudioClassification",
    "BeatsModel",
    "BeatsPreTrainedModel",
    "relative_position_bucket",
]

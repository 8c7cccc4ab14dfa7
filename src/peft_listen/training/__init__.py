"""Training: batches, the encoders' features on disk, and what `Trainer` and `SFTTrainer` need."""

from .callbacks import ListenCallback
from .collator import AudioListenCollator
from .feature_cache import FeatureCache
from .optimizer import parameter_groups
from .sft import sft_config


__all__ = ["AudioListenCollator", "FeatureCache", "ListenCallback", "parameter_groups", "sft_config"]

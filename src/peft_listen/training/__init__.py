"""Training: batches, the encoders' features on disk, and what `Trainer` and `SFTTrainer` need."""

from .callbacks import ListenCallback
from .chat_template import chat_template_token_ids
from .collator import AudioListenCollator
from .feature_cache import FeatureCache
from .optimizer import parameter_groups
from .sft import sft_config


__all__ = [
    "AudioListenCollator",
    "FeatureCache",
    "ListenCallback",
    "chat_template_token_ids",
    "parameter_groups",
    "sft_config",
]

"""Training: the data collator, the feature cache, the optimizer, and the integration with `Trainer` and `SFTTrainer`."""

from .callbacks import ListenCallback
from .collator import AudioListenCollator
from .feature_cache import FeatureCache
from .mixture import TaskMixture
from .optimizer import create_listen_optimizer, parameter_groups
from .sft import sft_config
from .template_tokens import chat_template_token_ids


__all__ = [
    "AudioListenCollator",
    "FeatureCache",
    "ListenCallback",
    "TaskMixture",
    "chat_template_token_ids",
    "create_listen_optimizer",
    "parameter_groups",
    "sft_config",
]

"""transformers' `ModelTesterMixin` and `ConfigTester`, run for BEATs and AudioListen."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from transformers.models.auto import modeling_auto

from peft_listen import (
    AudioListenConfig,
    AudioListenForCausalLM,
    AudioListenModel,
    BeatsConfig,
    BeatsForAudioClassification,
    BeatsModel,
)
from tests.conformance import transformers_suite
from tests.conformance.transformers_conformance import ConformanceSetUp, conforms
from tests.conformance.transformers_models import AudioListenModelTester, BeatsModelTester


configuration = transformers_suite.load_or_skip("test_configuration_common")
modeling = transformers_suite.load_or_skip("test_modeling_common")

# Where the mixins look up what a model of transformers is for.
REGISTERED = (
    (modeling_auto.MODEL_MAPPING_NAMES, {"beats": "BeatsModel", "audio_listen": "AudioListenModel"}),
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, {"audio_listen": "AudioListenForCausalLM"}),
    (modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, {"beats": "BeatsForAudioClassification"}),
)


# They take longest of all, and what they test is tested nearly as well by those beside them.
SLOW = ("test_bc_torch_dtype", "test_eager_matches_sdpa_inference_*_sdpa_kernels")


class ModelSetUp(ConformanceSetUp):
    """A model as if it were one of transformers' own."""

    # All weights are looked at, not only those of the models that transformers added lately.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        super().setUp()
        for mapping, names in REGISTERED:
            self.start(patch.dict(mapping, names))


def config_test(check: str) -> Callable[[Any], None]:
    def test(self: Any) -> None:
        getattr(self.config_tester, check)()

    return test


# Each check of transformers' class, whose `run_common_tests` runs them in one go, as a test of its own.
ConfigTester = type(
    "ConfigTester",
    (),
    {
        f"test_{check.removeprefix('create_and_test_')}": config_test(check)
        for check in dir(configuration.ConfigTester)
        if check.startswith(("create_and_test_", "check_"))
    },
)


@conforms("BEATs", slow=SLOW)
class TestBeats(ModelSetUp, modeling.ModelTesterMixin, ConfigTester, unittest.TestCase):
    all_model_classes = (BeatsModel, BeatsForAudioClassification)
    test_resize_embeddings = False

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = BeatsModelTester()
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "deep_norm": False}
        self.config_tester = configuration.ConfigTester(
            self, config_class=BeatsConfig, has_text_modality=False, **sizes
        )


class AudioListenTestCase(
    ModelSetUp, modeling.ModelTesterMixin, ConfigTester, modeling.GenerationTesterMixin, unittest.TestCase
):
    all_model_classes = (AudioListenModel, AudioListenForCausalLM)
    additional_model_inputs = (
        "input_features",
        "input_features_mask",
        "sound_input_values",
        "sound_attention_mask",
    )
    _is_composite = True
    # It expects `last_hidden_state` to be as wide as the whole model; here there are two encoders of other widths.
    skip_test_audio_features_output_shape = True

    def setUp(self) -> None:
        super().setUp()
        self.config_tester = configuration.ConfigTester(
            self,
            config_class=AudioListenConfig,
            has_text_modality=False,
            common_properties=["audio_token_id", "num_queries", "window_length", "window_stride"],
            num_queries=2,
            window_length=20,
            window_stride=10,
        )
        # Text of random tokens has no audio in it.
        self.start(patch.object(modeling, "ids_tensor", _ids_of_text))


def _ids_of_text(shape: list[int], vocab_size: int) -> torch.Tensor:
    return torch.randint(AudioListenModelTester.audio_token_id + 1, vocab_size, tuple(shape))


@conforms("AudioListen with a sound encoder", slow=SLOW)
class TestAudioListen(AudioListenTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.model_tester = AudioListenModelTester(has_sound=True)


@conforms(
    "AudioListen with speech alone",
    slow=("test_bc_torch_dtype", "test_eager_matches_sdpa_inference_*", "test_can_init_all_missing_weights"),
)
class TestAudioListenWithSpeechAlone(AudioListenTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.model_tester = AudioListenModelTester(has_sound=False)


# Its tests are run by the classes that derive from it.
del AudioListenTestCase

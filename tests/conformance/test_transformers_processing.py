"""transformers' `ProcessorTesterMixin` and `SequenceFeatureExtractionTestMixin`, run for AudioListen and BEATs."""

from __future__ import annotations

import unittest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import soundfile
from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor

from peft_listen import AudioListenProcessor, BeatsFeatureExtractor
from tests.conformance import transformers_suite
from tests.conformance.transformers_conformance import ConformanceSetUp, conforms
from tests.conformance.transformers_models import make_tokenizer


features = transformers_suite.load_or_skip("test_sequence_feature_extraction_common")
processing = transformers_suite.load_or_skip("test_processing_common")

SAMPLING_RATE = 16_000


class BeatsFeatureExtractionTester:
    """What the mixin reads of the feature extractor: features of clips of different length."""

    batch_size = 7
    min_seq_length = 40
    seq_length_diff = 26
    # The longest of them less one difference: for paddings other than zero the mixin takes it so.
    max_seq_length = 170
    # Few enough that a sum of paddings, of -2.39 each, is as exact in float32 as the mixin wants it.
    feature_size = 8

    def prepare_feat_extract_dict(self) -> dict[str, Any]:
        return {"feature_size": self.feature_size, "sampling_rate": SAMPLING_RATE, "return_attention_mask": True}

    def prepare_inputs_for_common(self, equal_length: bool = False, numpify: bool = False) -> list:
        lengths = [self.min_seq_length + index * self.seq_length_diff for index in range(self.batch_size)]
        random = np.random.default_rng(0)
        clips = [random.random((lengths[-1] if equal_length else length, self.feature_size)) for length in lengths]
        return clips if numpify else [clip.tolist() for clip in clips]


@conforms("BEATs feature extractor")
class TestBeatsFeatureExtractor(ConformanceSetUp, features.SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = BeatsFeatureExtractor

    def setUp(self) -> None:
        super().setUp()
        self.feat_extract_tester = BeatsFeatureExtractionTester()


class ProcessorTestCase(ConformanceSetUp, processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = AudioListenProcessor

    @classmethod
    def _setup_feature_extractor(cls) -> WhisperFeatureExtractor:
        return WhisperFeatureExtractor()

    @classmethod
    def _setup_tokenizer(cls) -> PreTrainedTokenizerBase:
        return make_tokenizer()

    def setUp(self) -> None:
        super().setUp()
        # Bare samples have a rate only if it is said.
        self.start(
            patch.dict(processing.MODALITY_TEST_SPECS["audio"]["call_time_kwargs"], sampling_rate=SAMPLING_RATE)
        )
        files = [Path(self.tmpdirname) / name for name in ("one_second.wav", "two_seconds.flac")]
        for seconds, file in enumerate(files, start=1):
            soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, seconds * SAMPLING_RATE), SAMPLING_RATE)
        self.start(patch.dict(processing.MODALITY_INPUT_DATA, audio=[str(file) for file in files]))

    def prepare_audio_inputs(self, batch_size: int | None = None) -> list[dict[str, Any]]:
        clips = super().prepare_audio_inputs(batch_size)
        return [{"array": clip, "sampling_rate": SAMPLING_RATE} for clip in clips]

    def _prepare_modality_input(self, modality: str, batch_size: int | None = None) -> Any:
        # For the tests that say the rate, in the specification above.
        if modality == "audio":
            return super().prepare_audio_inputs(batch_size)
        return super()._prepare_modality_input(modality, batch_size)


@conforms("AudioListen processor with a sound encoder")
class TestProcessor(ProcessorTestCase):
    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        return {"sound_feature_extractor": BeatsFeatureExtractor()}


@conforms("AudioListen processor with speech alone")
class TestProcessorWithSpeechAlone(ProcessorTestCase):
    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        return {"num_queries": 2, "window_length": 20, "window_stride": 10, "max_audio_seconds": 60.0}


# Its tests are run by the classes that derive from it.
del ProcessorTestCase

"""
transformers' `PipelineTesterMixin`, run for `pipeline("audio-text-to-text")` and for BEATs in transformers' own pipeline
of classification.

The mixin loads models, builds pipelines and batches; what a pipeline gives back is for a class per task to check. Those
of transformers are not in its source distribution: the two below stand in their place.
"""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY, patch

import numpy as np
from transformers import AudioClassificationPipeline, PreTrainedTokenizerFast, WhisperFeatureExtractor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from peft_listen import (
    AudioListenForCausalLM,
    AudioListenProcessor,
    AudioTextToTextPipeline,
    BeatsFeatureExtractor,
    BeatsForAudioClassification,
)
from tests.conformance import transformers_suite
from tests.conformance.transformers_conformance import ConformanceSetUp, conforms
from tests.conformance.transformers_models import AudioListenModelTester, BeatsModelTester, make_tokenizer


pipelines = transformers_suite.load_or_skip("test_pipeline_mixin")


def make_clip(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


class AudioTextToTextPipelineTests(unittest.TestCase):
    """What the mixin asks of the task `audio-text-to-text`."""

    def get_test_pipeline(
        self, model: Any, tokenizer: Any, processor: Any, feature_extractor: Any, dtype: str
    ) -> tuple[AudioTextToTextPipeline, list[Any]]:
        pipeline = AudioTextToTextPipeline(model=model, processor=processor, dtype=dtype, max_new_tokens=3)
        questions = ("What is said?", "What do you hear?")
        clips = [{"array": make_clip(seconds), "sampling_rate": 16_000} for seconds in (0.3, 0.8)]
        return pipeline, [
            {"audio": clips[0], "text": questions[0]},
            {"audio": clips[1], "text": questions[1]},
        ]

    def run_pipeline_test(self, pipeline: AudioTextToTextPipeline, examples: list[Any]) -> None:
        answers = [[{"input_text": example["text"], "generated_text": ANY}] for example in examples]
        self.assertEqual([pipeline(example) for example in examples], answers)
        self.assertEqual(pipeline(examples), answers)
        for (answer,) in pipeline(examples, return_full_text=True):
            self.assertEqual([message["role"] for message in answer["generated_text"]], ["user", "assistant"])
        self.assertEqual(len(pipeline(examples[0], num_beams=2, num_return_sequences=2)), 2)


class AudioClassificationPipelineTests(unittest.TestCase):
    """What the mixin asks of the task `audio-classification`."""

    def get_test_pipeline(
        self, model: Any, tokenizer: Any, processor: Any = None, feature_extractor: Any = None, dtype: str = "float32"
    ) -> tuple[AudioClassificationPipeline, list[Any]]:
        pipeline = AudioClassificationPipeline(model=model, feature_extractor=feature_extractor, dtype=dtype)
        return pipeline, [make_clip(seconds) for seconds in (0.3, 0.8)]

    def run_pipeline_test(self, pipeline: AudioClassificationPipeline, examples: list[Any]) -> None:
        for example in examples:
            output = pipeline(example, top_k=2)
            self.assertEqual(output, [{"score": ANY, "label": ANY}] * 2)
            self.assertGreaterEqual(output[0]["score"], output[1]["score"])
            self.assertEqual(len(pipeline(example, top_k=None)), BeatsModelTester.num_labels)


class PipelineSetUp(ConformanceSetUp):
    """A folder of small models in place of those on the Hub."""

    pipeline_model_mapping: dict[str, type]
    # The parts beside the model, by the names of their classes.
    parts: dict[str, list[str]]

    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.start(patch.object(pipelines, "TRANSFORMERS_TINY_MODEL_PATH", folder.name))
        for task, model_class in self.pipeline_model_mapping.items():
            self.save(Path(folder.name) / model_class.config_class.model_type / model_class.__name__)
            self.start(patch.dict(pipelines.tiny_model_summary, {model_class.__name__: self.parts}))
            tests = "".join(word.capitalize() for word in task.split("-"))
            self.start(
                patch.dict(pipelines.pipeline_test_mapping, {task: {"test": f"{__name__}.{tests}PipelineTests"}})
            )

    def save(self, folder: Path) -> None:
        """Saves the model and its parts."""
        raise NotImplementedError


@conforms("audio-text-to-text pipeline")
class TestAudioTextToText(PipelineSetUp, pipelines.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {"audio-text-to-text": AudioListenForCausalLM}
    parts = {
        "tokenizer_classes": ["PreTrainedTokenizerFast"],
        "processor_classes": ["WhisperFeatureExtractor", "AudioListenProcessor"],
    }

    def setUp(self) -> None:
        super().setUp()
        self.start(patch.dict(PROCESSOR_MAPPING_NAMES, audio_listen="AudioListenProcessor"))
        # Where the mixin looks up the classes of the parts.
        classes = SimpleNamespace(
            AudioListenProcessor=AudioListenProcessor,
            PreTrainedTokenizerFast=PreTrainedTokenizerFast,
            WhisperFeatureExtractor=WhisperFeatureExtractor,
        )
        self.start(patch.object(pipelines, "transformers_module", classes))

    def save(self, folder: Path) -> None:
        tokenizer = make_tokenizer()
        tester = AudioListenModelTester(has_sound=True)
        tester.vocab_size, tester.audio_token_id = len(tokenizer), tokenizer.convert_tokens_to_ids("<|audio|>")
        AudioListenForCausalLM(tester.get_config()).save_pretrained(folder)
        AudioListenProcessor(
            WhisperFeatureExtractor(feature_size=tester.mel_bins, chunk_length=1), tokenizer, BeatsFeatureExtractor()
        ).save_pretrained(folder)

    def test_pipeline_audio_text_to_text(self) -> None:
        self.run_task_tests(task="audio-text-to-text")

    def test_pipeline_audio_text_to_text_fp16(self) -> None:
        self.run_task_tests(task="audio-text-to-text", dtype="float16")


@conforms("audio-classification pipeline with BEATs")
class TestAudioClassification(PipelineSetUp, pipelines.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {"audio-classification": BeatsForAudioClassification}
    parts = {"tokenizer_classes": [], "processor_classes": ["BeatsFeatureExtractor"]}

    def setUp(self) -> None:
        super().setUp()
        self.start(
            patch.object(
                pipelines, "transformers_module", SimpleNamespace(BeatsFeatureExtractor=BeatsFeatureExtractor)
            )
        )

    def save(self, folder: Path) -> None:
        BeatsForAudioClassification(BeatsModelTester().get_config()).save_pretrained(folder)
        BeatsFeatureExtractor().save_pretrained(folder)

"""The pipeline `pipeline("audio-text-to-text")`: generates an answer from audio and a question."""

import os
from collections.abc import Iterable, Mapping, Sized
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import BatchFeature, GenerationConfig, Pipeline
from transformers.pipelines.base import GenericTensor
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import ModelOutput
from transformers.utils.chat_template_utils import Chat

from ..answer_end import end_token_ids, find_answer_end, warn_of_other_end
from ..audio import DEFAULT_SAMPLING_RATE, AudioLimits, AudioSource, load_audio
from ..chat import as_prompts
from ..chat_encoding import find_chat_encoder, make_chat_encoder, pad_left, padding_token_id
from ..models.audio_listen import AudioListenProcessor
from ..rows import split_clips
from .inputs import (
    as_pipeline_inputs,
    ends_with_assistant,
    pair_with_questions,
    questions_as_inputs,
    to_chat,
    with_answer,
)


class AudioTextToTextPipeline(Pipeline):
    """
    Answers questions about audio: `pipeline("audio-text-to-text")`.

    Every input is converted to a chat, with the audio before the text, and rendered by the processor's chat template. At
    most 256 new tokens are generated, unless the model's `generation_config.json` sets another limit.

    Args:
        model (`str`, [`AudioListenForCausalLM`] or `PeftModel`):
            Folder or Hub name of a model that was saved with its processor, or of a PEFT adapter, whose base model and
            processor are loaded from its `base_model_name_or_path`; or a model object. Other multimodal language models
            of transformers are supported if the chat template of their processor accepts `{"type": "audio"}` parts, and so is
            Voxtral.
        processor ([`AudioListenProcessor`], *optional*):
            Processor of the model; required with a model object.
        kwargs:
            Default arguments of calls, and other arguments of [`~transformers.pipeline`].

    Example:

    ```python
    >>> import peft_listen
    >>> from transformers import pipeline

    >>> pipe = pipeline("audio-text-to-text", model="path/to/model_or_adapter")
    >>> pipe("dog.wav", text="What do you hear?", max_new_tokens=20)
    [{'input_text': 'What do you hear?', 'generated_text': 'A dog barks twice.'}]
    ```

    Raises:
        ValueError: A model object is passed without a processor.
    """

    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    model: Any
    processor: Any
    tokenizer: Any

    _pipeline_calls_generate = True
    # The class docstring states this default.
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __init__(self, model: Any, *, processor: Any = None, **kwargs: Any) -> None:
        if processor is None:
            raise ValueError(
                "The audio-text-to-text pipeline needs a processor. Pass `processor=AutoProcessor.from_pretrained(...)` "
                "with the model object."
            )
        # Pipeline takes the padding token from its tokenizer argument, before it looks for a tokenizer in the processor.
        for name in ("tokenizer", "feature_extractor"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(processor, name, None)
        super().__init__(model, processor=processor, **kwargs)
        self._answer_end = end = find_answer_end(processor)
        self._end_token_ids = end_token_ids(self.model.generation_config)
        if end is not None and "eos_token_id" not in self._generate_kwargs:
            remedy = "The pipeline stops at all of them; pass `eos_token_id` to change that."
            if warn_of_other_end(end, self.model.generation_config, self.tokenizer, remedy):
                self._end_token_ids.append(end.token_id)

    @property
    def end_token_ids(self) -> list[int]:
        """The ids of the tokens at which generation stops, unless a call sets others."""
        given = self._generate_kwargs
        if "eos_token_id" in given:
            return end_token_ids(SimpleNamespace(eos_token_id=given["eos_token_id"]))
        return end_token_ids(given.get("generation_config")) or list(self._end_token_ids)

    def _sanitize_parameters(
        self,
        text: str | None = None,
        sampling_rate: float | None = None,
        limits: AudioLimits | None = None,
        continue_final_message: bool | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        return_full_text: bool | None = None,
        skip_special_tokens: bool | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **generation_arguments: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        twice = sorted(generation_arguments.keys() & (generate_kwargs or {}).keys())
        if twice:
            raise ValueError(
                f"{twice} given twice: in `generate_kwargs` and as separate arguments. Pass each of them once."
            )
        forward_params = {**(generate_kwargs or {}), **generation_arguments}
        if "stop_strings" in forward_params:
            forward_params.setdefault("tokenizer", self.processor.tokenizer)
        preprocess_params = {
            "text": text,
            "sampling_rate": sampling_rate,
            "limits": limits,
            "continue_final_message": continue_final_message,
            "chat_template_kwargs": chat_template_kwargs,
        }
        postprocess_params = {
            "continue_final_message": continue_final_message,
            "return_full_text": return_full_text,
            "skip_special_tokens": skip_special_tokens,
        }
        return _without_none(preprocess_params), forward_params, _without_none(postprocess_params)

    def __call__(  # type: ignore[override]
        self,
        audio: AudioSource | Mapping[str, Any] | Iterable[Any] | None = None,
        text: str | list[Any] | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]] | PipelineIterator:
        """
        Generates an answer for each input.

        Args:
            audio:
                One input, or several in a list, generator, `datasets.Dataset`, `torch.utils.data.Dataset` or
                `KeyDataset`. An input is

                - a clip: any argument of [`~peft_listen.audio.load_audio`] (a path, an http(s) URL, bytes, an array with
                  `sampling_rate`, `{"array": ..., "sampling_rate": ...}`, ...);
                - a row `{"audio": clip or list of clips, "instruction": str}`, such as a row of a data set; `"text"` is
                  used if there is no `"instruction"`, `"system"` is the system prompt, and other columns are ignored;
                - a row `{"messages": [...]}` with a conversation, as [`~peft_listen.training.AudioListenCollator`] takes it.
                  If its last message is the assistant's, this is the row's own answer, which is left out;
                - a chat: a list of messages `{"role": ..., "content": ...}`, whose content may be a list of parts
                  `{"type": "audio", "audio": clip}` (or `"url"`, `"path"`) and `{"type": "text", "text": ...}`.
            text (`str`, or `list` of `str`, *optional*, defaults to `"Describe what you hear."`):
                The question for all inputs without a text of their own, or a list with one question for each clip. With
                a single clip, every question of the list is about that clip. Without audio, the questions are answered
                from the text alone; `text` may also be a chat then.
            sampling_rate (`float`, *optional*):
                Rate in Hz of clips that are passed as samples only.
            limits ([`~peft_listen.audio.AudioLimits`], *optional*):
                Limits within which clips are loaded. By default those of [`~peft_listen.audio.set_default_limits`].
            return_full_text (`bool`, *optional*, defaults to `False`):
                Whether to return the whole chat, with the answer as its last message, and not only the answer.
            continue_final_message (`bool`, *optional*):
                Whether the answer continues the last message of the chat. By default, it does if that message is the
                assistant's.
            skip_special_tokens (`bool`, *optional*, defaults to `True`):
                Whether to remove special tokens from the answer.
            chat_template_kwargs (`dict`, *optional*):
                Variables for the chat template, such as `{"enable_thinking": False}`.
            batch_size (`int`, *optional*, defaults to 1):
                Number of inputs in one call of `model.generate`.
            generate_kwargs (`dict`, *optional*):
                Passed to `model.generate`, as any other argument is: `max_new_tokens`, `num_beams`,
                `num_return_sequences`, `streamer`, ...

        Returns:
            For one input, a list with one dictionary per returned sequence (one, unless `num_return_sequences` is
            passed); for a list of inputs, a list of such lists; for generators and data sets, an iterator over such
            lists. Each dictionary contains

            - **input_text** (`str`, or the chat): the text of the input;
            - **generated_text** (`str`, or the chat with `return_full_text=True`): the answer.

        Raises:
            ValueError: An input has neither audio nor text, the number of questions differs from that of the clips, or
                audio is empty, not finite or of unknown sampling rate.
            OSError: An audio file cannot be read, or a clip exceeds a limit.
        """
        if audio is None and text is None:
            raise ValueError("The pipeline got neither audio nor text. Pass a clip, a row, a chat or a question.")
        if audio is None:
            audio = questions_as_inputs(text)
        elif isinstance(text, (list, tuple)):
            audio = pair_with_questions(audio, list(text))
        elif text is not None:
            kwargs["text"] = text
        if isinstance(audio, (list, tuple)) and not audio:
            return []
        return super().__call__(as_pipeline_inputs(audio), **kwargs)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> PipelineIterator:
        # Batches are padded by the processor: Pipeline's own collation requires the same keys in all rows, and rows without
        # audio lack some.
        dataset: Any
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=self.collate)
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> list[dict[str, Any]]:
        model_inputs = self.collate([self.preprocess(inputs, **preprocess_params)])
        return self.postprocess(self.forward(model_inputs, **forward_params), **postprocess_params)

    def preprocess(  # type: ignore[override]
        self,
        inputs: Any,
        text: str | None = None,
        sampling_rate: float | None = None,
        limits: AudioLimits | None = None,
        continue_final_message: bool | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Renders the chat of one input and loads its clips."""
        chat, input_text = to_chat(inputs, text)
        if continue_final_message is None:
            continue_final_message = ends_with_assistant(chat)
        messages, clips = split_clips(chat.messages)  # type: ignore[arg-type]
        rate = int(getattr(self.feature_extractor, "sampling_rate", DEFAULT_SAMPLING_RATE))
        row: dict[str, Any] = {
            "chat": chat,
            "input_text": input_text,
            "messages": messages,
            "is_continued": continue_final_message,
            "chat_template_kwargs": chat_template_kwargs or {},
            "audio_kwargs": {"sampling_rate": rate},
        }
        if not self._has_encoder:
            row["prompt"] = self.processor.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not continue_final_message,
                continue_final_message=continue_final_message,
                **row["chat_template_kwargs"],
            )
            self._check_places(row["prompt"], len(clips))
        row["audio"] = [load_audio(clip, sampling_rate, target_sampling_rate=rate, limits=limits) for clip in clips]
        # These check the limits again; the processors of transformers do not have any.
        if self._has_encoder or isinstance(self.processor, AudioListenProcessor):
            row["audio_kwargs"]["limits"] = limits
        return row

    def _check_places(self, prompt: str, num_clips: int) -> None:
        # The processor counts those of a whole batch, in which a row could get the clip of another one.
        token = getattr(self.processor, "audio_token", None)
        if token is not None and prompt.count(token) != num_clips:
            raise ValueError(
                f"The chat has {prompt.count(token)} audio tokens {token} for {num_clips} clips. Leave the token out of "
                'texts, and pass clips as parts of messages: {"type": "audio", "audio": ...}. The chat template of the '
                "processor must render each of these parts as one audio token."
            )

    @property
    def _has_encoder(self) -> bool:
        """Whether chats are encoded as for training; the processor of this package does it by itself."""
        return not isinstance(self.processor, AudioListenProcessor) and find_chat_encoder(self.processor) is not None

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Makes a batch of preprocessed inputs.

        Args:
            rows (`list[dict]`): Outputs of `preprocess`.

        Returns:
            `dict`: The argument of `forward`; `"model_inputs"` are those of
            `model.generate`, padded on the left.
        """
        model_inputs = self._encode(rows) if self._has_encoder else self._process(rows)
        return {
            "chat": [row["chat"] for row in rows],
            "input_text": [row["input_text"] for row in rows],
            "model_inputs": model_inputs.to(dtype=self.dtype),
        }

    def _encode(self, rows: list[dict[str, Any]]) -> BatchFeature:
        audio_kwargs = rows[0]["audio_kwargs"]
        encoder = make_chat_encoder(self.processor, rows[0]["chat_template_kwargs"], audio_kwargs["limits"])
        rate = audio_kwargs["sampling_rate"]
        chats = [
            (row["messages"], [{"array": waveform, "sampling_rate": rate} for waveform in row["audio"]])
            for row in rows
        ]
        prompts, audio = encoder.encode_prompts(chats, [row["is_continued"] for row in rows])
        return BatchFeature(
            {
                "input_ids": pad_left(prompts, padding_token_id(self.tokenizer)),
                "attention_mask": pad_left([[1] * len(prompt) for prompt in prompts], 0),
                **audio,
            }
        )

    def _process(self, rows: list[dict[str, Any]]) -> BatchFeature:
        prompts, add_special_tokens = as_prompts([row["prompt"] for row in rows], self.tokenizer)
        audio: dict[str, Any] = {}
        waveforms = [waveform for row in rows for waveform in row["audio"]]
        if waveforms:
            audio = {"audio": waveforms, **rows[0]["audio_kwargs"]}
        return self.processor(
            text=prompts,
            padding=True,
            padding_side="left",
            add_special_tokens=add_special_tokens,
            return_tensors="pt",
            **audio,
        )

    def _forward(  # type: ignore[override]
        self, input_tensors: dict[str, Any], **generate_kwargs: Any
    ) -> dict[str, GenericTensor]:
        model_inputs = input_tensors["model_inputs"]
        generate_kwargs = self._prepare_generate_kwargs(
            generate_kwargs, return_dict_in_generate=False, **self._ends(generate_kwargs)
        )
        sequences = self.model.generate(**model_inputs, **generate_kwargs)
        # [batch_size, num_return_sequences, length]
        sequences = sequences.reshape(len(input_tensors["chat"]), -1, sequences.shape[-1])
        new_tokens = _without_prompt(sequences, model_inputs["input_ids"])
        return {"chat": input_tensors["chat"], "input_text": input_tensors["input_text"], "new_tokens": new_tokens}

    def _ends(self, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The tokens at which generation stops, if they are more than the model's own and the call does not set them."""
        given = generate_kwargs
        if "generation_config" not in generate_kwargs:
            given = {**self._generate_kwargs, **generate_kwargs}
        config_ends = end_token_ids(given.get("generation_config"))
        model_ends = end_token_ids(self.model.generation_config)
        if "eos_token_id" in given or config_ends or self._end_token_ids == model_ends:
            return {}
        return {"eos_token_id": self._end_token_ids}

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: ModelOutput | dict[str, Any],
        return_full_text: bool = False,
        continue_final_message: bool | None = None,
        skip_special_tokens: bool = True,
    ) -> list[dict[str, Any]]:
        """Decodes the answers to one input."""
        # A batch of one input arrives as it was collated, in lists of length 1; Pipeline unpacks larger batches.
        chat, input_text = (
            value[0] if isinstance(value, list) else value
            for value in (model_outputs["chat"], model_outputs["input_text"])
        )
        tokens = model_outputs["new_tokens"][0].tolist()
        if skip_special_tokens and self._answer_end is not None:
            # Some tokenizers do not mark the end token of their chat template as special.
            tokens = [[token for token in row if token != self._answer_end.token_id] for row in tokens]
        answers = self.tokenizer.batch_decode(tokens, skip_special_tokens=skip_special_tokens)
        if return_full_text:
            if continue_final_message is None:
                continue_final_message = ends_with_assistant(chat)
            answers = [with_answer(chat, answer, continue_final_message) for answer in answers]
        input_text = input_text.messages if isinstance(input_text, Chat) else input_text
        return [{"input_text": input_text, "generated_text": answer} for answer in answers]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Saves the model and its processor, for `pipeline("audio-text-to-text", model=save_directory)`.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            kwargs: Passed to both `save_pretrained` methods.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _without_none(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _without_prompt(sequences: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """
    Removes the prompt from generated sequences that include it. Models that generate from embeddings return the new tokens
    only.

    Args:
        sequences (`torch.Tensor` of shape `(batch_size, num_return_sequences, length)`): Output of `generate`.
        input_ids (`torch.Tensor` of shape `(batch_size, prompt_length)`): The prompts.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_return_sequences, new_length)`.
    """
    length = input_ids.shape[-1]
    begins = sequences.shape[-1] >= length and bool((sequences[..., :length] == input_ids.unsqueeze(1)).all())
    return sequences[..., length:] if begins else sequences

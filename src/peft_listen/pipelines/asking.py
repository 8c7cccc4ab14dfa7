"""Asks a model of either pipeline one question, and passes on its answer while it is generated."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import Pipeline, TextStreamer

from ..answer_end import find_answer_end
from ..audio import DEFAULT_SAMPLING_RATE
from .audio_text_to_text import AudioTextToTextPipeline


class AnswerStreamer(TextStreamer):
    """
    Passes on the words of an answer, without the prompt, special tokens and the end token of answers.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        end_token_id (`int`, *optional*): The end of answers, which some tokenizers do not mark as special.
        on_text (`Callable`, *optional*): Called with each piece of text. By default the pieces are printed to stdout, with a
            line break at the end.
    """

    def __init__(
        self, tokenizer: Any, end_token_id: int | None = None, on_text: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.end_token_id = end_token_id
        self.on_text = on_text

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, `(1, length)`, and then the new tokens, `(1,)`."""
        is_prompt = self.next_tokens_are_prompt
        if not is_prompt and self.end_token_id is not None:
            value = value[value != self.end_token_id]
        if is_prompt or value.numel() > 0:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Takes text that further tokens do not change; called by `TextStreamer`."""
        if self.on_text is None:
            super().on_finalized_text(text, stream_end)
        elif text:
            self.on_text(text)


def make_streamer(pipe: Pipeline, on_text: Callable[[str], None] | None = None) -> AnswerStreamer | None:
    """
    The streamer for one question to a pipeline.

    Args:
        pipe (`Pipeline`): The pipeline.
        on_text (`Callable`, *optional*): As in [`AnswerStreamer`].

    Returns:
        [`AnswerStreamer`], or `None` if the model's settings need whole answers: beams, or several answers.
    """
    config = pipe.model.generation_config
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        return None
    end = find_answer_end(pipe.processor or pipe.tokenizer)
    return AnswerStreamer(pipe.tokenizer, None if end is None else end.token_id, on_text)


def ask(pipe: Pipeline, question: str | None, waveform: np.ndarray | None = None, **generate_kwargs: Any) -> str:
    """
    Asks a model one question, about a clip or without one.

    Args:
        pipe (`Pipeline`): `"audio-text-to-text"`, or `"text-generation"` for a language model without audio.
        question (`str`, *optional*): The question; a question about a clip may be left out.
        waveform (`np.ndarray` of shape `(num_samples,)`, *optional*): The clip, at 16 kHz as [`load_audio`] returns it.
        generate_kwargs: Passed to `model.generate`: `max_new_tokens`, `streamer`, ...

    Returns:
        `str`: the answer.

    Raises:
        ValueError: There is neither a question nor a clip, or a clip for a language model without audio.
    """
    outputs: Any
    if isinstance(pipe, AudioTextToTextPipeline):
        outputs = pipe(waveform, text=question, sampling_rate=DEFAULT_SAMPLING_RATE, **generate_kwargs)
    elif waveform is not None:
        raise ValueError(
            f"The {type(pipe.model).__name__} is a language model without audio, which cannot answer a question about a "
            "clip. Ask it without the clip."
        )
    elif not question:
        raise ValueError("A language model without audio needs a question.")
    else:
        tokenizer: Any = pipe.tokenizer
        has_template = getattr(tokenizer, "chat_template", None) is not None
        prompt: Any = [{"role": "user", "content": question}] if has_template else question
        # The text pipeline samples by default; models with and without audio should be asked in the same way.
        sampling = bool(pipe.model.generation_config.do_sample)
        outputs = pipe(prompt, return_full_text=False, do_sample=sampling, **generate_kwargs)
    (output,) = outputs
    return str(output["generated_text"])

"""The text of an answer, token by token: where it ends, and which part of it is final."""

from collections.abc import Collection, Sequence
from typing import Any, Literal


FinishReason = Literal["stop", "length"]

# What a tokenizer writes for an incomplete character.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """
    Text of one answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        end_token_ids (`Collection[int]`): Tokens that end an answer, and are not part of it.
        max_new_tokens (`int`): Longest answer in tokens.
        stop (`Sequence[str]`, *optional*): Texts that end an answer, and are not part of it.
        is_streamed (`bool`, *optional*, defaults to `False`): Whether `take` is called.

    Attributes:
        finish_reason (`"stop"`, `"length"` or `None`): Why the answer has ended; `None` if it has not.
        num_tokens (`int`): Number of generated tokens, with that of the end.
    """

    def __init__(
        self,
        tokenizer: Any,
        end_token_ids: Collection[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        is_streamed: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._end_token_ids = frozenset(end_token_ids)
        self._max_new_tokens = max_new_tokens
        self._stop = tuple(stop)
        self._needs_text = is_streamed or bool(stop)
        self._token_ids: list[int] = []
        # The text of the tokens up to `_num_settled` is settled. What a token adds to it is found by decoding it after those
        # that were settled last, from `_context` on, since a tokenizer may write a first token without its space.
        self._context = self._num_settled = 0
        self._context_text = self._settled_text = ""
        self._text = ""
        self._num_taken = 0
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, token_id: int) -> bool:
        """
        Adds a token.

        Returns:
            `bool`: whether the answer has ended. Further tokens are ignored.
        """
        if self.finish_reason is not None:
            return True
        self.num_tokens += 1
        if token_id in self._end_token_ids:
            self.finish("stop")
            return True
        self._token_ids.append(token_id)
        if self._needs_text:
            self._decode()
        if self.finish_reason is None and self.num_tokens >= self._max_new_tokens:
            self.finish("length")
        return self.finish_reason is not None

    def finish(self, reason: FinishReason) -> None:
        """Ends the answer, unless it has ended."""
        if self.finish_reason is None:
            self._text = self._decoded(self._token_ids)
            self._find_stop(0)
            self.finish_reason = self.finish_reason or reason

    def take(self) -> str:
        """The part of the text that is final and was not taken before; after the end, the rest of it."""
        end = len(self._text)
        if self.finish_reason is None:
            # A stop string may have begun, and the last character may be incomplete.
            end = min([end, *(self._beginning_of(text) for text in self._stop)])
            while end > 0 and self._text[end - 1] == _INCOMPLETE:
                end -= 1
        taken = self._text[self._num_taken : end]
        self._num_taken += len(taken)
        return taken

    @property
    def text(self) -> str:
        """The text so far; the whole answer after its end."""
        return self._text

    def _decode(self) -> None:
        """Decodes the last tokens only, so that the time of an answer grows linearly with its length."""
        added = self._decoded(self._token_ids[self._context :])[len(self._context_text) :]
        self._text = self._settled_text + added
        self._find_stop(len(self._settled_text))
        if added and not added.endswith(_INCOMPLETE):
            self._context, self._num_settled = self._num_settled, len(self._token_ids)
            self._context_text = self._decoded(self._token_ids[self._context :])
            self._settled_text = self._text

    def _decoded(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def _find_stop(self, begin: int) -> None:
        """Ends the text at the first stop string that ends after the position `begin`."""
        found = [
            position for text in self._stop if (position := self._text.find(text, max(0, begin - len(text) + 1))) >= 0
        ]
        if found:
            self._text = self._text[: min(found)]
            self.finish_reason = "stop"

    def _beginning_of(self, stop: str) -> int:
        """Position at the end of the text from which it equals the beginning of a stop string."""
        for length in range(min(len(stop) - 1, len(self._text)), 0, -1):
            if self._text.endswith(stop[:length]):
                return len(self._text) - length
        return len(self._text)

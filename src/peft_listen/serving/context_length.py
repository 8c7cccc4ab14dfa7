"""The number of positions of a model, which prompts, input and answer share."""

from torch import nn

from ..tuners.listen import find_listen_layer
from ..tuners.listen.backbone import find_backbone
from ..tuners.listen.position_limit import PositionLimit
from .errors import RequestError


class ContextLength:
    """
    Checks that inputs and answers fit into the positions of a model.

    Args:
        model (`nn.Module`): The model, with or without a LiSTEN adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        _, backbone = find_backbone(model)
        self._limit = PositionLimit(backbone).limit

    def allowed_new_tokens(self, num_tokens: int, max_new_tokens: int) -> int:
        """
        The longest answer that fits.

        Args:
            num_tokens (`int`): Tokens of the input, with those of audio.
            max_new_tokens (`int`): Longest answer that is wanted.

        Returns:
            `int`: from 1 to `max_new_tokens`.

        Raises:
            RequestError: The input leaves no position for an answer.
        """
        if self._limit is None:
            return max_new_tokens
        num_prompts = self._num_prompts()
        left = self._limit - num_prompts - num_tokens
        if left < 1:
            raise RequestError(
                f"The model has {self._limit} positions. The messages and their audio have {num_tokens} tokens, and the "
                f"adapter adds {num_prompts} prompts, which leaves none for an answer. Send fewer or shorter messages.",
                param="messages",
                code="context_length_exceeded",
            )
        return min(max_new_tokens, left)

    def _num_prompts(self) -> int:
        try:
            return find_listen_layer(self._model).num_prompts
        except ValueError:
            return 0  # without an adapter

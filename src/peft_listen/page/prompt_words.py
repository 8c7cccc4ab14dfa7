"""The words of the vocabulary that are nearest to the prompts of a model of the page."""

from __future__ import annotations

import logging

from ..analysis import NearestWords, nearest_words
from ..serving import ServedModels
from .variants import Variant, active


logger = logging.getLogger(__name__)

# Words that the page shows for a prompt.
_NUM_WORDS = 3


def find_words(models: ServedModels, name: str) -> NearestWords | None:
    """
    Compares the prompts of an adapter with the vocabulary of its language model, see [`~peft_listen.analysis.nearest_words`].

    Args:
        models ([`~peft_listen.serving.ServedModels`]): the models, which nothing else uses meanwhile.
        name (`str`): name of the model.

    Returns:
        [`~peft_listen.analysis.NearestWords`], *optional*: up to three words of each prompt; `None` without a LiSTEN adapter,
        and, with the reason in the log, if the language model has no embeddings to compare with.
    """
    with active(models, Variant(name)) as layer:
        if layer is None:
            return None
        try:
            return nearest_words(models.pipe, top=_NUM_WORDS)
        except ValueError as error:
            logger.warning("The page shows no words near the prompts of %r. %s", name, error)
            return None

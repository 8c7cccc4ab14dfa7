"""Remedies for findings that are not good. Each applies only to configurations in which it is not set already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


RemedyName = Literal[
    "center_queries",
    "standardize_queries",
    "query_pooling",
    "query_ignored_token_ids",
    "init_keys_at_steps",
    "grouped",
    "shared_prompts",
    "smaller_pool",
    "projector",
    "slower_projector",
    "smaller_key_loss",
    "wording",
    "fixed_length",
    "longer_training",
]


@dataclass(frozen=True)
class Remedy:
    """
    One thing to try.

    Attributes:
        text (`str`): what to do, as a part of a sentence.
        applies (`Callable[[Mapping], bool]`): whether it would change an adapter with this configuration. The values come
            from a file, so they may have any type.
    """

    text: str
    applies: Callable[[Mapping[str, Any]], bool] = lambda config: True


# docs/method.md lists the measured effects.
REMEDIES: dict[RemedyName, Remedy] = {
    "center_queries": Remedy("set center_queries=True", lambda config: not config.get("center_queries")),
    # The configuration refuses it without centering, which is then advised first.
    "standardize_queries": Remedy(
        "set standardize_queries=True",
        lambda config: bool(config.get("center_queries")) and not config.get("standardize_queries"),
    ),
    "query_pooling": Remedy(
        'set query_pooling="modality_mean"', lambda config: config.get("query_pooling") != "modality_mean"
    ),
    "query_ignored_token_ids": Remedy(
        "leave the tokens of the chat template out of the query (query_ignored_token_ids)",
        lambda config: not config.get("query_ignored_token_ids"),
    ),
    # An argument of the training. A saved configuration does not contain it; where it is known, it is added.
    "init_keys_at_steps": Remedy(
        "initialize the keys from real queries, unless the training did (ListenCallback(init_keys_at_steps=...))",
        lambda config: not config.get("init_keys_at_steps"),
    ),
    "grouped": Remedy('use selector="grouped"', lambda config: config.get("selector") != "grouped"),
    "shared_prompts": Remedy(
        'add shared prompts (num_shared_prompts, shared_prompt_mode="add")',
        lambda config: not config.get("num_shared_prompts"),
    ),
    "smaller_pool": Remedy("use a smaller pool (pool_size)"),
    "projector": Remedy("check the training of the projector", lambda config: bool(config.get("modules_to_save"))),
    "slower_projector": Remedy(
        "lower the learning rate of the projector", lambda config: bool(config.get("modules_to_save"))
    ),
    "smaller_key_loss": Remedy("lower key_loss_weight", lambda config: config.get("key_loss_weight") not in (0, None)),
    "wording": Remedy("check that the instructions name the task"),
    "fixed_length": Remedy(
        "train with as many prompts as in generation (stochastic_prompt_length=False)",
        lambda config: bool(config.get("stochastic_prompt_length")),
    ),
    "longer_training": Remedy("train for more steps or with another learning rate"),
}


def advise(config: Mapping[str, Any], *names: RemedyName) -> str | None:
    """
    Joins the remedies that apply to a configuration.

    Args:
        config (`Mapping`): configuration of the adapter; empty if it is not known.
        names (`str`): names of remedies, the most important first.

    Returns:
        `str` without a final period, or `None` if no remedy applies.
    """
    texts = [REMEDIES[name].text for name in names if REMEDIES[name].applies(config)]
    if not texts:
        return None
    advice = ", or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
    return advice if config else f"{advice} (unless set: the configuration is not known)"

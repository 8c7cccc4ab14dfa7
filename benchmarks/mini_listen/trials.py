"""Changes to the prompts that stage 0 tries, and that are not options of the library: a start from a text, and mixed values.

An option of the library is what has earned its place; what is tried first is added to a model from outside.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from peft_listen.training.callbacks import find_tuner
from peft_listen.tuners.listen import find_listen_layer


# Its first tokens are the start of the prompts.
START_TEXT = (
    "You hear a recording. Listen to it carefully, and answer the question about it in one line, as briefly as possible. "
    "Do not explain the answer, and do not repeat the question."
)


@torch.no_grad()
def start_from_text(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Sets the prompts that every input gets to the embeddings of [`START_TEXT`]: the shared prompts, or the values of a pool
    without shared prompts.

    Args:
        model (`nn.Module`): a model with a new LiSTEN adapter.
        tokenizer (`PreTrainedTokenizerBase`): of its language model.

    Raises:
        ValueError: if the text has fewer tokens than there are prompts.
    """
    pool = find_listen_layer(model).pool_of()
    prompts = pool.values if pool.shared_values is None else pool.shared_values
    token_ids = tokenizer(START_TEXT, add_special_tokens=False)["input_ids"]
    if len(token_ids) < len(prompts):
        raise ValueError(f"The text has {len(token_ids)} tokens for {len(prompts)} prompts. Lengthen `START_TEXT`.")
    embedding = model.get_base_model().get_input_embeddings()
    prompts.copy_(embedding(torch.tensor(token_ids[: len(prompts)], device=prompts.device)))


def mix_values(model: nn.Module, temperature: float) -> None:
    """
    Replaces the selected value at each position, and its deep values, by the mean of all values of its group, weighted by the
    softmax of their keys' cosines to the query over `temperature`, in training and evaluation.

    Args:
        model (`nn.Module`): a model with a LiSTEN adapter that has as many groups of equal size as prompts, and shared
            prompts that are added.
        temperature (`float`): the smaller, the closer the mean is to the best value.
    """

    def mix(pool: Any, args: tuple[Any, ...], output: Any) -> Any:
        shared = pool.shared_values
        queries, keys = (
            nn.functional.normalize(tensor.float(), dim=-1)
            for tensor in (pool.normalize_query(output.query), pool.keys)
        )
        with torch.autocast(queries.device.type, enabled=False):
            weights = (queries @ keys.T / temperature).unflatten(-1, (len(shared), -1)).softmax(dim=-1)
            mixed = torch.einsum("bjm,jmd->bjd", weights, pool.values.unflatten(0, (len(shared), -1)))
            output = output._replace(prompts=shared + mixed)
            if output.deep is not None:
                # The first position has no deep value.
                values = pool.deep_values.unflatten(1, (len(shared), -1))[:, 1:]
                vectors = torch.einsum("bjm,ljmd->bljd", weights[:, 1:], values) + pool.deep_shared_values[:, 1:]
                output = output._replace(deep=output.deep._replace(vectors=vectors))
        return output

    find_listen_layer(model).pool_of().register_forward_hook(mix)


class KeysBeforeTraining(TrainerCallback):
    """
    Initializes the keys from queries of training rows before the first step, where `init_keys_at_steps` waits for the queries
    of some steps. The running statistics begin with these rows too.

    Args:
        num_rows (`int`): number of rows.
        batch_size (`int`, defaults to 32): rows of a forward pass.
    """

    def __init__(self, num_rows: int, batch_size: int = 32) -> None:
        self._num_rows = num_rows
        self._batch_size = batch_size

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        pool = find_tuner(model).layer.pool_of()
        starts = range(0, self._num_rows, self._batch_size)
        if state.global_step == 0:
            model.train()
            with (
                torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16),
                model.record_selections() as records,
            ):
                for step, start in enumerate(starts):
                    pool.begin_step(step)
                    rows = [loader.dataset[start + place] for place in range(self._batch_size)]
                    model(**send_to_device(loader.collate_fn(rows), args.device))
                pool.begin_step(len(starts))
                # The means are settled after the first quarter.
                pool.init_keys_from(torch.cat([record.query for record in records][len(starts) // 4 :]))
        # The statistics of the first steps would replace those of these rows.
        update = pool._update_statistics
        pool._update_statistics = lambda steps_seen: update(steps_seen + len(starts))

"""Memory and time of training with the paper's models, derived from counts: nothing is run on a GPU.

    python -m benchmarks.paper.scaling [--write docs/scaling.md]

Counted, on torch's meta device: parameters, and the tensors that autograd keeps for the backward pass, for one and for two
layers of the decoder; every further layer adds the difference. The attention is counted as a fused kernel, which keeps its
inputs and its output. A token costs 2 floating-point operations per weight in the forward pass, and as many in the backward
pass: the weights are frozen, so there are no gradients of them.

Not counted: memory of libraries and of the allocator's fragments. The speed of the card is that of the measured step of a
language model of this size (benchmarks/speed/h100), and the network's is an assumption that the table names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from benchmarks.markdown import write_texts
from benchmarks.speed.sizes import LANGUAGE_MODELS, make_audio_model, make_processor
from peft_listen import ListenConfig


MEASURED = Path(__file__).parents[1] / "speed" / "h100" / "decoder.json"
MEASURED_METHOD = "LISTEN k=40"
MARKER = "scaling"
GIB, MIB = 2**30, 2**20

CARD_GIB = 80e9 / GIB  # an 80 GB card
NETWORK = 300e9  # bytes per second and card; assumed for NVLink
POOL_SIZE = 400  # the paper's; the number of prompts is drawn from 1 to this
STEPS = 30_000  # of benchmarks/paper/train.yaml
ROWS, AUDIO_TOKENS, TEXT_TOKENS, ANSWER_TOKENS = 8, 88, 64, 32  # of a card and a row; 88 tokens are 30 s
SPEECH_FRAMES, SOUND_FRAMES = 1500, 1496  # of 30 s
BITS_OF_4_BIT = 4.127  # with double quantization


class Counts(NamedTuple):
    """
    Numbers of the paper's models.

    Attributes:
        decoder, embeddings, encoders, projector, pool (`int`): parameters. The embeddings include the head.
        speech, sound (`int`): parameters of each encoder.
        layer (`int`): parameters of one decoder layer.
        saved (`float`): bytes that autograd keeps for one token in one decoder layer.
        saved_outside (`float`): bytes that it keeps for one token outside the layers.
        layers, hidden, vocabulary (`int`): sizes of the language model.
    """

    decoder: int
    embeddings: int
    encoders: int
    projector: int
    pool: int
    speech: int
    sound: int
    layer: int
    saved: float
    saved_outside: float
    layers: int
    hidden: int
    vocabulary: int

    @property
    def trained(self) -> int:
        """Number of trained parameters, all in float32."""
        return self.projector + self.pool

    @property
    def frozen(self) -> int:
        """Number of frozen parameters."""
        return self.decoder + self.embeddings + self.encoders


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps for its backward pass, and computes nothing."""

    @staticmethod
    def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        context.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError


def _count_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


def saved_bytes(run: Callable[[], Any], parameters: set[int]) -> int:
    """
    Bytes of the tensors that autograd keeps for the backward pass of a computation on the meta device.

    Args:
        run (`Callable`): the computation. Its result is kept until the end.
        parameters (`set[int]`): ids of the parameters, which are not counted.
    """
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in parameters:
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(sizes.values())


def saved_per_token(size: str, dtype: torch.dtype = torch.bfloat16, tokens: int = 256) -> tuple[float, float]:
    """
    Bytes that autograd keeps for each token, in a decoder layer and outside the layers.

    Args:
        size (`str`): of `benchmarks/speed/sizes.py`.
        dtype (`torch.dtype`): of the weights.
        tokens (`int`): length of the row that is counted.
    """
    AttentionInterface.register("counted", _count_attention)
    found = []
    for layers in (1, 2):
        config = LlamaConfig(**dict(LANGUAGE_MODELS[size], num_hidden_layers=layers), attn_implementation="counted")
        with torch.device("meta"):
            model = LlamaForCausalLM._from_config(config, dtype=dtype).model.requires_grad_(False).train()
            embeds = torch.empty(1, tokens, config.hidden_size, dtype=dtype, requires_grad=True)
            positions = torch.empty(1, tokens, dtype=torch.long)
            parameters = {id(parameter) for parameter in (*model.parameters(), embeds)}

            def run(model: Any = model, embeds: torch.Tensor = embeds, positions: torch.Tensor = positions) -> Any:
                mask = {"full_attention": None}
                return model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)

            found.append(saved_bytes(run, parameters) / tokens)
    return found[1] - found[0], 2 * found[0] - found[1]


def count(size: str = "8b") -> Counts:
    """The numbers of the models of a size, without memory for their weights."""
    audio_model = make_audio_model(size, make_processor(size), "meta", "bfloat16")
    settings = {"pool_size": min(POOL_SIZE, 400), "modules_to_save": ["multi_modal_projector"]}
    model = get_peft_model(audio_model, ListenConfig.paper(**settings))
    parts = audio_model.model

    def number(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0

    language_model, layer = parts.language_model, parts.language_model.layers[0]
    pool = number(model.base_model.layer)
    embedding = parts.language_model.embed_tokens.weight.numel()
    saved, saved_outside = saved_per_token(size)
    projector = parts.multi_modal_projector.modules_to_save["default"]  # type: ignore[union-attr]
    text = audio_model.config.text_config
    return Counts(
        decoder=number(language_model) - embedding - pool,
        embeddings=embedding + number(audio_model.lm_head),
        encoders=number(parts.speech_tower) + number(parts.sound_tower),
        projector=number(projector),
        pool=pool,
        speech=number(parts.speech_tower),
        sound=number(parts.sound_tower),
        layer=number(layer),
        saved=saved,
        saved_outside=saved_outside,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
    )


def activations(counts: Counts, tokens: int, supervised: int, checkpointing: bool) -> float:
    """
    Bytes of what the forward pass keeps, at the beginning of the backward pass.

    Args:
        counts ([`Counts`])
        tokens (`int`): of all rows, prompts included.
        supervised (`int`): tokens of which there are logits.
        checkpointing (`bool`): whether a layer keeps its input alone, and is computed again.
    """
    kept = tokens * (counts.saved * counts.layers + counts.saved_outside)
    if checkpointing:
        kept = tokens * (2 * counts.hidden * counts.layers + counts.saved + counts.saved_outside)
    # Logits in bfloat16 and float32, their softmax, and its gradient.
    return kept + supervised * counts.vocabulary * (2 + 4 + 4 + 4)


def operations(counts: Counts, rows: int, tokens: int, supervised: int, checkpointing: bool, encodes: bool) -> float:
    """
    Floating-point operations of a training step.

    Args:
        counts ([`Counts`])
        rows (`int`): rows with a clip of 30 s.
        tokens (`int`): of each row, prompts included.
        supervised (`int`): tokens of which there are logits, of all rows.
        checkpointing (`bool`): whether the forward pass of the layers is computed twice.
        encodes (`bool`): whether the encoders run.
    """
    # Scores and weighted values of the attention, half of them masked.
    forward = 2 * counts.decoder * rows * tokens + 2 * counts.layers * rows * tokens**2 * counts.hidden
    total = forward * (3 if checkpointing else 2) + 4 * counts.hidden * counts.vocabulary * supervised
    # Trained: gradients of inputs and weights.
    total += 6 * counts.projector * rows * AUDIO_TOKENS
    if encodes:
        total += 2 * rows * (counts.speech * SPEECH_FRAMES + counts.sound * SOUND_FRAMES)
    return total


def measured_step() -> tuple[float, float, dict[str, Any]]:
    """Seconds and MiB, above the language model, of the measured training step, and its settings."""
    stored = json.loads(MEASURED.read_text(encoding="utf-8"))
    found = next(each for each in stored["measurements"] if each["method"] == MEASURED_METHOD)
    seconds = sorted(found["train_step"])
    return seconds[len(seconds) // 2], found["train_memory"] / MIB, stored["arguments"]


class Setting(NamedTuple):
    """
    A way to train.

    Attributes:
        name (`str`): for the table.
        cards (`int`): number of cards.
        shards (`bool`): whether the frozen weights are sharded.
        checkpointing (`bool`): gradient checkpointing.
        bits (`float`): of a weight of the decoder.
        encodes (`bool`): whether the encoders run in each step, instead of a feature cache.
    """

    name: str
    cards: int = 1
    shards: bool = False
    checkpointing: bool = False
    bits: float = 16
    encodes: bool = True


SETTINGS = [
    Setting("1 card"),
    Setting("1 card, feature cache", encodes=False),
    Setting("1 card, gradient checkpointing", checkpointing=True),
    Setting("1 card, 4-bit decoder, gradient checkpointing", checkpointing=True, bits=BITS_OF_4_BIT),
    Setting("8 cards, ddp.yaml", cards=8),
    Setting("8 cards, fsdp2.yaml", cards=8, shards=True),
    Setting("8 cards, fsdp2.yaml, gradient checkpointing", cards=8, shards=True, checkpointing=True),
]


def memory(setting: Setting, counts: Counts) -> dict[str, float]:
    """Bytes on each card, by what they are for, in the step with the most prompts."""
    tokens = ROWS * (AUDIO_TOKENS + TEXT_TOKENS + POOL_SIZE)
    decoder = counts.decoder * setting.bits / 8
    encoders = 2 * counts.encoders
    embeddings = 2 * counts.embeddings
    # The trained weights, their gradients and both states of AdamW; PEFT keeps the untrained projector too.
    trained = 16 * counts.trained + 4 * counts.projector
    gathered = 0.0
    if setting.shards:
        # The layer that is computed and the one that is gathered meanwhile; outside the layers, everything stays gathered.
        gathered = 2 * 2 * counts.layer + embeddings + encoders + 4 * (counts.trained + counts.projector)
        decoder, encoders, embeddings, trained = (
            part / setting.cards for part in (decoder, encoders, embeddings, trained)
        )
    kept = activations(counts, tokens, ROWS * ANSWER_TOKENS, setting.checkpointing)
    return {"frozen": decoder + encoders + embeddings, "trained": trained, "gathered": gathered, "kept": kept}


def seconds(setting: Setting, counts: Counts, speed: float) -> float | None:
    """
    Seconds of a step with the mean number of prompts, or `None` if it cannot be derived from counts.

    Args:
        setting ([`Setting`])
        counts ([`Counts`])
        speed (`float`): operations per second of a card.
    """
    if setting.bits != 16:
        return None  # the conversion of the weights is not counted
    tokens = AUDIO_TOKENS + TEXT_TOKENS + (1 + POOL_SIZE) // 2
    step = operations(counts, ROWS, tokens, ROWS * ANSWER_TOKENS, setting.checkpointing, setting.encodes)
    computed = step / speed
    if setting.cards == 1:
        return computed
    others = (setting.cards - 1) / setting.cards
    exchanged = 2 * others * 4 * counts.trained / NETWORK
    if setting.shards:
        # The layers are gathered in the forward and in the backward pass, while the cards compute.
        computed = max(computed, 2 * others * 2 * counts.decoder / NETWORK)
    return computed + exchanged


def report(counts: Counts) -> str:
    """The tables in Markdown."""
    step, measured_memory, arguments = measured_step()
    rows, prompts = arguments["train_batch_size"], 40
    length = arguments["length"] + prompts
    measured_operations = operations(counts, rows, length, rows * arguments["length"], False, False)
    measured_operations -= 6 * counts.projector * rows * AUDIO_TOKENS
    speed = measured_operations / step
    kept = activations(counts, rows * length, rows * arguments["length"], False) + 16 * counts.pool
    lines = [
        "**Derived from counts, not measured** (`python -m benchmarks.paper.scaling`). "
        f"Decoder {counts.decoder / 1e9:.2f} B, embeddings and head {counts.embeddings / 1e9:.2f} B, encoders "
        f"{counts.encoders / 1e9:.2f} B parameters in bfloat16; projector {counts.projector / 1e6:.1f} M and pool "
        f"{counts.pool / 1e6:.1f} M trained parameters in float32. {ROWS} rows per card, each with 30 s of audio "
        f"({AUDIO_TOKENS} tokens), {TEXT_TOKENS} tokens of text, {ANSWER_TOKENS} of them supervised, and 1 to {POOL_SIZE} "
        f"prompts: memory in GiB with {POOL_SIZE}, time with their mean. A card has {CARD_GIB:.1f} GiB. {speed / 1e12:.0f} TFLOP/s, "
        f"the speed of the measured step below; for 8 cards, {NETWORK / 1e9:.0f} GB/s between them are assumed.",
        "",
        "| setting | frozen weights | trained weights | gathered weights | activations | sum | s per step | rows/s "
        f"| hours for {STEPS} steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        parts = memory(setting, counts)
        total = sum(parts.values()) / GIB
        cells = [f"{value / GIB:.1f}" for value in parts.values()]
        cells.append(f"{total:.1f}" if total < CARD_GIB else f"{total:.1f} (too much)")
        time = seconds(setting, counts, speed)
        if time is None:
            cells += ["not derived", "", ""]
        else:
            cells += [f"{time:.2f}", f"{setting.cards * ROWS / time:.0f}", f"{STEPS * time / 3600:.1f}"]
        lines.append(f"| {setting.name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The same count for the step that was measured on an H100 (language model alone, {rows} rows of {arguments['length']} "
        f"tokens and {prompts} prompts): {kept / MIB:.0f} MiB above the weights, where {measured_memory:.0f} MiB were measured; "
        f"{step * 1000:.1f} ms were measured for {measured_operations / 1e12:.1f} TFLOP.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="Markdown file with a place for the table")
    arguments = parser.parse_args()
    text = report(count())
    print(text)
    if arguments.write is not None:
        write_texts(arguments.write, {MARKER: text})


if __name__ == "__main__":
    main()

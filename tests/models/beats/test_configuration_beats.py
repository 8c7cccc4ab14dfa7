import pytest

from peft_listen import BeatsConfig


def test_the_defaults_are_those_of_the_released_checkpoint(released_sizes):
    # A pre-trained cfg has no fields of the class head; the fine-tuned one has no dropout there.
    cfg = released_sizes["pretrained"]["cfg"] | {"predictor_dropout": 0.0}
    assert BeatsConfig.from_original(cfg).to_dict() == BeatsConfig().to_dict()


def test_a_finetuned_cfg_gives_the_number_of_classes_and_multi_label_loss(released_sizes):
    config = BeatsConfig.from_original(released_sizes["finetuned"]["cfg"])
    assert config.num_labels == 527
    assert config.problem_type == "multi_label_classification"


def test_absent_original_keys_have_the_defaults_of_the_original_code():
    config = BeatsConfig.from_original({"input_patch_size": 16, "finetuned_model": True})
    assert not config.use_relative_position_bias
    assert not config.use_gated_position_bias
    assert not config.deep_norm
    assert (config.hidden_dropout, config.attention_dropout, config.final_dropout) == (0.1, 0.1, 0.1)
    assert (config.activation_dropout, config.feat_proj_dropout, config.layerdrop) == (0, 0, 0)
    assert config.relative_attention_max_distance == 1280
    assert config.num_labels == 527


def test_unknown_original_keys_are_ignored():
    cfg = {"input_patch_size": 16, "deep_norm": True}
    with_training_options = cfg | {"layer_wise_gradient_decay_ratio": 0.6, "mask_prob": 0.8}
    assert BeatsConfig.from_original(with_training_options).to_dict() == BeatsConfig.from_original(cfg).to_dict()


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({}, "`input_patch_size` must be given"),
        ({"input_patch_size": -1}, "`input_patch_size` must be given .* got -1"),
        ({"input_patch_size": 16, "activation_fn": "glu"}, "`activation_fn` 'glu' .* 'gelu', 'relu'"),
        ({"input_patch_size": 16, "activation_fn": "swish2"}, "'swish2'"),
        ({"input_patch_size": 16, "deep_norm": True, "layer_norm_first": True}, "`deep_norm` .* `layer_norm_first`"),
        ({"input_patch_size": 16, "dropout": "much"}, "wrong type(.|\n)*hidden_dropout"),
        ([("input_patch_size", 16)], "Expected the `cfg` dict .* got list"),
    ],
)
def test_an_unsupported_original_cfg_is_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        BeatsConfig.from_original(cfg)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 7}, r"`hidden_size` \(768\) .* `num_attention_heads` \(7\)"),
        ({"num_conv_pos_embedding_groups": 5}, r"`hidden_size` \(768\) .* `num_conv_pos_embedding_groups` \(5\)"),
        ({"num_mel_bins": 100}, r"`num_mel_bins` \(100\) .* `patch_size` \(16\)"),
        ({"num_mel_bins": 64, "patch_size": 4}, r"`num_mel_bins` \(64\) .* square of `patch_size` \(4\)"),
        ({"patch_size": 0}, r"`patch_size` \(0\)"),
        ({"deep_norm": True, "layer_norm_first": True}, "`deep_norm` .* `layer_norm_first`"),
        ({"hidden_act": "no_such_function"}, "`hidden_act` 'no_such_function'"),
        ({"relative_attention_num_buckets": 3}, r"`relative_attention_num_buckets` \(3\)"),
        ({"relative_attention_max_distance": 80}, r"\(320\) .* `relative_attention_max_distance` \(80\)"),
    ],
)
def test_fields_that_contradict_one_another_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BeatsConfig(**fields)


@pytest.mark.parametrize(
    ("num_frames", "num_tokens"), [(15, 0), (16, 8), (31, 8), (32, 16), (98, 48), (998, 496), (2998, 1496)]
)
def test_each_whole_column_of_frames_gives_eight_tokens(num_frames, num_tokens):
    assert BeatsConfig().get_num_tokens(num_frames) == num_tokens


def test_saving_and_loading_keeps_every_field(tmp_path):
    config = BeatsConfig(hidden_size=32, num_attention_heads=2, deep_norm=False, layer_norm_first=True, num_labels=3)
    config.save_pretrained(tmp_path)
    assert BeatsConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()

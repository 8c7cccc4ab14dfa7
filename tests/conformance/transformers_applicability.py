"""
The tests of transformers' mixins that do not apply, with reasons. The skips and the table in
`tests/conformance/transformers_conformance.md` are generated from these.
"""

_NO_EXPERTS = "For mixtures of experts; the models here do not have their own."
_NO_ROPE = "For models with rotary positions. BEATs has a convolution and a relative position bias instead."
_NO_TEXT = "For models with token embeddings. BEATs takes audio."
_NO_PARTS = "For models that consist of several models."
_NO_IMAGES = "Needs images or video; the inputs here are text and audio."

# Patterns of suites and tests: why these tests do not apply to those suites, or `None` if they do. The first match
# counts. All other tests run and must pass.
NOT_APPLICABLE: dict[tuple[str, str], str | None] = {
    # `ModelTesterMixin`
    ("*", "test_eager_matches_batched_and_grouped_inference*"): _NO_EXPERTS,
    ("*", "test_moe_models_record_router_logits"): _NO_EXPERTS,
    ("*", "test_output_router_logits_from_config"): _NO_EXPERTS,
    ("*", "test_vision_axial_rope"): _NO_IMAGES,
    ("*", "test_get_image_features_*"): _NO_IMAGES,
    ("*", "test_get_video_features_*"): _NO_IMAGES,
    ("*", "test_get_text_features_*"): "For models that embed text separately, such as CLIP.",
    ("BEATs", "test_get_audio_features_*"): "For language models that accept audio.",
    ("*", "test_encoder_decoder_loss_no_double_shift"): "For models with a text encoder and a text decoder.",
    (
        "*",
        "test_reverse_loading_mapping",
    ): "For models whose checkpoints have other names than the model's. Ours do not.",
    ("*", "test_can_load_from_already_mapped_keys"): (
        "For models whose checkpoints have other names than the model's. Ours do not."
    ),
    ("*", "test_resize_position_vector_embeddings"): "For models with a table of positions that can grow.",
    ("*", "test_sliding_window_mask"): (
        "Reads the window from the model's own configuration. Here it is in that of the language model: `test_greedy_decoding_"
        "equals_decoding_by_hand_for_other_families` runs Mistral with a window shorter than the prompt."
    ),
    ("BEATs", "test_model_rope_*"): _NO_ROPE,
    (
        "*",
        "test_model_rope_with_partial_rotation",
    ): "For models that rotate only a part of each head; Llama rotates all of it.",
    ("BEATs", "test_inputs_embeds*"): _NO_TEXT,
    ("BEATs", "test_resize_*"): _NO_TEXT,
    ("BEATs", "test_model_get_set_embeddings"): (
        "Needs an `nn.Embedding`. BEATs embeds patches of the spectrogram with a convolution "
        "(`test_the_input_embedding_is_the_patch_embedding`)."
    ),
    ("BEATs", "test_causal_lm_loss_honors_shift_labels"): "For language models.",
    (
        "BEATs",
        "test_keep_in_fp32_modules*",
    ): "For models that keep a part in float32; BEATs runs entirely in half precision.",
    ("BEATs", "test_tp_plan_matches_params"): "For models with a plan for tensor parallelism.",
    ("BEATs", "test_tied_head_has_a_tp_plan_entry"): "For models with a plan for tensor parallelism.",
    ("BEATs", "test_attn_implementation_composite_models"): _NO_PARTS,
    ("BEATs", "test_sdpa_can_dispatch_composite_models"): _NO_PARTS,
    ("BEATs", "test_can_set_attention_dynamically_composite_model"): _NO_PARTS,
    ("BEATs", "test_internal_model_config_and_subconfig_are_same"): _NO_PARTS,
    ("AudioListen*", "test_sdpa_can_dispatch_non_composite_models"): "For models that consist of one part.",
    ("AudioListen*", "test_sdpa_can_dispatch_composite_models"): (
        "Looks for a part named `audio_tower`; here there are two (`test_attention_implementations_agree_and_reach_all_"
        "parts`)."
    ),
    # `ProcessorTesterMixin`
    ("AudioListen processor*", "test_*_images"): _NO_IMAGES,
    ("AudioListen processor*", "test_*_videos"): _NO_IMAGES,
    ("AudioListen processor*", "test_*_image_[0-9]"): _NO_IMAGES,
    ("AudioListen processor*", "test_*_video"): _NO_IMAGES,
    ("AudioListen processor*", "test_*_video_[0-9]"): _NO_IMAGES,
    ("AudioListen processor*", "test_*_video_frame_sampling"): _NO_IMAGES,
    ("AudioListen processor*", "test_args_overlap_kwargs"): _NO_IMAGES,
    ("AudioListen processor*", "test_processor_text_has_no_visual"): _NO_IMAGES,
    ("AudioListen processor*", "test_replacement_offsets"): _NO_IMAGES,
    ("AudioListen processor*", "test_get_num_multimodal_tokens_matches_processor_call*"): (
        "For a method that vLLM calls to count tokens when it runs a transformers model. The tokens of a clip are "
        "counted by `num_audio_tokens` (`test_placeholders_equal_encoder_outputs_for_any_length`)."
    ),
    ("AudioListen processor*", "test_apply_chat_template_tool_calls_no_content"): (
        "For templates with tools. A language model's own template keeps its features "
        "(`test_the_language_models_template_is_kept`); SALMONN's format, for models without a template, has no tools."
    ),
    ("AudioListen processor with a sound encoder", "test_processor_to_json_string"): (
        "Compares arguments that are plain values. The sound encoder's feature extractor is an object "
        "(`test_processors_survive_saving_and_loading`); with speech only, the test runs."
    ),
    # `PipelineTesterMixin`
    ("audio-text-to-text pipeline", "test_pipeline_audio_text_to_text*"): None,
    ("audio-classification pipeline*", "test_pipeline_audio_classification*"): None,
    ("*pipeline*", "test_pipeline_*"): "For another task.",
}

# Patterns of tests, and their requirements. They skip themselves where these are not met.
NEEDS: dict[str, str] = {
    "test_can_load_with_device_context_manager": "an accelerator",
    "test_can_load_with_global_device_set": "an accelerator",
    "test_cpu_offload": "an accelerator",
    "test_disk_offload_*": "an accelerator",
    "test_flex_attention_with_grads": "an accelerator",
    "test_sdpa_can_dispatch_on_flash": "an accelerator",
    "test_sdpa_can_compile_dynamic": "an accelerator",
    "test_torch_compile_for_training": "an accelerator",
    "test_model_parallelism": "several accelerators",
    "test_flash_attn_kernels_*": "an accelerator and the kernels library",
    "test_kernels_can_load_without_crashing": "an accelerator and the kernels library",
    "test_flash_attn_*": "an accelerator and flash-attn",
    "test_*_with_deepspeed*": "an accelerator and DeepSpeed",
}

# `GenerationTesterMixin` is not part of any distribution of transformers. Its requirements, and our own tests of them.
GENERATION: dict[str, tuple[str, ...]] = {
    "greedy decoding, with and without a cache": (
        "test_greedy_decoding_equals_decoding_by_hand_without_a_cache",
        "test_greedy_decoding_equals_decoding_by_hand_for_other_families",
    ),
    "scores, logits, hidden states and attentions of every step": (
        "test_greedy_decoding_returns_the_requested_outputs_of_every_step",
    ),
    "sampling": (
        "test_sampling_is_reproducible_under_a_seed",
        "test_sampling_at_a_low_temperature_is_greedy_and_returns_scores",
        "test_every_return_sequence_of_a_row_uses_the_clips_of_the_row",
    ),
    "beams, sampled beams, several return sequences": (
        "test_beams_of_a_batch_equal_those_of_each_row_alone",
        "test_the_scores_of_beams_are_the_log_probabilities_of_their_tokens",
        "test_beams_of_one_token_are_the_likeliest_tokens",
        "test_beams_can_be_sampled",
    ),
    "an assistant model, greedy and sampled; prompt lookup": (
        "test_an_assistant_model_with_audio_does_not_change_the_output",
        "test_a_text_only_language_model_can_be_the_assistant",
        "test_prompt_lookup_drafts_stop_at_the_end_of_the_text",
    ),
    "padding on the left": ("test_padding_on_the_left_changes_no_logits",),
    "padding of finished rows": ("test_a_finished_row_is_padded",),
    "the returned cache": ("test_the_cache_contains_keys_and_values_of_every_layer",),
    "a static cache; prefilling in chunks": (
        "test_greedy_decoding_equals_decoding_by_hand_without_a_cache",
        "test_beams_and_static_caches_agree_with_greedy_decoding_in_other_families",
    ),
    "a compiled decoding step": ("test_decoding_steps_compile_into_one_graph",),
    "continuing from a cache": (
        "test_generation_can_be_continued",
        "test_a_filled_cache_is_extended_by_a_new_turn_with_audio",
    ),
    "embeddings instead of ids, continued, and with a static cache": (
        "test_embeddings_of_the_prompt_generate_the_same",
        "test_different_embeddings_give_a_different_answer",
        "test_generation_can_be_continued_from_embeddings",
        "test_embeddings_can_fill_a_static_cache",
    ),
    "no input": ("test_generation_without_input_starts_with_the_bos_token",),
    "eager and SDPA attention": ("test_attention_implementations_generate_the_same",),
    "logits of the last position only": ("test_logits_are_computed_only_for_the_last_position",),
    "streaming": ("test_tokens_are_streamed_one_by_one",),
    "unknown arguments": ("test_misspelt_arguments_are_refused",),
}

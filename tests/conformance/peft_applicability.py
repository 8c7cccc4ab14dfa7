"""The PEFT tests that apply to LISTEN. The tests and the table in `tests/conformance/peft_conformance.md` are generated
from these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft_listen import ListenConfig


# Arguments of `ListenConfig`, as in PEFT's list of methods: for every model, and for Llama alone.
CONFIG: dict[str, Any] = {"task_type": "CAUSAL_LM", "pool_size": 8, "prompt_length": 3}
OTHER_CONFIGS: list[dict[str, Any]] = [
    {
        **CONFIG,
        "selector": "attention",
        "stochastic_prompt_length": False,
        "center_queries": False,
        "key_loss_weight": 0.0,
    },
    {
        **CONFIG,
        "selector": "residual",
        "num_shared_prompts": 2,
        "shared_prompt_mode": "prepend",
        "standardize_queries": True,
        "max_train_prompt_length": 4,
    },
]


def cases(models: list[str]) -> list[tuple[str, type, dict[str, Any]]]:
    """Model, configuration class and arguments of every case that a test of PEFT is run with."""
    others = [(name, ListenConfig, config) for name in models if "Llama" in name for config in OTHER_CONFIGS]
    return [(name, ListenConfig, CONFIG) for name in models] + others


_MERGING = (
    "Prompts depend on the input and cannot be merged into weights. `merge_and_unload` and `merge_adapter` raise an "
    "error with this reason (`test_merging_raises`)."
)
_MIXED = (
    "Different adapters for the rows of a batch (`adapter_names`): PEFT supports this only for LoRA and RoAd. LISTEN "
    "raises an error (`test_different_adapters_for_the_rows_of_a_batch_raise`)."
)
_PROMPT_LEARNING = (
    "For PEFT's `PromptLearningConfig` methods, which are implemented in `PeftModel`; LISTEN is a tuner. The same is "
    "checked for tuners by `test_training_decoders`, `test_prepare_for_training_parametrized`."
)
_PROMPT_TUNING_INIT = (
    "An option of `PromptTuningConfig`; the initialization of a LISTEN pool is tested in `test_pool.py`."
)
_PREFIX_TUNING = "Only for `PrefixTuningConfig`: its body configures that method."
_LORA = "Only for `LoraConfig`: its body configures that method."
_WEIGHTED = (
    "PEFT has `add_weighted_adapter` only for LoRA and IA3. A weighted sum of pools is not meaningful: its keys would "
    "not match the queries of either."
)

# Tests of PEFT that do not apply, each with the reason. All others run.
NOT_APPLICABLE: dict[str, str] = {
    "test_merge_layers": _MERGING,
    "test_merge_layers_multi": _MERGING,
    "test_merge_layers_nan": _MERGING,
    "test_merge_layers_fp16": _MERGING,
    "_test_merge_layers_is_idempotent": _MERGING,
    "_test_safe_merge": _MERGING,
    "test_mixed_adapter_batches": _MIXED,
    "test_generate_with_mixed_adapter_batches": _MIXED,
    "test_weighted_combination_of_adapters": _WEIGHTED,
    "_test_weighted_combination_of_adapters_lora": _WEIGHTED,
    "_test_weighted_combination_of_adapters_ia3": _WEIGHTED,
    "test_training_decoders_layer_indexing": (
        "`layers_to_transform`: prompts are inserted before the first layer, so there are no layers to select."
    ),
    "test_adding_multiple_adapters_with_bias_raises": (
        "`bias`: prompts have none. A second adapter that cannot be added leaves nothing behind "
        "(`test_all_adapters_of_a_model_share_its_backbone`)."
    ),
    "test_lora_conversion": (
        "Prompts do not change weights, so no LoRA adapter is equivalent: `supports_lora_conversion()` is `False` "
        "(`test_prompts_cannot_be_converted_to_lora`), and the test ends there."
    ),
    "test_training_prompt_learning_tasks": _PROMPT_LEARNING,
    "test_set_requires_grad_prompt_learning_raises": (
        "For PEFT's `PromptLearningConfig` methods, which do not have `set_requires_grad`. LISTEN has it, like other "
        "tuners (`test_requires_grad_can_be_set_for_each_adapter`)."
    ),
    "test_prompt_tuning_text_prepare_for_training": _PROMPT_TUNING_INIT,
    "test_prompt_tuning_text_tokenizer_kwargs": _PROMPT_TUNING_INIT,
    "test_prompt_tuning_trust_remote_code": _PROMPT_TUNING_INIT,
    "test_prompt_tuning_sample_vocab_prepare_for_training": _PROMPT_TUNING_INIT,
    "test_prompt_tuning_config_invalid_args": _PROMPT_TUNING_INIT,
    "test_prompt_tuning_prepare_inputs_for_generation_4d_attention_mask": (
        "Only for `PromptTuningConfig`, which inserts prompts before `generate` creates a mask. LISTEN inserts them in the "
        "decoder, and a mask that was prepared earlier raises an error (`test_a_prepared_mask_raises`)."
    ),
    "test_prefix_tuning_qwen2_with_grouped_query_attention": _PREFIX_TUNING,
    "test_prefix_tuning_qwen3_with_grouped_query_attention": _PREFIX_TUNING,
    "test_prefix_tuning_offsets_position_ids_in_forward": _PREFIX_TUNING,
    "test_prefix_tuning_mistral": _PREFIX_TUNING,
    "test_prefix_tuning_gemma4_works": _PREFIX_TUNING,
    "test_prefix_tuning_gemma4_warns_if_some_layers_skipped": _PREFIX_TUNING,
    "test_prefix_tuning_gemma4_raises_if_all_layers_skipped": _PREFIX_TUNING,
    "test_generate_adalora_no_dropout": "Only for `AdaLoraConfig`: its body configures that method.",
    "test_lora_layer_replication": _LORA,
    "test_save_pretrained_targeting_lora_to_embedding_layer": _LORA,
    "test_lora_embed_scale_is_applied": _LORA,
    "test_lora_embed_scale_is_applied_mixed_batch": _LORA,
    "test_merge_and_unload_fixes_tie_word_embeddings_config": _LORA,
}


@dataclass(frozen=True)
class PeftTest:
    """
    One test of PEFT.

    Attributes:
        name: Its name.
        checks: The checks of `PeftCommonTester` that it calls.
        reason: Why it does not apply, or `None` if it runs.
    """

    name: str
    checks: tuple[str, ...]
    reason: str | None


def decoder_tests(tester: type) -> list[PeftTest]:
    """The tests of `TestDecoderModels`, in its order."""
    tests = [test for name, test in vars(tester).items() if name.startswith("test_")]
    return [PeftTest(test.__name__, checks_of(test), NOT_APPLICABLE.get(test.__name__)) for test in tests]


def checks_of(test: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in test.__code__.co_names if name.startswith("_test_")))


def common_tests(common: type, tester: type) -> list[PeftTest]:
    """The checks of `PeftCommonTester` that no test of `TestDecoderModels` calls; the tests here do."""
    called = {check for test in decoder_tests(tester) for check in test.checks}
    names = [name for name in vars(common) if name.startswith("_test_") and name not in called]
    return [PeftTest(name, (name,), NOT_APPLICABLE.get(name)) for name in names]

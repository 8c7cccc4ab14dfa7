from tests.pipelines.conftest import (  # noqa: F401
    beats_config,
    clip,
    composite_folder,
    make_adapted,
    make_llm,
    make_model,
    make_processor,
    make_tokenizer,
    one_thread,
    whisper_config,
)

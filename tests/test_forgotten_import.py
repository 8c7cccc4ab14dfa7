"""What the libraries print if `import peft_listen` is missing: docs/publish.md and docs/use.md quote it."""

import subprocess
import sys


CODE = """
import sys
from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import AutoModelForCausalLM, pipeline

base, adapter = sys.argv[1:]
attempts = [
    (pipeline, dict(task="audio-text-to-text", model=base)),
    (AutoModelForCausalLM.from_pretrained, dict(pretrained_model_name_or_path=base)),
    (PeftConfig.from_pretrained, dict(pretrained_model_name_or_path=adapter)),
    (AutoPeftModelForCausalLM.from_pretrained, dict(pretrained_model_name_or_path=adapter)),
]
for function, arguments in attempts:
    try:
        function(**arguments)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0])
assert "peft_listen" not in sys.modules
"""


def test_the_libraries_name_the_types_that_they_do_not_know(composite_folder, make_adapted, tmp_path) -> None:
    make_adapted("listen").save_pretrained(tmp_path)
    command = [sys.executable, "-c", CODE, str(composite_folder), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    of_base, of_auto_class, *of_peft = result.stdout.splitlines()
    for line in (of_base, of_auto_class):
        assert line.startswith("ValueError: The checkpoint you are trying to load has model type `audio_listen`")
        assert "Transformers does not recognize this architecture" in line
    assert of_peft == ["KeyError: 'LISTEN'"] * 2


def test_no_saved_file_asks_to_run_code(composite_folder, make_adapted, tmp_path) -> None:
    make_adapted("listen").save_pretrained(tmp_path)
    for folder in (composite_folder, tmp_path):
        for path in folder.iterdir():
            assert path.suffix != ".py"
            assert path.suffix != ".json" or 'auto_map"' not in path.read_text(encoding="utf-8"), path

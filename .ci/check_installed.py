"""
Checks an installed package without its extras: its public names, a saved adapter, the command. Runs in the environment that
it was installed in: `python -I .ci/check_installed.py`.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import peft_listen


folder = Path(peft_listen.__file__).parent
assert folder.parent == Path(sysconfig.get_path("purelib")), f"{folder} is not the installed package"
assert (folder / "py.typed").is_file()
assert peft_listen.__version__ == importlib.metadata.version("peft-listen")
for name in peft_listen.__all__:
    assert getattr(peft_listen, name) is not None

sizes = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
torch.manual_seed(0)
llm = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
input_ids = torch.arange(8)[None]
plain = llm(input_ids).logits
config = peft_listen.ListenConfig(pool_size=8, prompt_length=2, init_weights=False)
with tempfile.TemporaryDirectory() as adapter, torch.no_grad():
    model = get_peft_model(llm, config).eval()
    adapted = model(input_ids).logits
    model.save_pretrained(adapter)
    loaded = PeftModel.from_pretrained(model.unload(), adapter).eval()
    assert torch.equal(loaded(input_ids).logits, adapted)
    assert not torch.equal(adapted, plain)

command = Path(sys.executable).parent / "peft-listen"
shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
assert peft_listen.__version__ in shown, shown

import re
import sys

import pytest
import torch

from benchmarks.speed import selection
from peft_listen import available_selectors


SMALL = ["--size", "small", "--device", "cpu", "--threads", "1", "--length", "6", "--pool-size", "12"]
SMALL += ["--prompt-length", "3", "--repeats", "2", "--warm-up", "0"]


@pytest.fixture
def run(monkeypatch, capsys):
    threads = torch.get_num_threads()

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["selection", *SMALL, *options])
        selection.main()
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_every_selector_has_a_share_of_the_step(run):
    output = run()
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \([\d.]+ to [\d.]+\) \| ([\d.]+) \(", output, flags=re.MULTILINE)
    assert [name for name, *_ in rows] == available_selectors()
    assert all(float(milliseconds) > 0 and 0 < float(share) < 100 for _, milliseconds, share in rows)
    assert "A training step with 2 layers takes" in output and "d = 64" in output


def test_steps_have_the_measured_layers_and_selections_train_every_pool(run, monkeypatch):
    benchmarks = []
    monkeypatch.setattr(selection.Benchmark, "run", lambda self: benchmarks.append(self) or [(1.0, 2.0, 0.1, 0.1)] * 2)
    run("--selectors", "similarity", "residual")
    (benchmark,) = benchmarks
    counted = []
    for layer in benchmark.model.base_model.model.model.layers:
        layer.register_forward_hook(lambda *_: counted.append(1))
    for layers in (1, 2):
        counted.clear()
        before = {name: pool.keys.detach().clone() for name, pool in benchmark.pools.items()}
        benchmark.step_of(layers)()
        assert len(counted) == layers
        # The step trains the adapter of the first selector.
        changed = {name: not torch.equal(pool.keys, before[name]) for name, pool in benchmark.pools.items()}
        assert changed == {"similarity": True, "residual": False}
    for pool in benchmark.pools.values():
        gradients = []
        handles = [parameter.register_hook(gradients.append) for parameter in (pool.keys, pool.values)]
        selection.selection_step(pool, benchmark.embeds, benchmark.inputs)()
        assert len(gradients) == 2 and all(gradient.abs().sum() > 0 for gradient in gradients)
        for handle in handles:
            handle.remove()


def test_the_step_of_the_whole_model_is_extrapolated_by_layers():
    assert selection.step_seconds(3.0, 5.0, (1, 2), 32) == 3.0 + 31 * 2.0
    assert selection.step_seconds(3.0, 65.0, (1, 32), 32) == 65.0
    first, second = selection.shares([(3.0, 5.0, 1.0, 4.0)] * 3, (1, 2), 32)
    assert first == pytest.approx([1 / 65] * 3) and second == pytest.approx([4 / 68] * 3)


@pytest.mark.parametrize("layers", [("2", "1"), ("0", "1"), ("1", "3")])
def test_layers_that_do_not_fit_the_model_are_refused(run, capsys, layers):
    with pytest.raises(SystemExit):
        run("--measured-layers", *layers)
    assert f"from 1 to 2, got {' '.join(layers)}" in capsys.readouterr().err

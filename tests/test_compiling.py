import subprocess
import sys

import pytest
import torch

from uncurtail.lm.compiling import compiled
from uncurtail.lm.sections import TrainSection

BROKEN = """
import torch
from torch._inductor import config
from uncurtail.lm.compiling import compiled
from uncurtail.lm.sections import TrainSection
config.cpp.cxx = ("/nowhere/c++",)
train = TrainSection(budget_tokens=1, compile=sys.argv[1])
loss = compiled(lambda x, y: (x * y).sin().sum(), train, torch.device("cuda"))
print(float(loss(torch.ones(8), torch.zeros(8))))
"""


def loss(inputs, targets):
    return (inputs * targets).sum()


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ({"compile": "never"}, "cuda"),
        ({"compile": "auto", "deterministic": True}, "cuda"),
        ({"compile": "auto"}, "cpu"),
    ],
)
def test_the_loss_stays_as_it_is(options, device):
    train = TrainSection(budget_tokens=1, **options)
    assert compiled(loss, train, torch.device(device)) is loss


def test_a_gpu_without_a_c_compiler_trains_eagerly_and_says_so(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert compiled(loss, TrainSection(budget_tokens=1), torch.device("cuda")) is loss
    assert "install gcc" in caplog.text


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["auto", "always"])
def test_what_cannot_be_compiled_is_computed_as_it_is_unless_it_must_be(mode, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + BROKEN, mode],
        env={"PATH": "/usr/bin:/bin", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    if mode == "auto":
        assert done.stdout.strip() == "0.0", done.stderr
        assert "/nowhere/c++" in done.stderr  # torch logs why
    else:
        assert done.returncode != 0
        assert "/nowhere/c++" in done.stderr

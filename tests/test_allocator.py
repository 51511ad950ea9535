import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from uncurtail.lm.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():  # several blocks of 8 MB at once, as a step has them
    blocks = [bytearray(8 << 20) for _ in range(6)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    """Page faults of five equal steps after the first."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_a_step_frees_is_there_for_the_next_one():
    assert faults("kept") < 100 < 10_000 < faults("given back")

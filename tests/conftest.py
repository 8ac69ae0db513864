import os

# Before numpy is imported, as microumup/__init__.py does it for a command: two BLAS threads on a busy machine wait for
# each other most of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest

from microumup.data import ByteTokenizer, Corpus


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """A text that can be learned in a few steps, without reading the shipped one."""
    text = "the people of the united states. " * 400
    tokens = np.frombuffer(text.encode(), np.uint8)
    return Corpus("test", tokens[:12_000], tokens[12_000:], ByteTokenizer())

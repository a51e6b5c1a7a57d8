"""Settings of all tests: one thread, which slow tests run, and Hypothesis profiles.

``pytest`` leaves the tests marked ``slow`` out, ``pytest -m slow`` runs them, ``pytest -m slow --slow=sample`` every eighth of them.
``HYPOTHESIS_PROFILE=dev`` draws other examples every time; the default ``ci`` always the same.
"""

from __future__ import annotations

import os
import zlib

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large], "print_blob": True}
settings.register_profile("ci", derandomize=True, database=None, **_COMMON)
settings.register_profile("dev", **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

SAMPLE = 8


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test draws the same numbers whichever tests ran before it."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", choices=["no", "sample", "all"], help="which tests marked slow to run; all if -m names slow, else no")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--slow") or ("all" if "slow" in config.getoption("-m") else "no")
    if wanted == "all":
        return
    kept = [item for item in items if item.get_closest_marker("slow") is None or (wanted == "sample" and _in_sample(item))]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _in_sample(item: pytest.Item) -> bool:
    """The same tests on every machine."""
    return zlib.crc32(item.nodeid.encode()) % SAMPLE == 0

"""Which `bucket.lua` the storages load; as a pytest plugin (`-p checks.mutation.script`) the one BUCKET_LUA names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Final
from unittest import mock

import pytest

VARIABLE: Final = "BUCKET_LUA"


def shipped() -> str:
    """Return the script as it is."""
    return resources.files("keepa_tokens.storage").joinpath("bucket.lua").read_text(encoding="utf-8")


@contextmanager
def loaded(script: str) -> Iterator[None]:
    """Let every storage that is made meanwhile load this script instead of the package's file."""
    with mock.patch("keepa_tokens.storage._keyspace.resources") as stand_in:
        stand_in.files.return_value.joinpath.return_value.read_bytes.return_value = script.encode()
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[None]:
    """Run all tests on the script that is named."""
    with loaded(Path(os.environ[VARIABLE]).read_text(encoding="utf-8")):
        return (yield)

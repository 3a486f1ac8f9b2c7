"""One running application a test, on the first kind of project."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, RunningSite, running


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[RunningSite]:
    async with running(tmp_path / "annotate.db", FakeModel(), CHOOSE) as made:
        yield made

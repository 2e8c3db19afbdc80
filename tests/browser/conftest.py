"""One Chromium for all tests of pages."""

from collections.abc import Iterator

import pytest

from tests.helpers.browser import chromium


@pytest.fixture(scope="session")
def browser() -> Iterator:
    with chromium() as found:
        yield found

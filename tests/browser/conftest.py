"""One Chromium for the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.helpers.browser import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as found:
        yield found

from collections.abc import Iterator

import pytest

from peft_listen.tuners.listen.selectors import base


@pytest.fixture(scope="module", autouse=True)
def registry() -> Iterator[None]:
    """Selectors that the controls register are not seen by other tests, which run all that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_SELECTORS", dict(base._SELECTORS))
        yield

"""Parameters of ``/auth``."""

import attrs


@attrs.frozen(kw_only=True)
class Echo:
    echo: str

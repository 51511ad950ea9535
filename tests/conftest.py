"""For every test: torch is brought in with our settings, whatever a test imports first."""

import uncurtail  # noqa: F401 - before torch

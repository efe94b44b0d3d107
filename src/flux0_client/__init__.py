"""The old import name of `flux0`, for code that was written for the generated client.

Importing this package emits a `DeprecationWarning`.
"""

from __future__ import annotations

import warnings

from flux0 import Flux0 as Flux0, __version__ as __version__
from flux0_client import models as models
from flux0_client.models import *  # noqa: F403 - the generated package exports its models, too

Flux0Client = Flux0
VERSION: str = __version__

warnings.warn(
    "flux0_client is the old name of the package flux0: import Flux0 and the models from flux0"
    " (see docs/moving-over.md)",
    DeprecationWarning,
    stacklevel=2,
)

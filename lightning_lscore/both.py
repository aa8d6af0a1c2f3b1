"""One base for callbacks of both packages.

``lightning`` and ``pytorch_lightning`` are two packages of the same code, and each has a Callback
class of its own, which its command line asks for. A class that inherits from both runs in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    try:
        import pytorch_lightning
    except ImportError:  # lightning 2.6 brings it along
        Callback = lightning.pytorch.Callback
    else:

        class Callback(lightning.pytorch.Callback, pytorch_lightning.Callback):
            """A callback of either package."""


__all__ = ["Callback"]

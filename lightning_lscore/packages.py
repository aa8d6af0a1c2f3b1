"""The two packages of Lightning: callbacks belong to those that the user has imported.

``lightning`` and ``pytorch_lightning`` hold the same code twice, each with a ``Callback`` that its
Trainer and command line ask for. Importing either sends the messages of both to a logger of its
own, so LScore imports neither where the other is there already.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["Callback", "join_packages", "lightning_package"]

_NAMES = ("lightning.pytorch", "pytorch_lightning")
_LENT = ("log", "log_dict")


def lightning_package() -> ModuleType:
    """Return the package that the user has imported; ``lightning.pytorch`` for both and none."""
    imported = [name for name in _NAMES if name in sys.modules]
    return importlib.import_module([*imported, *_NAMES][0])


if TYPE_CHECKING:
    from lightning.pytorch import Callback as _Callback
else:
    _Callback = lightning_package().Callback


class Callback(_Callback):
    """A callback of each package that is imported, also of one that is imported later."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        join_packages()
        return super().__new__(cls)

    # Lightning lends each callback methods of the module, and never takes them back: with them, a
    # callback would hold the model and its data, and so would its copies.

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._give_back()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for name in _LENT:
            vars(self).pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _LENT}


def join_packages() -> None:
    """Make ``Callback`` a subclass of the Callback of each package that is imported by now."""
    modules = [sys.modules[name] for name in _NAMES if name in sys.modules]
    found = [m.Callback for m in modules if hasattr(m, "Callback")]
    lacking = tuple(c for c in found if not issubclass(Callback, c))
    if lacking:
        Callback.__bases__ += lacking

"""The names under which a run's values are logged: their own, unless someone else logs those."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import count

KEYS = ("L", "perplexity", "f_D", "f_A", "f_H", "lscore/tokens")
"""What every run logs; the last stands for all below ``lscore/``."""


class Names:
    """Gives each value a name that nobody else uses.

    A name is used also where it is a folder of the other's path, or the other of its: loggers that
    keep a file for each name, such as MLflow's, cannot hold both ``a`` and ``a/b``.

    Args:
        prefix: of LScore's names.

    >>> names = Names("")
    >>> names.avoid(["L", "perplexity"], {"perplexity", "loss"})
    {'perplexity': 'lscore/perplexity'}
    >>> names.of("L"), names.of("perplexity")
    ('L', 'lscore/perplexity')
    """

    def __init__(self, prefix: str) -> None:
        self.moved: dict[str, str] = {}
        """The other name of each value that has one."""
        self._prefix = prefix

    def of(self, key: str) -> str:
        """Return the name of a value."""
        return self.moved.get(key, key)

    def avoid(self, keys: Iterable[str], others: Collection[str]) -> dict[str, str]:
        """Give other names to the values whose names someone else uses.

        Args:
            keys: of all values to be logged.
            others: names that someone else logs.

        Returns:
            The new names, by key.
        """
        keys, used = list(keys), _paths(others)
        clashing = [key for key in keys if _clashes(self.of(key), used, others)]
        ours = {self.of(key) for key in keys}
        new = {}
        for key in clashing:
            self.moved[key] = new[key] = next(
                name
                for name in self._alternatives(key)
                if name not in ours and not _clashes(name, used, others)
            )
            ours.add(new[key])
        return new

    def _alternatives(self, key: str) -> Iterator[str]:
        name = key.removeprefix(self._prefix)
        if not name.startswith("lscore/"):
            yield f"{self._prefix}lscore/{name}"
        # In no folder, where any name may be free.
        name = f"{self._prefix}lscore_{name.removeprefix('lscore/')}".replace("/", "_")
        yield name
        yield from (f"{name}_{n}" for n in count(2))


def _paths(names: Iterable[str]) -> set[str]:
    """Return the names and all folders of their paths."""
    return {name[:end] for name in names for end in _ends(name)}


def _ends(name: str) -> list[int]:
    return [i for i, letter in enumerate(name) if letter == "/"] + [len(name)]


def _clashes(name: str, used: Collection[str], others: Collection[str]) -> bool:
    return name in used or any(name[:end] in others for end in _ends(name))

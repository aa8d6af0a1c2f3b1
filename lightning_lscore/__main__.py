"""``python -m lightning_lscore`` is the command ``lscore``."""

import sys

from .cli import main

sys.exit(main())

"""What the tests of training share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # sampler_cases and sampler_reference

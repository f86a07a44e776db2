"""What several tests use. A test imports from here and from its own folder, never from another folder."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

"""Tests mirror the packages; test_pipeline.py runs the real dvc.yaml at toy size."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "data" / "demo"

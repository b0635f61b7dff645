"""Beats: tracking, tempo groups, downbeat alignment."""

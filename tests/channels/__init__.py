"""Tests of channel groups: traced, cut and checked on networks that really fire."""

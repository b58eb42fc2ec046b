"""Sensitivity and bit allocation."""

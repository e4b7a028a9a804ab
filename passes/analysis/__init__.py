"""Analyses that passes share."""

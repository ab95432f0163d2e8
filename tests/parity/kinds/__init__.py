"""Handlers of fixtures, found by `tests.parity.registry`: one module a group of kinds."""

"""Measures of videos: tensors in, dataclasses out."""

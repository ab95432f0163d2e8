"""Base models behind the contracts of `streaming`: each file a plugin, none imported by name."""

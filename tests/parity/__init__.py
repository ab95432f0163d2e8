"""Numbers that the published code produced, met by this library's modules."""

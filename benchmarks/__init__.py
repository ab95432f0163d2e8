"""Commands that print the project's figures; docs/benchmarks.md says which and keeps what they printed."""

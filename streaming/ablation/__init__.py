"""The paper's ablations, repeated: variants of one method on the same prompts and seeds, measured and compared."""

"""Generation, accuracy, error analysis and significance tests."""

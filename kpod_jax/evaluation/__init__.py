"""Generation, accuracy, analysis of errors and significance."""

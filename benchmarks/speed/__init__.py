"""Speed and memory beside transformers and torch: `python -m benchmarks.speed`."""

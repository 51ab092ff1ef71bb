"""The suite of the ops: problems, contestants, and how one is timed beside the other. Started by `benchmarks.run`."""

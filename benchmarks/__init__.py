"""Side-by-side measurements. Each module is run as `python -m benchmarks.NAME`; the last line is one JSON document."""

"""Small real models and synthetic audio without the Hub. The demo and the benchmarks use them."""

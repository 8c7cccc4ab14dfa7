"""The demo behind `make demo`: dataset, base model, training and evaluation."""

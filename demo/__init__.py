"""The demo behind `make demo`: data set, base model, training and evaluation."""

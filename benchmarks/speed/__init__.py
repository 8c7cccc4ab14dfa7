"""Time and memory of the tuner and of the audio model, as ratios to their peers."""

"""Time and memory of the tuner, the audio model and the feature cache, as ratios to their peers."""

"""What a model is worth: evaluation over a set, and the metrics that it reads."""

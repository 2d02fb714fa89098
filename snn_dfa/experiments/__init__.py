"""The command line's experiments: data, a network, training, checkpoints, reports."""

"""Training one network by one rule."""

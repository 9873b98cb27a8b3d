"""One training run: set-up, plan, previews, logs, weights, the trained run."""

"""The compiled training step of all members, and the training loop."""

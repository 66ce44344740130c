"""The compiled training step of all members, and the loop around it."""

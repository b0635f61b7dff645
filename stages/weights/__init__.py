"""Public checkpoints into our model folders and back, every tensor accounted for."""

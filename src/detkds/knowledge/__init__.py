"""What is imitated: each kind of knowledge reads two detector outputs and yields pairs of tensors."""

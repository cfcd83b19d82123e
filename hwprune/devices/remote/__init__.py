"""The host's side of a remote device: what is sent, over what, and the board that stands for the one over there."""

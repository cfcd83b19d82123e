"""Data, tasks, and the one training loop that dense training, finetuning and the search methods share."""

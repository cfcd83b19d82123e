"""Text, HTML and explanations of a run: reads a run folder, nothing else."""

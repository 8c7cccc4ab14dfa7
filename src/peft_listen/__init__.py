"""LiSTEN (arXiv 2505.18517) as a plug-in for the Hugging Face ecosystem. See the README for where to begin."""

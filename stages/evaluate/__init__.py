"""Quality, relevance and novelty of generated music."""

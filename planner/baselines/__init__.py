"""What others plan, on the same problem and judged alike."""

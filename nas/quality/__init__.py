"""Quality of a candidate: text in, bits per byte out."""

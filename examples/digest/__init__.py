"""A video digest: shots, a picture of each, what is in them, and a summary on one page. See docs/video-digest.md."""

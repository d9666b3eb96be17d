"""Scenes as pixels: frames, films, videos."""

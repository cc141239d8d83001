"""Trained runs over HTTP, and a web page for them: see docs/serving.md."""

"""The demo: a Label Studio of its own, this backend, and a simulated annotator."""

"""The web process. It never imports torch, faiss, the SDK or label_studio_ml; a test checks that."""

"""Setting up a labelling project in Label Studio: creating it, adding pictures, connecting it to this backend."""

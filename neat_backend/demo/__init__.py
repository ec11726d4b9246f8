"""A Label Studio of our own to show the backend with, and hands to work in it as a person would."""

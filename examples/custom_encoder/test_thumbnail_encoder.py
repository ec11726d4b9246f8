"""The contract that the encoders of neat-backend are tested by."""

from neat_backend.testing import EncoderContract


class TestThumbnail(EncoderContract):
    names = ("thumbnail", "thumbnail:8")

"""The compose file on a real Docker engine: `make compose-test`. No part of the tests that run everywhere."""

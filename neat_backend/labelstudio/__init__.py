"""The interface to Label Studio. Imports only `records` and `errors` of this package.

`events` and `label_config` are imported by the web process: standard library and defusedxml only.
"""

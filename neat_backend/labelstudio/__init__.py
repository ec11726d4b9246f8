"""All that knows Label Studio. Imports `records` and `errors` of this package, nothing else.

`events` and `label_config` are imported by the web process: standard library and defusedxml only.
"""

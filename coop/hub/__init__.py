"""The hub: assembles the central service and serves it over HTTPS.

`folder` is its state, `app` wires the parts together, the `*_api` modules are its own routes.
"""

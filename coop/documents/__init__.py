"""The signed documents: types used at both ends of the wire, and nothing else.

One chain, each naming its predecessor by SHA-256 (`coop.canonical.document_digest`):

    study → approval → order → round request → lease → round receipt → round record
          → passport → inference receipt

`envelope` signs and opens them; `study`, `training`, `consent` and `serving` say what they hold.
"""

"""The transparency log: an RFC 6962 tree that anyone can audit and nobody can rewrite unseen.

`merkle` is the tree, `note` the signed and cosigned checkpoints (C2SP), `tiles` its public files,
`store` the tables, `receipts` the proof a person keeps, `trust` the keys a verifier pins.
"""
